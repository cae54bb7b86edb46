"""A site: a width-sensitive operation ``y = n^-a * op(z)`` of a model, marked where it stands.

Source: abc-parametrization, Everett et al. 2024 (arXiv 2407.05872), section 2.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import nn

LayerType = Literal["embedding", "hidden", "readout"]
LAYER_TYPES: tuple[str, ...] = get_args(LayerType)

# muP's (a, b) by layer type: what a site has unless told otherwise.
MUP_AB: dict[str, tuple[float, float]] = {
    "embedding": (-0.5, 0.5),
    "hidden": (0.0, 0.5),
    "readout": (0.5, 0.5),
}


class Site:
    """What the library reads off a site; mix it into a module class, or use `ParametrizedModule`.

    Attributes:
        width_dim: n, the dimension of the operation that grows with the model's width.
        layer_type: ``"embedding"`` (only the fan-out grows), ``"hidden"`` (both grow) or
            ``"readout"`` (only the fan-in grows).
        a, b, c: exponents given at this site, or None to leave them to `Parametrization`.
        scale: the output multiplier ``n^-a``; set by `mark`, and again by `Parametrization`.
        weight: the parameter of the operation, or None where it has none.
    """

    width_dim: int
    layer_type: LayerType
    a: float | None
    b: float | None
    c: float | None
    scale: float
    weight: Any

    def mark(
        self,
        width_dim: int,
        layer_type: LayerType = "hidden",
        a: float | None = None,
        b: float | None = None,
        c: float | None = None,
    ) -> None:
        """Make this module a site.

        Raises:
            ValueError: an unknown ``layer_type``, or a ``width_dim`` under 2 (no exponent can be
                read off a width of 1).
        """
        if layer_type not in LAYER_TYPES:
            raise ValueError(
                f"layer_type must be one of {', '.join(LAYER_TYPES)}, got {layer_type!r}"
            )
        if width_dim < 2:
            raise ValueError(f"width_dim must be at least 2, got {width_dim}")
        self.width_dim, self.layer_type = width_dim, layer_type
        self.a, self.b, self.c = a, b, c
        self.set_a(MUP_AB[layer_type][0] if a is None else a)

    def set_a(self, a: float) -> None:
        """Set the output multiplier to ``n^-a``."""
        self.scale = self.width_dim**-a

    def site_operands(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        """The tensors that the operation contracts, out of a call's arguments.

        One for an operation with a weight, of shape (..., fan_in); two for one without.
        """
        tensors = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        return tensors[:1] if self.weight is not None else tensors[:2]

    def site_layout(self, operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The two operands of an operation without a weight as (..., tokens, width_dim).

        Override where the operation takes them laid out in another way.
        """
        return operands


class ParametrizedModule(Site, nn.Module):
    """Wraps a module, or a bare callable, as a site: ``forward`` returns ``scale * op(*args)``.

    Args:
        module_or_fn: a module with a ``weight`` of shape (fan_out, fan_in, ...), or (rows, width)
            for an embedding table; or a callable without parameters that contracts its first two
            arguments over their last dimension, such as ``lambda q, k: q @ k.T``, a ``"readout"``
            of width head_dim (a = 1/2 is the usual ``1/sqrt(head_dim)``). Tensor arguments
            after these two are taken to be mixed into the result (the values of an attention).
        width_dim: n, the width that the exponents refer to.
        layer_type: ``"embedding"``, ``"hidden"`` or ``"readout"``.
        a, b, c: exponents of this site; None leaves them to `Parametrization`.

    Raises:
        ValueError: an unknown ``layer_type``, or ``width_dim`` under 2.
        TypeError: a module without a ``weight``, or something that cannot be called.
    """

    def __init__(
        self,
        module_or_fn: nn.Module | Callable[..., torch.Tensor],
        width_dim: int,
        layer_type: LayerType = "hidden",
        a: float | None = None,
        b: float | None = None,
        c: float | None = None,
    ) -> None:
        super().__init__()
        if isinstance(module_or_fn, nn.Module):
            if not isinstance(getattr(module_or_fn, "weight", None), torch.Tensor):
                raise TypeError(
                    f"{type(module_or_fn).__name__} has no weight; wrap the layer that has one, "
                    "or pass a bare callable for an operation without parameters"
                )
        elif not callable(module_or_fn):
            raise TypeError(f"expected a module or a callable, got {type(module_or_fn).__name__}")
        self.op = module_or_fn
        self.mark(width_dim, layer_type, a, b, c)

    @property
    def weight(self) -> torch.Tensor | None:
        """The wrapped module's weight; None for a callable."""
        weight = getattr(self.op, "weight", None) if isinstance(self.op, nn.Module) else None
        return weight if isinstance(weight, torch.Tensor) else None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = self.op(*args, **kwargs)
        return out if self.scale == 1.0 else self.scale * out

    def extra_repr(self) -> str:
        return f"width_dim={self.width_dim}, layer_type={self.layer_type}, scale={self.scale:.4g}"


def bias_of(site: Site) -> torch.Tensor | None:
    """The bias of a site's operation; None where it has none."""
    bias = getattr(getattr(site, "op", site), "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


# Segments that wrappers (activation checkpointing, torch.compile) put into a module's name.
_WRAPPERS = frozenset({"_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"})


def find_sites(model: nn.Module) -> dict[str, Site]:
    """The sites of a model by module name, in order of definition, wrappers' segments left out.

    Raises:
        ValueError: two sites share one weight, which can have only one learning rate.
    """
    sites: dict[str, Site] = {}
    owner: dict[int, str] = {}
    for path, module in model.named_modules():
        if not isinstance(module, Site):
            continue
        name = ".".join(part for part in path.split(".") if part not in _WRAPPERS)
        weight = module.weight
        if weight is not None and owner.setdefault(id(weight), name) != name:
            raise ValueError(
                f"{name} and {owner[id(weight)]} share one weight; untie them, since a weight can "
                "have only one learning rate"
            )
        sites[name] = module
    return sites
