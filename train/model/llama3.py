"""The model of a scale with its sites marked, and the graph of the sites."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torchtitan.models.common import (
    ComplexRoPE,
    Embedding,
    Linear,
    RMSNorm,
)
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.protocols.module import Module

from maxp.graph import Graph
from maxp.trace import trace
from train import cpu
from train.model.converter import SiteConverter
from train.model.scales import LLAMA3_VOCABULARY, Scale, get_scale
from train.model.sites import plain_attention_config

_NORM_INIT = {"weight": nn.init.ones_}
# Replaced when maxp draws the weights; only a model without sites keeps this initialisation.
_LINEAR_INIT: dict[str, Callable[..., Any]] = {"weight": partial(nn.init.normal_, std=0.02)}


def inner_attention_config() -> Module.Config:
    """FlexAttention; on a CPU, where it has no backward, torch's scaled dot product attention."""
    if cpu.has_accelerator():
        return FlexAttention.Config()
    return ScaledDotProductAttention.Config()


def model_config(scale: Scale, vocab_size: int) -> Llama3Model.Config:
    """The model's configuration, with its sites marked."""
    converted = SiteConverter.Config().build().convert(plain_model_config(scale, vocab_size))
    assert isinstance(converted, Llama3Model.Config)
    return converted


def plain_model_config(scale: Scale, vocab_size: int) -> Llama3Model.Config:
    """torchtitan's own configuration of the same model."""
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
                fuse_qkv=False,
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
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=dim, param_init=_LINEAR_INIT
        ),
        norm=norm(),
        lm_head=Linear.Config(in_features=dim, out_features=vocab_size, param_init=_LINEAR_INIT),
        layers=layers,
    )


def site_graph(config: Llama3Model.Config) -> Graph:
    """The graph of the sites, traced on the meta device; the attention kernel does not matter."""
    config = copy.deepcopy(config)
    for layer in config.layers:
        layer.attention.inner_attention = plain_attention_config(layer.attention.inner_attention)
        layer.attention.rope = replace(layer.attention.rope, max_seq_len=8)
    with torch.device("meta"):
        return trace(config.build(), torch.zeros(1, 8, dtype=torch.long))


BRANCH_ENDS = ("attention.wo", "feed_forward.w2")
"""The sites that end a residual branch."""


def base_model(scale: Scale, base: Scale, vocab_size: int) -> nn.Module:
    """A model of the base's widths and the scale's depth, on the meta device."""
    with torch.device("meta"):
        return model_config(replace(base, n_layers=scale.n_layers), vocab_size).build()


def llama3_graph(scale: str, vocab_size: int = LLAMA3_VOCABULARY) -> Graph:
    """The graph of a scale's sites."""
    return site_graph(model_config(get_scale(scale), vocab_size))
