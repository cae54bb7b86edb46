"""Qwen3: LLaMA-3 with a norm of queries and keys, and with tied embeddings or experts."""

from typing import Any

from torchtitan.models.common import CosSinRoPE, Embedding, Linear
from torchtitan.models.qwen3 import (
    _EMBEDDING_INIT,
    _EMBEDDING_SKIP_INIT,
    _LINEAR_INIT,
    _build_qwen3_layers,
    _build_qwen3_moe_layers,
    _qwen3_norm,
)
from torchtitan.models.qwen3.model import Qwen3Model

from train.model.inner_attention import inner_attention_config
from train.model.scale import Scale


def plain_config(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> Qwen3Model.Config:
    """torchtitan's own configuration."""
    sizes: dict[str, Any] = {
        "n_layers": scale.n_layers,
        "dim": scale.dim,
        "n_heads": scale.n_heads,
        "n_kv_heads": scale.n_kv_heads,
        "head_dim": scale.head_dim,
        "fuse_qkv": fuse_qkv,
        "attn_backend": "flex",
        "rope": CosSinRoPE.Config(
            dim=scale.head_dim, max_seq_len=40_960, theta=float(scale.rope_theta)
        ),
    }
    if scale.experts is None:
        layers = _build_qwen3_layers(**sizes, hidden_dim=scale.ffn_dim)
    else:
        layers = _build_qwen3_moe_layers(
            **sizes,
            moe_hidden_dim=scale.experts.width,
            num_experts=scale.experts.number,
            top_k=scale.experts.chosen,
            moe_comm_backend="standard",
        )
    for layer in layers:
        layer.attention.inner_attention = inner_attention_config()
    return Qwen3Model.Config(
        vocab_size=vocab_size,
        dim=scale.dim,
        norm=_qwen3_norm(scale.dim),
        enable_weight_tying=scale.tied,
        tok_embeddings=Embedding.Config(
            num_embeddings=vocab_size,
            embedding_dim=scale.dim,
            param_init=_EMBEDDING_SKIP_INIT if scale.tied else _EMBEDDING_INIT,
        ),
        lm_head=Linear.Config(
            in_features=scale.dim, out_features=vocab_size, param_init=_LINEAR_INIT
        ),
        layers=layers,
    )
