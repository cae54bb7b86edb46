"""The ``config.json`` with which transformers computes the same logits, for each decoder.

Its keys are those of transformers 4, which version 5 reads as well.
"""

from typing import Any

from torchtitan.models.deepseek_v3.model import DeepSeekV3Model
from torchtitan.models.gpt_oss.model import GptOssModel
from torchtitan.models.llama3.model import Llama3Model
from torchtitan.models.qwen3.model import Qwen3Model

from train.model.converter import head_dim


def hf_config(config: Any, seq_len: int, bos: int | None, eos: int | None) -> dict[str, Any]:
    """The ``config.json`` of a model, with an untied head.

    Args:
        config: of the model.
        seq_len: tokens per sequence in training, the longest input that the model knows.
        bos: id of the token that begins a text.
        eos: id of the token that ends a text.

    Raises:
        ValueError: one line: transformers has no such model.
    """
    if isinstance(config, Qwen3Model.Config):
        own = _qwen3(config)
    elif isinstance(config, DeepSeekV3Model.Config):
        own = _deepseek(config)
    elif isinstance(config, GptOssModel.Config):
        own = _gptoss(config)
    else:
        own = _llama(config)
    attention = config.layers[0].attention
    return {
        **own,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": len(config.layers),
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": getattr(attention, "n_kv_heads", None) or attention.n_heads,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm.eps,
        "rope_theta": float(attention.rope.theta),
        "max_position_embeddings": seq_len,
        "tie_word_embeddings": False,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": "float32",
    }


def lacks_load_balancing(config: Any) -> bool:
    """Whether transformers' model chooses experts without the bias that balances their load."""
    return isinstance(config, (Qwen3Model.Config, GptOssModel.Config))


def _llama(config: Llama3Model.Config) -> dict[str, Any]:
    attention, feed_forward = config.layers[0].attention, config.layers[0].feed_forward
    rope = attention.rope
    assert feed_forward is not None
    assert rope.scaling == "llama"
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "intermediate_size": feed_forward.w1.out_features,
        "head_dim": rope.dim,
        "attention_bias": False,
        "mlp_bias": False,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": rope.scaling_factor,
            "low_freq_factor": rope.low_freq_factor,
            "high_freq_factor": rope.high_freq_factor,
            "original_max_position_embeddings": rope.original_max_position_embeddings,
        },
    }


def _qwen3(config: Qwen3Model.Config) -> dict[str, Any]:
    layer = config.layers[0]
    own = {"head_dim": head_dim(layer.attention), "attention_bias": False}
    if layer.moe is None:
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "intermediate_size": layer.feed_forward.w1.out_features,
            **own,
        }
    width = layer.moe.routed_experts.inner_experts.hidden_dim
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "intermediate_size": width,  # of blocks without experts, which there are none of
        "moe_intermediate_size": width,
        "num_experts": layer.moe.num_experts,
        "num_experts_per_tok": layer.moe.router.top_k,
        "norm_topk_prob": layer.moe.router.route_norm,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        **own,
    }


def _deepseek(config: DeepSeekV3Model.Config) -> dict[str, Any]:
    attention = config.layers[0].attention
    rope = attention.rope
    dense = [layer.feed_forward for layer in config.layers if layer.feed_forward is not None]
    moe = config.layers[-1].moe
    router, width = moe.router, moe.routed_experts.inner_experts.hidden_dim
    if router.score_func != "sigmoid":
        raise ValueError(
            f"RUN: its experts have {router.score_func} scores, and those of transformers' "
            "DeepSeek-V3 are sigmoids; only scales with sigmoids, such as deepseek-671b, can be "
            "exported"
        )
    return {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "intermediate_size": dense[0].w1.out_features if dense else width,
        "moe_intermediate_size": width,
        "n_routed_experts": moe.num_experts,
        "n_shared_experts": moe.shared_experts.w1.out_features // width,
        "num_experts_per_tok": router.top_k,
        "n_group": router.num_expert_groups or 1,
        "topk_group": router.num_limited_groups or 1,
        "norm_topk_prob": router.route_norm,
        "routed_scaling_factor": router.route_scale,
        "first_k_dense_replace": len(dense),
        "kv_lora_rank": attention.kv_lora_rank,
        "q_lora_rank": attention.q_lora_rank or None,
        "qk_nope_head_dim": attention.qk_nope_head_dim,
        "qk_rope_head_dim": attention.qk_rope_head_dim,
        "v_head_dim": attention.v_head_dim,
        "attention_bias": False,
        "rope_interleave": True,
        "num_nextn_predict_layers": 0,
        "rope_scaling": {
            **_yarn(rope),
            "mscale": attention.mscale,
            "mscale_all_dim": attention.mscale,
        },
    }


def _gptoss(config: GptOssModel.Config) -> dict[str, Any]:
    attention, moe = config.layers[0].attention, config.layers[0].moe
    windows = [layer.attention.sliding_window_size for layer in config.layers]
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "intermediate_size": moe.routed_experts.inner_experts.hidden_dim,
        "num_local_experts": moe.num_experts,
        "num_experts_per_tok": moe.router.top_k,
        "head_dim": attention.head_dim,
        "attention_bias": True,
        "swiglu_limit": moe.routed_experts.inner_experts.swiglu_limit,
        "sliding_window": next(window for window in windows if window is not None),
        "layer_types": ["full_attention" if w is None else "sliding_attention" for w in windows],
        "rope_scaling": {**_yarn(attention.rope), "truncate": attention.rope.truncate},
    }


def _yarn(rope: Any) -> dict[str, Any]:
    return {
        "rope_type": "yarn",
        "factor": float(rope.rope_factor),
        "beta_fast": rope.beta_fast,
        "beta_slow": rope.beta_slow,
        "original_max_position_embeddings": rope.original_seq_len,
    }
