"""Turns a module of any model into a site, in place, and back.

A marked module keeps its identity, its attributes and the names of its parameters. Only its class
changes, to a subclass of itself with the `Site` mix-in, as `torch.distributed.fsdp.fully_shard`
does. A parameter that no module of its own uses, such as a position embedding, a class token or
the weights of an expert, becomes a `ParameterSite`, which has no multiplier.
"""

from functools import cache
from typing import Any

import torch
from torch import nn

from maxp.module import LayerType, ScaleInState, Site


class MarkedSite(ScaleInState, Site):
    """The mix-in of a marked module: its output is multiplied by ``scale``.

    Its state dict has the keys of a plain module.

    Attributes:
        plain_class: the module's class before it was marked.
    """

    plain_class: type

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward  # type: ignore[misc]
        if self.scale == 1.0:
            return forward(*args, **kwargs)
        if args and self._scales_input():
            # The logits have many more entries than the head's input.
            return forward(args[0] * self.scale, *args[1:], **kwargs)
        return forward(*args, **kwargs) * self.scale

    def _scales_input(self) -> bool:
        """Whether the input is the smaller side of the product."""
        if not (self.layer_type == "readout" and isinstance(self, nn.Linear)):
            return False
        return self.bias is None and self.in_features < self.out_features

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle the class by what it was made of."""
        return _rebuilt, (self.plain_class,), self.__getstate__()


@cache
def marked_class(parent: Any) -> type:
    """A subclass of a module class with the `Site` mix-in, of the same name."""
    members = {"__module__": parent.__module__, "__doc__": parent.__doc__, "plain_class": parent}
    return type(parent.__name__, (MarkedSite, parent), members)


def _rebuilt(parent: type) -> Any:
    cls: Any = marked_class(parent)
    return cls.__new__(cls)


class ParameterSite(Site):
    """A parameter that is a site by itself. Its multiplier is 1: `Site.fixed_scale`.

    Args:
        owner: the module that has the parameter.
        parameter: its name there.
        width_dim: n.
        layer_type: as in `Site`.
    """

    fixed_scale = True

    def __init__(
        self, owner: nn.Module, parameter: str, width_dim: int, layer_type: LayerType
    ) -> None:
        self.owner, self.parameter = owner, parameter
        self.mark(width_dim, layer_type)

    @property
    def weight(self) -> torch.Tensor:
        return getattr(self.owner, self.parameter)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the same operation, by the usual names."""
        name = self.parameter
        names = (f"{name}_bias", name.replace("weight", "bias"))
        found = [getattr(self.owner, n, None) for n in names if n != name]
        return next((b for b in found if isinstance(b, torch.Tensor)), None)


def mark_module(module: nn.Module, width_dim: int, layer_type: LayerType, **kwargs: Any) -> None:
    """Make a module a site in place, with the multiplier 1; `unmark` reverses it."""
    parent: Any = type(module)
    module.__class__ = marked_class(parent)
    assert isinstance(module, MarkedSite)
    for name, value in kwargs.items():
        setattr(module, name, value)
    module.mark(width_dim, layer_type)
    module.scale = 1.0


def mark_parameter(owner: nn.Module, parameter: str, width_dim: int, layer_type: LayerType) -> None:
    """Make a parameter a site of its own; `unmark` of its module reverses it."""
    sites = owner.__dict__.setdefault("parameter_sites", [])
    sites.append(ParameterSite(owner, parameter, width_dim, layer_type))


def unmark(module: nn.Module) -> None:
    """Make a marked module an ordinary one again. Its weight is left as it is.

    A class that was derived after marking, such as FSDP2's, is kept.
    """
    module.__dict__.pop("parameter_sites", None)
    if isinstance(module, MarkedSite) and type(module) is marked_class(module.plain_class):
        module.__class__ = module.plain_class
        for name in ("width_dim", "layer_type", "a", "b", "c", "scale", "fixed_scale", "tied"):
            module.__dict__.pop(name, None)
