"""DeepSeek-V3: latent attention (MLA), and experts beside one that takes every token."""

from torchtitan.models.common import ComplexRoPE
from torchtitan.models.deepseek_v3 import (
    _EMBEDDING_INIT,
    _LINEAR_INIT,
    _NORM_INIT,
    _depth_experts_init,
    _depth_init,
    _output_linear_init,
    build_mla_moe_layers,
)
from torchtitan.models.deepseek_v3.model import DeepSeekV3Model

from train.model.ends import ends
from train.model.inner_attention import inner_attention_config
from train.model.scale import Scale


def plain_config(
    scale: Scale, vocab_size: int, *, fuse_qkv: bool = False
) -> DeepSeekV3Model.Config:
    """torchtitan's own configuration, without the prediction of further tokens (MTP).

    Raises:
        ValueError: ``fuse_qkv``, which latent attention cannot do.
    """
    if fuse_qkv:
        raise ValueError(
            f"--fuse-qkv: q, k and v of --scale {scale.name} are projections of different latents; "
            "leave it out"
        )
    experts, latent = scale.experts, scale.latent
    assert experts is not None
    assert latent is not None
    grouped = experts.groups > 1
    layers = build_mla_moe_layers(
        n_layers=scale.n_layers,
        n_dense_layers=experts.dense_layers,
        dim=scale.dim,
        n_heads=scale.n_heads,
        q_lora_rank=latent.q_rank,
        kv_lora_rank=latent.kv_rank,
        qk_nope_head_dim=latent.nope,
        qk_rope_head_dim=latent.rope,
        v_head_dim=latent.value,
        mscale=latent.mscale,
        dense_hidden_dim=scale.ffn_dim,
        moe_hidden_dim=experts.width,
        num_experts=experts.number,
        num_shared_experts=experts.shared,
        router_top_k=experts.chosen,
        router_score_func="sigmoid" if experts.sigmoid else "softmax",
        router_num_expert_groups=experts.groups if grouped else None,
        router_num_limited_groups=experts.chosen_groups if grouped else None,
        router_route_scale=experts.route_scale,
        router_route_norm=experts.sigmoid,
        attn_backend="flex",
        moe_comm_backend="standard",
        non_blocking_capacity_factor=None,
        linear_init=_LINEAR_INIT,
        norm_init=_NORM_INIT,
        depth_init=_depth_init,
        depth_experts_init=_depth_experts_init,
        rope=ComplexRoPE.Config(
            dim=latent.rope,
            max_seq_len=4096 * 4,
            theta=10_000.0,
            scaling="yarn",
            rope_factor=40.0,
            beta_fast=32.0,
            beta_slow=1.0,
            original_seq_len=4096,
        ),
    )
    for layer in layers:
        layer.attention.inner_attention = inner_attention_config()
        # As in DeepSeek's own model, and fixed in transformers; torchtitan has 1e-5.
        layer.attention.q_norm.eps = layer.attention.kv_norm.eps = 1e-6
    return DeepSeekV3Model.Config(
        vocab_size=vocab_size,
        dim=scale.dim,
        **ends(scale.dim, vocab_size, _EMBEDDING_INIT, _NORM_INIT, _output_linear_init(scale.dim)),
        layers=layers,
    )
