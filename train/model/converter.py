"""Marks the sites of a LLaMA-3 configuration, as torchtitan's LoRA converter replaces layers."""

from dataclasses import dataclass
from typing import Any

from torchtitan.models.common.attention import GQAttention, QKVLinear
from torchtitan.models.common.embedding import Embedding
from torchtitan.models.common.linear import Linear
from torchtitan.protocols.model import ModelConfigConverter
from torchtitan.protocols.module import Module

from maxp.module import LayerType
from train.model.sites import attention_site_config, weighted_site_config

# Layers at the ends of a torchtitan decoder, by field name; all others are hidden.
_ENDS: dict[str, LayerType] = {"tok_embeddings": "embedding", "lm_head": "readout"}


class SiteConverter(ModelConfigConverter):
    """Makes every linear layer, the embedding and QK^T of a decoder a `maxp.Site`.

    Parameter names stay torchtitan's, so sharding plans, checkpoints and the Hugging Face adapter
    keep working.

    Raises:
        ValueError: fused q, k and v projections, or tied embeddings: each needs its own learning
            rate.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ModelConfigConverter.Config):
        pass

    def __init__(self, config: Config) -> None:
        self.config = config

    def convert(self, model_config: Module.Config) -> Module.Config:
        if getattr(model_config, "enable_weight_tying", False):
            raise ValueError(
                "tied embeddings: embedding and head need separate learning rates; untie them"
            )
        linears = list(model_config.traverse((Linear.Config, Embedding.Config)))
        for name, layer, parent, attribute in linears:
            kind: LayerType = _ENDS.get(name, "hidden")
            width = layer.embedding_dim if kind == "embedding" else layer.in_features
            _replace(parent, attribute, weighted_site_config(layer, width, kind))
        for name, attention, _, _ in list(model_config.traverse(GQAttention.Config)):
            if not isinstance(attention.qkv_linear, QKVLinear.Config):
                raise ValueError(
                    f"{name}: q, k and v are fused; build the model with fuse_qkv=False"
                )
            head_dim = attention.head_dim or attention.dim // attention.n_heads
            attention.inner_attention = attention_site_config(attention.inner_attention, head_dim)
        return model_config


def _replace(parent: Any, attribute: str | int, value: Module.Config) -> None:
    if isinstance(attribute, int):
        parent[attribute] = value
    else:
        setattr(parent, attribute, value)
