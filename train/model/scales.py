"""The scales: LLaMA-3 models from a debug size to 3B, and ladders in which only the width differs.

Those of torchtitan's other decoders are in `train.model.decoder_scales`, and those of image
classifiers in `train.model.image_scales`.

This module does not import torch, so that commands that only plan runs start quickly. The models
are in `train.model.decoders`.
"""

from dataclasses import replace
from typing import Any

from train.model.decoder_scales import DECODER_BASES, DECODERS
from train.model.image_scales import IMAGE_BASES, IMAGE_SCALES, TIMM, ImageScale
from train.model.scale import Scale as Scale

LLAMA3_VOCABULARY = 128_256
VOCAB_SIZE = 4096
"""Tokens of the embedded corpus's tokenizer."""
TOKENS_PER_PARAMETER = 20


def _llama(
    name: str, dim: int, n_layers: int, n_heads: int, n_kv_heads: int, **batch: Any
) -> Scale:
    # LLaMA-3 8B's rule for the width of the feed-forward: 1.3 times 8/3, rounded up to 1024.
    ffn = -(-int(1.3 * int(8 * dim / 3)) // 1024) * 1024
    return Scale(name, dim, n_layers, n_heads, n_kv_heads, ffn, **batch)


def _width(dim: int) -> Scale:
    """Only the width varies: depth, head_dim, queries per key head and ffn_dim / dim are fixed."""
    heads = dim // 64
    return Scale(f"w{dim}", dim, 12, heads, heads // 4, dim * 7 // 2)


def _cpu_width(dim: int) -> Scale:
    """The same at a size that a CPU trains in seconds."""
    heads = dim // 16
    return Scale(f"cpu{dim}", dim, 4, heads, heads // 2, dim * 7 // 2).on_cpu()


def _cpu_depth(n_layers: int) -> Scale:
    """cpu64 with another number of layers."""
    return replace(_cpu_width(64), name=f"cpu64-d{n_layers}", n_layers=n_layers)


SCALES: dict[str, Scale] = {
    scale.name: scale
    for scale in (
        Scale("debug", 128, 2, 4, 2, 448).on_cpu(),
        _llama("s1", 512, 6, 8, 4),
        _llama("s2", 768, 10, 12, 4),
        _llama("s3", 1024, 16, 16, 4),
        _llama("s4", 2048, 20, 16, 4, local_batch_size=4),
        _llama("s5", 2560, 32, 32, 8, local_batch_size=2),
        *(_width(dim) for dim in (256, 512, 1024, 2048, 4096)),
        *(_cpu_width(dim) for dim in (64, 128, 256, 512)),
        *(_cpu_depth(n_layers) for n_layers in (2, 4, 8, 16)),
        Scale("debug-base", 32, 2, 2, 1, 112).on_cpu(),
    )
}


AnyScale = Scale | ImageScale

# The smallest scale of each ladder, where learning rates are tuned.
_BASES = {"debug": "debug-base", "s": "s1", "w": "w256", "cpu": "cpu64"}
_BASES |= {"cpu64-d": "cpu64-d2", **IMAGE_BASES, **DECODER_BASES}


def base_of(name: str) -> str | None:
    """The scale that the exponents of scale ``name`` refer to by default.

    A base is its own. A scale that belongs to none of the ladders has none.
    """
    ladder = name if name in _BASES else name.removesuffix("-base").rstrip("0123456789")
    return _BASES.get(ladder)


def all_scales() -> dict[str, AnyScale]:
    """The scales of language models and of image classifiers, by name."""
    return {**SCALES, **DECODERS, **IMAGE_SCALES}


def find_scale(name: str, flag: str = "--scale") -> AnyScale:
    """The scale of this name, of either kind; ``timm-NAME`` is a model of timm.

    Raises:
        ValueError: one line that names the flag and the known scales.
    """
    if name.startswith(TIMM):
        from train.model.timm_scales import timm_scale  # which imports torch

        return timm_scale(name, flag)
    scales = all_scales()
    if name not in scales:
        choices = ", ".join(scales)
        raise ValueError(f"{flag} {name}: unknown; choose one of {choices}, or {TIMM}NAME")
    return scales[name]


def get_scale(name: str, flag: str = "--scale") -> Scale:
    """The scale of a language model of this name.

    Raises:
        ValueError: one line that names the flag and the known scales.
    """
    scales = {**SCALES, **DECODERS}
    if name not in scales:
        raise ValueError(f"{flag} {name}: unknown; choose one of {', '.join(scales)}")
    return scales[name]


def compute_steps(scale: AnyScale, tokens_per_step: int | None = None) -> int:
    """Steps for 20 tokens per non-embedding parameter (Hoffmann et al. 2022, arXiv 2203.15556).

    Of experts, those count that each token is sent to. For images, the number that the scale has.
    """
    if isinstance(scale, ImageScale):
        return scale.steps
    if tokens_per_step is None:
        tokens_per_step = scale.global_batch_size * scale.seq_len
    return max(1, round(TOKENS_PER_PARAMETER * scale.active_params / tokens_per_step))
