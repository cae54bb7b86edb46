"""A torchtitan config function ``SCALE_METHOD`` for every scale of torchtitan's other decoders.

A dash in a method's name is an underscore, as in `configs.llama3`: ``qwen3-0.6b_mup_full``.
"""

from configs.llama3 import config_functions
from train.model.decoder_scales import DECODERS

globals().update(config_functions(DECODERS))
