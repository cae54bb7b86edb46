"""A torchtitan config function ``SCALE_METHOD`` for every scale of images and every method.

A dash in a method's name is an underscore, as in `configs.llama3`: ``vit-s_mup_full``.
"""

from configs.llama3 import config_functions
from train.model.image_scales import IMAGE_SCALES

globals().update(config_functions(IMAGE_SCALES))
