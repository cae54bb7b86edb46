"""LLaMA-3."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torchtitan.models.common import ComplexRoPE, RMSNorm
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock

from train.model.ends import ends
from train.model.inner_attention import inner_attention_config
from train.model.scale import Scale

_NORM_INIT = {"weight": nn.init.ones_}
# Replaced when maxp draws the weights; only a model without sites keeps this initialisation.
_LINEAR_INIT: dict[str, Callable[..., Any]] = {"weight": partial(nn.init.normal_, std=0.02)}


def plain_config(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> Llama3Model.Config:
    """torchtitan's own configuration."""
    dim = scale.dim
    rope = ComplexRoPE.Config(
        dim=scale.head_dim, max_seq_len=131_072, theta=500_000, scaling="llama"
    )
    norm = partial(RMSNorm.Config, normalized_shape=dim, param_init=_NORM_INIT)
    layers = [
        Llama3TransformerBlock.Config(
            attention_norm=norm(),
            ffn_norm=norm(),
            attention=make_gqa_config(
                dim=dim,
                n_heads=scale.n_heads,
                n_kv_heads=scale.n_kv_heads,
                wqkv_param_init=_LINEAR_INIT,
                wo_param_init=_LINEAR_INIT,
                inner_attention=inner_attention_config(),
                fuse_qkv=fuse_qkv,
                rope=rope,
            ),
            feed_forward=make_ffn_config(
                dim=dim,
                hidden_dim=scale.ffn_dim,
                w1_param_init=_LINEAR_INIT,
                w2w3_param_init=_LINEAR_INIT,
            ),
        )
        for _ in range(scale.n_layers)
    ]
    return Llama3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        **ends(dim, vocab_size, _LINEAR_INIT, _NORM_INIT, _LINEAR_INIT),
        layers=layers,
    )
