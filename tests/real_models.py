"""Tiny models of other libraries with random weights, by width: transformers', timm's, torch's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm_models
import torch
import transformers as hf
from plain_models import Encoder
from torch import nn

VOCABULARY, TOKENS, HEAD_DIM = 48, 8, 16


class Real(NamedTuple):
    """How to make a model of a width, and a batch for it."""

    make: Callable[[int], nn.Module]
    batch: Callable[[], dict[str, torch.Tensor]]


def text() -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(VOCABULARY, (4, TOKENS))}


def images() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(6, 3, 8, 8)}


def _sizes(width: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": width // HEAD_DIM,
    }


def _decoder(width: int) -> dict[str, Any]:
    heads = {"num_key_value_heads": width // HEAD_DIM // 2, "head_dim": HEAD_DIM}
    positions = {"vocab_size": VOCABULARY, "max_position_embeddings": 2 * TOKENS}
    return {**_sizes(width), **heads, **positions, "use_cache": False}


def llama(width: int) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**_decoder(width)))


def qwen3(width: int) -> nn.Module:
    """QK-norm, and a tied head."""
    return hf.Qwen3ForCausalLM(hf.Qwen3Config(**_decoder(width), tie_word_embeddings=True))


def mixtral(width: int) -> nn.Module:
    """Experts whose weights are three-dimensional parameters."""
    config = hf.MixtralConfig(**_decoder(width), num_local_experts=4, num_experts_per_tok=2)
    return hf.MixtralForCausalLM(config)


def gpt2(width: int) -> nn.Module:
    """Fused and transposed projections, learned positions, and a tied head."""
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_positions=TOKENS, n_embd=width, n_layer=2,
        n_head=width // HEAD_DIM, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
    )  # fmt: skip
    return hf.GPT2LMHeadModel(config)


def vit(width: int) -> nn.Module:
    config = hf.ViTConfig(**_sizes(width), image_size=8, patch_size=4, num_labels=5)
    return hf.ViTForImageClassification(config)


MODELS = {
    "llama": Real(llama, text),
    "qwen3": Real(qwen3, text),
    "mixtral": Real(mixtral, text),
    "gpt2": Real(gpt2, text),
    "vit": Real(vit, images),
    "timm vit": Real(timm_models.vit, lambda: {"x": torch.randn(4, 3, 16, 16)}),
    "timm convnext": Real(timm_models.convnext, lambda: {"x": torch.randn(4, 3, 32, 32)}),
    "torch's encoder": Real(Encoder, lambda: {"x": torch.randn(4, 5, 6)}),
}


def output(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits."""
    out = model(**batch)
    return getattr(out, "logits", out)
