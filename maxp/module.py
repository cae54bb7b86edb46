"""A site: an operation ``y = n^-a * op(z)`` of a model whose size depends on the width n.

Source: abc-parametrization, Everett et al. 2024 (arXiv 2407.05872), section 2.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import nn

LayerType = Literal["embedding", "hidden", "readout"]
LAYER_TYPES: tuple[str, ...] = get_args(LayerType)

# muP's (a, b) by layer type, the default of every site.
MUP_AB: dict[str, tuple[float, float]] = {
    "embedding": (-0.5, 0.5),
    "hidden": (0.0, 0.5),
    "readout": (0.5, 0.5),
}


class Site:
    """The interface of a site. Mix it into a module class, or use `ParametrizedModule`.

    Attributes:
        width_dim: n, the fan-in: the dimension that the operation sums over and that grows with
            the model's width. Of an embedding it is the fan-out, the only dimension that grows.
        layer_type: ``"embedding"`` (only the fan-out grows), ``"hidden"`` (both grow) or
            ``"readout"`` (only the fan-in grows).
        a: exponent of the multiplier set at this site; None leaves it to `Parametrization`.
        b: the same, for the initial weight.
        c: the same, for the learning rate.
        scale: the output multiplier ``n^-a``, which `mark` and `Parametrization` set.
        weight: the parameter of the operation, or None if it has none.
        fixed_scale: no multiplier can be applied, so ``scale`` is always 1: (a, b, c) becomes
            (0, a + b, c + a), which is the same model with Adam.
        tied: the weight is that of an earlier site, on purpose; it then has one c for both.
    """

    fixed_scale: bool = False
    tied: bool = False

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
            ValueError: an unknown ``layer_type``, or a ``width_dim`` less than 2, since a width of
                1 has no exponent.
        """
        if layer_type not in LAYER_TYPES:
            raise ValueError(
                f"layer_type must be one of {', '.join(LAYER_TYPES)}, got {layer_type!r}"
            )
        if not isinstance(width_dim, int):
            raise ValueError(f"width_dim must be a whole number, got {width_dim}")
        if width_dim < 2:
            raise ValueError(f"width_dim must be at least 2, got {width_dim}")
        self.width_dim, self.layer_type = width_dim, layer_type
        self.a, self.b, self.c = a, b, c
        self.set_a(MUP_AB[layer_type][0] if a is None else a)

    def set_a(self, a: float) -> None:
        """Set the output multiplier to ``n^-a``."""
        self.scale = 1.0 if self.fixed_scale else self.width_dim**-a

    def site_operands(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, ...]:
        """The arguments of a call that the operation contracts.

        They are one tensor, (..., fan_in), for an operation with a weight, and two for one without.
        Plain tensors are the same on every rank; a part of a tensor is given as a DTensor.
        """
        tensors = tuple(t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor))
        return tensors[:1] if self.weight is not None else tensors[:2]

    def site_layout(self, operands: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """The two operands of an operation without a weight as (..., tokens, width_dim).

        Override it if the operation takes another layout.
        """
        return operands


class ScaleInState:
    """A site whose multiplier travels with its state dict, in the metadata of the module.

    Other models ignore the metadata, so they can load the state. A state without it loads as it is.
    """

    scale: float

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        if hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {})["multiplier"] = self.scale

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: dict[str, Any], *args: Any
    ) -> None:
        saved = metadata.get("multiplier", self.scale)
        if abs(saved - self.scale) > 1e-6 * abs(self.scale):
            errors = args[-1]
            errors.append(
                f"{prefix[:-1]}: its weight was saved with the multiplier {saved:.6g}, and has "
                f"{self.scale:.6g} here; build Parametrization with the same base and ab_overrides"
            )
        super()._load_from_state_dict(state, prefix, metadata, *args)  # type: ignore[misc]


class ParametrizedModule(ScaleInState, Site, nn.Module):
    """Wraps a module or a function as a site: ``forward`` returns ``scale * op(*args)``.

    Args:
        module_or_fn: a module with a ``weight`` of shape (fan_out, fan_in, ...), or (rows, width)
            for an embedding table; or a function without parameters that contracts its first two
            arguments over their last dimension, such as ``lambda q, k: q @ k.T``. That one is a
            ``"readout"`` of width head_dim; a = 1/2 gives the usual ``1/sqrt(head_dim)``. Further
            tensor arguments count as mixed into the result, like the values of an attention.
        width_dim: n, the fan-in: the dimension that the operation sums over and that grows with
            the model's width (``4 * n`` in a layer from ``4 * n`` to ``n``). Of an embedding it is
            the fan-out, the only dimension that grows.
        layer_type: ``"embedding"``, ``"hidden"`` or ``"readout"``.
        a: exponent of this site's multiplier; None leaves it to `Parametrization`.
        b: the same, for the initial weight.
        c: the same, for the learning rate.

    Raises:
        ValueError: an unknown ``layer_type``, or ``width_dim`` less than 2.
        TypeError: a module without a ``weight``, or an object that is not callable.
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
        """The wrapped module's weight; None for a function."""
        weight = getattr(self.op, "weight", None) if isinstance(self.op, nn.Module) else None
        return weight if isinstance(weight, torch.Tensor) else None

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        out = self.op(*args, **kwargs)
        return out if self.scale == 1.0 else self.scale * out

    def extra_repr(self) -> str:
        return f"width_dim={self.width_dim}, layer_type={self.layer_type}, scale={self.scale:.4g}"


def bias_of(site: Site) -> torch.Tensor | None:
    """The bias of a site's operation; None if it has none."""
    bias = getattr(getattr(site, "op", site), "bias", None)
    return bias if isinstance(bias, torch.Tensor) else None


# Parts that wrappers (activation checkpointing, torch.compile, FSDP) add to a module's name.
def few(names: Sequence[str], most: int = 8) -> str:
    """The first names, for a message."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


_WRAPPERS = frozenset({"_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module"})


def plain_name(path: str) -> str:
    """The name of a module or parameter without the parts that wrappers add."""
    return ".".join(part for part in path.split(".") if part not in _WRAPPERS)


def find_sites(model: nn.Module) -> dict[str, Site]:
    """The sites of a model by module name, without wrappers' parts, in order of definition.

    A parameter that is a site by itself has the parameter's name, without a last ``.weight``.

    Raises:
        ValueError: two sites share one weight, and the second is not marked as tied.
    """
    sites: dict[str, Site] = {}
    owner: dict[int, str] = {}
    for path, module in model.named_modules():
        name = plain_name(path)
        here = {name: module} if isinstance(module, Site) else {}
        for site in module.__dict__.get("parameter_sites", ()):
            here[site_name(f"{name}.{site.parameter}")] = site
        for name, site in here.items():
            weight = site.weight
            if weight is not None and owner.setdefault(id(weight), name) != name and not site.tied:
                raise ValueError(
                    f"{name} and {owner[id(weight)]} share one weight; untie them, since a weight "
                    "can have only one learning rate"
                )
        sites |= here
    return sites


def site_name(parameter: str) -> str:
    """The name of the site of a parameter, from the parameter's name in the model."""
    return parameter.removeprefix(".").removesuffix(".weight")


def weight_owners(sites: Mapping[str, Site]) -> dict[str, str]:
    """For each site whose weight is that of an earlier site, the name of the earlier one."""
    first: dict[int, str] = {}
    owners = {
        n: first.setdefault(id(s.weight), n) for n, s in sites.items() if s.weight is not None
    }
    return {name: owner for name, owner in owners.items() if owner != name}


def is_frozen(site: Site) -> bool:
    """Whether a site's weight is not trained."""
    return site.weight is not None and not site.weight.requires_grad
