"""The scales: LLaMA-3 models from a debug size to 3B, and ladders that differ in width alone."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torchtitan.models.common import (
    ComplexRoPE,
    Embedding,
    Linear,
    RMSNorm,
    compute_ffn_hidden_dim,
)
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.models.common.config_utils import make_ffn_config, make_gqa_config
from torchtitan.models.llama3.model import Llama3Model, Llama3TransformerBlock
from torchtitan.protocols.module import Module

from maxp.dag import Graph
from maxp.trace import trace
from train import cpu
from train.converter import SiteConverter
from train.sites import plain_attention_config

LLAMA3_VOCABULARY = 128_256
TOKENS_PER_PARAMETER = 20

_NORM_INIT = {"weight": nn.init.ones_}
# What a layer's weight starts from before maxp draws it; only a model without sites keeps it.
_LINEAR_INIT: dict[str, Callable[..., Any]] = {"weight": partial(nn.init.normal_, std=0.02)}


@dataclass(frozen=True)
class Scale:
    """One size of LLaMA-3: RMSNorm, SwiGLU, RoPE, grouped queries, untied head.

    Attributes:
        seq_len: tokens a sequence.
        local_batch_size: sequences a process takes at once.
        global_batch_size: sequences a step, over all processes.
        on_corpus: trains on the embedded corpus with its tokenizer, not on FineWeb-Edu.
    """

    name: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    seq_len: int = 2048
    local_batch_size: int = 8
    global_batch_size: int = 256
    on_corpus: bool = False

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def non_embedding_params(self) -> int:
        """Parameters without the embedding table and the head."""
        attention = 2 * self.dim * (self.n_heads + self.n_kv_heads) * self.head_dim
        norms = 2 * self.dim
        return self.n_layers * (attention + 3 * self.dim * self.ffn_dim + norms) + self.dim


def _llama(
    name: str, dim: int, n_layers: int, n_heads: int, n_kv_heads: int, **batch: Any
) -> Scale:
    # LLaMA-3 8B's rule for the width of the feed-forward.
    ffn = compute_ffn_hidden_dim(dim, multiple_of=1024, ffn_dim_multiplier=1.3)
    return Scale(name, dim, n_layers, n_heads, n_kv_heads, ffn, **batch)


def _width(dim: int) -> Scale:
    """Width alone varies: depth, head_dim, queries a key head and ffn_dim / dim are fixed."""
    heads = dim // 64
    return Scale(f"w{dim}", dim, 12, heads, heads // 4, dim * 7 // 2)


def _cpu_width(dim: int) -> Scale:
    """The same idea at a size that a CPU trains in seconds."""
    heads = dim // 16
    return _on_cpu(Scale(f"cpu{dim}", dim, 4, heads, heads // 2, dim * 7 // 2))


def _on_cpu(scale: Scale) -> Scale:
    return replace(scale, seq_len=128, local_batch_size=4, global_batch_size=4, on_corpus=True)


SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        _on_cpu(Scale("debug", 128, 2, 4, 2, 448)),
        _llama("s1", 512, 6, 8, 4),
        _llama("s2", 768, 10, 12, 4),
        _llama("s3", 1024, 16, 16, 4),
        _llama("s4", 2048, 20, 16, 4, local_batch_size=4),
        _llama("s5", 2560, 32, 32, 8, local_batch_size=2),
        *(_width(dim) for dim in (256, 512, 1024, 2048, 4096)),
        *(_cpu_width(dim) for dim in (64, 128, 256, 512)),
    )
}


def get_scale(name: str) -> Scale:
    """The scale of this name.

    Raises:
        ValueError: one line that names the flag and the scales there are.
    """
    if name not in SCALES:
        raise ValueError(f"--scale {name}: unknown; choose one of {', '.join(SCALES)}")
    return SCALES[name]


def compute_steps(scale: Scale, tokens_per_step: int | None = None) -> int:
    """Steps for 20 tokens a non-embedding parameter (Hoffmann et al. 2022, arXiv 2203.15556)."""
    if tokens_per_step is None:
        tokens_per_step = scale.global_batch_size * scale.seq_len
    return max(1, round(TOKENS_PER_PARAMETER * scale.non_embedding_params / tokens_per_step))


def inner_attention_config() -> Module.Config:
    """FlexAttention; on a CPU, where that has no backward, torch's scaled dot product."""
    if cpu.has_accelerator():
        return FlexAttention.Config()
    return ScaledDotProductAttention.Config()


def model_config(scale: Scale, vocab_size: int) -> Llama3Model.Config:
    """The model's configuration, its sites marked."""
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
    config = Llama3Model.Config(
        dim=dim,
        vocab_size=vocab_size,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=dim, param_init=_LINEAR_INIT
        ),
        norm=norm(),
        lm_head=Linear.Config(in_features=dim, out_features=vocab_size, param_init=_LINEAR_INIT),
        layers=layers,
    )
    converted = SiteConverter.Config().build().convert(config)
    assert isinstance(converted, Llama3Model.Config)
    return converted


def site_graph(config: Llama3Model.Config) -> Graph:
    """Which sites feed which, traced on the meta device; the attention's kernel does not matter."""
    config = copy.deepcopy(config)
    for layer in config.layers:
        layer.attention.inner_attention = plain_attention_config(layer.attention.inner_attention)
        layer.attention.rope = replace(layer.attention.rope, max_seq_len=8)
    with torch.device("meta"):
        return trace(config.build(), torch.zeros(1, 8, dtype=torch.long))


def llama3_graph(scale: str, vocab_size: int = LLAMA3_VOCABULARY) -> Graph:
    """The graph of a scale's sites."""
    return site_graph(model_config(get_scale(scale), vocab_size))
