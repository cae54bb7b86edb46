"""GPT-OSS: sinks and windows in attention, biases, and experts in every block."""

from typing import Any

from torch import nn
from torchtitan.models.common import CosSinRoPE
from torchtitan.models.gpt_oss import (
    _EMBEDDING_INIT,
    _NORM_INIT,
    _build_gptoss_layers,
    _make_gptoss_attn_config,
    _output_linear_init,
)
from torchtitan.models.gpt_oss.model import GptOssModel

from train.model.ends import ends
from train.model.inner_attention import window_attention_config
from train.model.scale import Scale


def plain_config(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> GptOssModel.Config:
    """torchtitan's own configuration, with FlexAttention."""
    experts = scale.experts
    assert experts is not None
    rope = CosSinRoPE.Config(
        dim=scale.head_dim,
        max_seq_len=131_072,
        theta=150_000.0,
        scaling="yarn",
        rope_factor=32,
        beta_fast=32.0,
        beta_slow=1.0,
        truncate=False,
        original_seq_len=4096,
    )
    layers: list[Any] = _build_gptoss_layers(
        dim=scale.dim,
        n_layers=scale.n_layers,
        hidden_dim=experts.width,
        num_experts=experts.number,
        top_k=experts.chosen,
        load_balance_coeff=1e-3,
        attn_backend="flex",
        moe_comm_backend="standard",
        rope=rope,
    )
    for number, layer in enumerate(layers):
        window = layer.attention.sliding_window_size
        # torchtitan's function for all blocks has heads of a fixed number and size.
        layer.attention = _make_gptoss_attn_config(
            dim=scale.dim,
            layer_id=number,
            attn_backend="flex",
            n_heads=scale.n_heads,
            n_kv_heads=scale.n_kv_heads,
            head_dim=scale.head_dim,
            sliding_window_size=window,
            fuse_qkv=fuse_qkv,
            rope=rope,
        )
        layer.attention.inner_attention = window_attention_config(window)
        # torchtitan draws them, and what it draws depends on how processes share the model.
        layer.attention.param_init = {"sinks": nn.init.zeros_}
    return GptOssModel.Config(
        vocab_size=vocab_size,
        dim=scale.dim,
        **ends(scale.dim, vocab_size, _EMBEDDING_INIT, _NORM_INIT, _output_linear_init(scale.dim)),
        layers=layers,
    )
