"""torchtitan's decoders: the configuration of a scale with its sites marked, and their graph."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torchtitan.models.common.attention import FusedQKVLinear
from torchtitan.models.gpt_oss.model import GptOssModel

from maxp.graph import Graph
from maxp.module import bias_of, find_sites
from maxp.trace import trace
from train.model import deepseek, gptoss, llama3, qwen3
from train.model.converter import SiteConverter
from train.model.experts import EXPERT_ENDS
from train.model.scale import Family
from train.model.scales import LLAMA3_VOCABULARY, Scale, get_scale
from train.model.sites import plain_attention_config

_PLAIN: dict[Family, Callable[..., Any]] = {
    "llama3": llama3.plain_config,
    "qwen3": qwen3.plain_config,
    "deepseek": deepseek.plain_config,
    "gptoss": gptoss.plain_config,
}


def plain_model_config(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> Any:
    """torchtitan's own configuration of the model.

    Args:
        scale, vocab_size: of the model.
        fuse_qkv: q, k and v are products with one weight.

    Raises:
        ValueError: the model cannot fuse them.
    """
    return _PLAIN[scale.family](scale, vocab_size, fuse_qkv=fuse_qkv)


def model_config(scale: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> Any:
    """The model's configuration, with the sites marked that grow when its width is doubled.

    Args, Raises: as `plain_model_config`.
    """
    other = plain_model_config(scale.widened(), vocab_size, fuse_qkv=fuse_qkv)
    converter = SiteConverter.Config(other=other).build()
    config = converter.convert(plain_model_config(scale, vocab_size, fuse_qkv=fuse_qkv))
    check_all_marked(config, other)
    return config


def check_all_marked(config: Any, other: Any) -> None:
    """Check that every matrix that grows with width is a site, in the first and the last block.

    Args:
        config: marked.
        other: torchtitan's own configuration at another width.

    Raises:
        ValueError: one line that names the matrices that are none.
    """
    with torch.device("meta"):
        model, wide = (
            replace(c, layers=[c.layers[0], c.layers[-1]]).build() for c in (config, other)
        )
    sites = find_sites(model).values()
    known = {id(tensor) for site in sites for tensor in (site.weight, bias_of(site))}
    shapes = {name: parameter.shape for name, parameter in wide.named_parameters()}
    unmarked = [
        name
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in known and parameter.shape != shapes[name]
    ]
    if unmarked:
        raise ValueError(
            f"{', '.join(unmarked)}: grows with the width of the model, and is the weight of no "
            "Linear, Embedding or GroupedExperts of torchtitan, so its layer type is not known; "
            "let train/model/converter.py mark it"
        )


def without_masks(config: Any, seq_len: int) -> Any:
    """A copy of a marked configuration whose attention needs no masks, for short sequences."""
    config = copy.deepcopy(config)
    for layer in config.layers:
        attention = layer.attention
        attention.inner_attention = plain_attention_config(
            attention.inner_attention,
            sinks=isinstance(config, GptOssModel.Config),
            window=getattr(attention, "sliding_window_size", None),
        )
        attention.rope = replace(attention.rope, max_seq_len=seq_len)
    return config


def site_graph(config: Any) -> Graph:
    """The graph of the sites, traced on the meta device; the attention kernel does not matter."""
    config = without_masks(config, seq_len=8)
    with torch.device("meta"), _without_autocast():
        return trace(config.build(), torch.zeros(1, 8, dtype=torch.long))


@contextlib.contextmanager
def _without_autocast() -> Iterator[None]:
    """Let routers compute on the meta device, which autocast does not know."""
    autocast: Any = torch.autocast
    torch.autocast = lambda *_, **__: contextlib.nullcontext()  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


BRANCH_ENDS = ("attention.wo", "feed_forward.w2")
"""The sites that end a residual branch of a model without experts."""


def branch_ends(config: Any) -> list[str]:
    """The sites that end a residual branch, by the ends of their names."""
    ends = [BRANCH_ENDS[0]]
    if any(layer.feed_forward is not None for layer in config.layers):
        ends.append(BRANCH_ENDS[1])
    for layer in config.layers:
        if layer.moe is not None:
            sites = layer.moe.routed_experts.inner_experts.sites
            ends += [f"inner_experts.{name}" for name in EXPERT_ENDS if name in sites]
            ends += ["shared_experts.w2"] if layer.moe.shared_experts is not None else []
            break
    return ends


def fused_blocks(config: Any) -> dict[str, list[int]]:
    """The rows of q, k and v in the fused weights of a model, by the end of the site's name.

    The weight has the queries of each key head, then the key, then the value.
    """
    blocks = {}
    for _, qkv, _, _ in config.traverse(FusedQKVLinear.Config):
        queries = qkv.n_heads // qkv.n_kv_heads * qkv.head_dim
        blocks["qkv_linear.wqkv"] = [queries, qkv.head_dim, qkv.head_dim] * qkv.n_kv_heads
    return blocks


def base_model(scale: Scale, base: Scale, vocab_size: int, *, fuse_qkv: bool = False) -> nn.Module:
    """A model of the base's widths and the scale's depth, on the meta device."""
    with torch.device("meta"):
        return model_config(base.at_depth_of(scale), vocab_size, fuse_qkv=fuse_qkv).build()


def decoder_graph(scale: str, vocab_size: int = LLAMA3_VOCABULARY) -> Graph:
    """The graph of a scale's sites."""
    return site_graph(model_config(get_scale(scale), vocab_size))
