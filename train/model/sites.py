"""A decoder's operations as sites: torchtitan's modules with a multiplier and the same names.

Each class is derived from the class that the model is configured with, as in torchtitan's
`components/lora.py`, so that it works with any of them (another attention, for example).
"""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch.distributed.tensor import DTensor, Shard
from torchtitan.distributed.spmd_types import current_spmd_mesh, spmd_mesh_size
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.protocols.module import Module

from maxp.module import LayerType, Site
from train.model.inner_attention import WindowAttention


@cache
def weighted_site_class(parent: Any, is_tied: bool = False) -> type:
    """A `Linear` or `Embedding` class whose output is multiplied by ``scale``.

    Args:
        parent: the class.
        is_tied: its weight is that of an earlier site.
    """

    class WeightedSite(Site, parent):
        tied = is_tied

        @dataclass(kw_only=True, slots=True)
        class Config(parent.Config):
            width_dim: int
            layer_type: str

        def __init__(self, config: Any) -> None:
            parent.__init__(self, config)
            self.mark(config.width_dim, config.layer_type)
            # Multiply the smaller side of the product: the logits have many more entries than the
            # head's input.
            out, into = self.weight.shape
            self._scales_input = config.layer_type == "readout" and self.bias is None and into < out

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            if self.scale == 1.0:
                return parent.forward(self, input)
            if self._scales_input:
                return parent.forward(self, input * self.scale)
            return parent.forward(self, input) * self.scale

    return _renamed(WeightedSite, parent)


@cache
def attention_site_class(parent: Any) -> type:
    """An inner attention whose ``scale`` argument is the multiplier of QK^T, n = head_dim.

    A model's own scale, such as YaRN's, is multiplied by what the multiplier adds to 1/sqrt(n).
    """

    class AttentionSite(Site, parent):
        @dataclass(kw_only=True, slots=True)
        class Config(parent.Config):
            head_dim: int

        weight = None

        def __init__(self, config: Any) -> None:
            parent.__init__(self, config)
            # The usual 1/sqrt(head_dim); a parametrization's a for readouts does not apply.
            self.mark(config.head_dim, "readout", a=0.5)

        # Sharding plans use the names of these arguments.
        def forward(self, q_BLNH: Any, k_BLNH: Any, v_BLNH: Any, **kwargs: Any) -> Any:
            own = kwargs.get("scale")
            usual = self.width_dim**-0.5
            kwargs["scale"] = self.scale if own in (None, usual) else own * (self.scale / usual)
            return parent.forward(self, q_BLNH, k_BLNH, v_BLNH, **kwargs)

        def site_layout(self, operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            """(batch, tokens, heads, head_dim) as (batch, heads, tokens, head_dim)."""
            q, k = (x.transpose(1, 2) for x in operands)
            # Grouped queries: each key head serves several query heads.
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
            return _sharded_heads(q), _sharded_heads(k)

    return _renamed(AttentionSite, parent)


def _sharded_heads(x: torch.Tensor) -> torch.Tensor:
    """This rank's heads, (batch, heads, tokens, head_dim), as the DTensor that they are a part of.

    Under torchtitan's ``spmd_types`` backend, tensor parallelism passes them as plain tensors.
    """
    mesh = current_spmd_mesh()
    if mesh is None or spmd_mesh_size("tp") == 1:
        return x
    return DTensor.from_local(x, mesh["tp"], [Shard(1)], run_check=False)


def _renamed(cls: type, parent: type) -> type:
    cls.__name__ = f"Parametrized{parent.__name__}"
    cls.__qualname__ = cls.__name__
    return cls


def weighted_site_config(
    config: Module.Config, width_dim: int, layer_type: LayerType, *, tied: bool = False
) -> Module.Config:
    """``config`` for the same layer as a site; `maxp.Parametrization` draws its weight.

    Args:
        config: of the layer.
        width_dim, layer_type: of the site.
        tied: its weight is that of an earlier site.
    """
    values = config_values(config)
    values["param_init"] = {**(config.param_init or {}), "weight": skip_param_init}
    cls: Any = weighted_site_class(config._owner, tied)
    return cls.Config(**values, width_dim=width_dim, layer_type=layer_type)


def attention_site_config(config: Module.Config, head_dim: int) -> Module.Config:
    """``config`` for the same inner attention as the site QK^T."""
    cls: Any = attention_site_class(config._owner)
    return cls.Config(**config_values(config), head_dim=head_dim)


def plain_attention_config(
    config: Any, *, sinks: bool = False, window: int | None = None
) -> Module.Config:
    """The same site on an attention that needs no masks: for tracing.

    Args:
        config: of the site.
        sinks: the model has sinks.
        window: how many positions a query sees; None is all before it.
    """
    if sinks:
        cls: Any = attention_site_class(WindowAttention)
        return cls.Config(head_dim=config.head_dim, window=window)
    cls = attention_site_class(ScaledDotProductAttention)
    return cls.Config(head_dim=config.head_dim)


def config_values(config: Any) -> dict[str, Any]:
    """The arguments with which a configuration was made."""
    return {f.name: getattr(config, f.name) for f in fields(config) if f.init}
