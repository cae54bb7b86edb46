"""Marks the sites of a decoder's configuration, as torchtitan's LoRA converter replaces layers."""

from dataclasses import dataclass
from typing import Any

from torchtitan.models.common.attention import BaseAttention
from torchtitan.models.common.embedding import Embedding
from torchtitan.models.common.linear import Linear
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.protocols.model import ModelConfigConverter
from torchtitan.protocols.module import Module

from maxp.module import LayerType
from train.model.experts import expert_shapes, experts_site_config
from train.model.sites import attention_site_config, weighted_site_config

# The layers whose outputs are logits: of the words, and of the experts.
_LOGITS = ("lm_head", "router.gate")


class SiteConverter(ModelConfigConverter):
    """Makes the layers of a decoder whose sizes grow with width, and QK^T, sites of maxp.

    What grows is found by comparison with the same model at another width. Parameter names stay
    torchtitan's, so sharding plans, checkpoints and the Hugging Face adapter keep working.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        other: Any
        """The configuration of the same model at another width."""

    def __init__(self, config: Config) -> None:
        self.config = config

    def convert(self, model_config: Any) -> Module.Config:
        """``model_config`` with its sites marked, in place.

        Raises:
            ValueError: the model at the other width has other layers.
        """
        tied = getattr(model_config, "enable_weight_tying", False)
        for kind in ((Linear.Config, Embedding.Config), GroupedExperts.Config):
            others = {name: c for name, c, *_ in self.config.other.traverse(kind)}
            for name, layer, parent, attribute in list(model_config.traverse(kind)):
                if name not in others:
                    raise ValueError(f"{name}: not in the model at the other width")
                if isinstance(layer, GroupedExperts.Config):
                    site = _experts(layer, others[name])
                else:
                    site = _layer(name, layer, others[name], tied=tied)
                _replace(parent, attribute, site)
        for _, attention, _, _ in list(model_config.traverse(BaseAttention.Config)):
            attention.inner_attention = attention_site_config(
                attention.inner_attention, head_dim(attention)
            )
        return model_config


def layer_type(one: tuple[int, int], other: tuple[int, int], *, logits: bool) -> LayerType | None:
    """The type of a matrix from its shapes (out, in) at two widths; None if they are equal.

    A layer in which only the fan-in grows is a readout if its outputs are logits. Otherwise its
    output has size one at init, as that of a hidden layer (docs/theory.md, "Other decoders").
    """
    grows_out, grows_in = (a != b for a, b in zip(one, other, strict=True))
    if grows_in:
        return "readout" if logits and not grows_out else "hidden"
    return "embedding" if grows_out else None


def head_dim(attention: Any) -> int:
    """The number of entries that q k sums over, in the configuration of any attention."""
    if hasattr(attention, "qk_nope_head_dim"):
        return int(attention.qk_nope_head_dim + attention.qk_rope_head_dim)
    return int(attention.head_dim or attention.dim // attention.n_heads)


def _layer(name: str, layer: Any, other: Any, *, tied: bool) -> Module.Config:
    kind = layer_type(_shape(layer), _shape(other), logits=name.endswith(_LOGITS))
    if kind is None:
        return layer
    width = _shape(layer)[0 if kind == "embedding" else 1]
    return weighted_site_config(layer, width, kind, tied=tied and name == "lm_head")


def _shape(layer: Any) -> tuple[int, int]:
    """(out, in) of a layer; the input of an embedding is a word."""
    if isinstance(layer, Embedding.Config):
        return layer.embedding_dim, layer.num_embeddings
    return layer.out_features, layer.in_features


def _experts(experts: Any, other: Any) -> Module.Config:
    others, sites = expert_shapes(other), {}
    for name, shape in expert_shapes(experts).items():
        kind = layer_type(shape, others[name], logits=False)
        if kind is not None:
            sites[name] = (shape[0 if kind == "embedding" else 1], kind)
    return experts_site_config(experts, sites)


def _replace(parent: Any, attribute: str | int, value: Module.Config) -> None:
    if isinstance(attribute, int):
        parent[attribute] = value
    else:
        setattr(parent, attribute, value)
