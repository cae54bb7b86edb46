"""The plan of `maxp.mark`: which weights of a model become sites, and what each other one is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from maxp.module import MUP_AB, LayerType, Site, plain_name
from maxp.sites import mark_module, mark_parameter


@dataclass(frozen=True)
class MarkedWeight:
    """A weight that a plan makes a site.

    Attributes:
        name: of the site.
        module: the name of its module.
        parameter: its name in that module.
        layer_type: as in `maxp.Site`.
        n: its width in the model.
        n_base: its width in the base.
        std_base: the standard deviation of its entries in the base: their root mean square if the
            base has values, or else the usual one.
        has_multiplier: the module's class gets a multiplier. If not, the multiplier is always 1.
        is_called: training calls the module, so that its input can be observed.
        tied_to: the site with which it shares its weight.
        fixed_out: its fan-out does not grow.
        keeps_bias: the bias beside it was set on purpose in the base, so it is not zeroed.
    """

    name: str
    module: str
    parameter: str
    layer_type: LayerType
    shape: tuple[int, ...]
    n: int
    n_base: int
    std_base: float
    has_multiplier: bool
    is_called: bool
    tied_to: str | None
    fixed_out: bool
    keeps_bias: bool


@dataclass
class Plan:
    """What `mark` finds in a model. ``print(plan)`` shows it as a table.

    Attributes:
        model: the model.
        weights: the sites, in order of definition.
        others: why each other parameter is no site, by the parameter's name.
        parametrization: what the plan has become part of; the table then shows its c, lr and std.
    """

    model: nn.Module
    weights: list[MarkedWeight]
    others: dict[str, str]
    parametrization: Any = field(default=None, repr=False)

    @property
    def widths(self) -> dict[str, int]:
        """n_base by site."""
        return {w.name: w.n_base for w in self.weights}

    @property
    def stds(self) -> dict[str, float]:
        """The standard deviation of the base's weights by site; of a tied weight, the smaller."""
        stds: dict[str, float] = {}
        for w in self.weights:
            owner = w.tied_to or w.name
            stds[owner] = min(w.std_base, stds.get(owner, w.std_base))
        return {w.name: stds[w.tied_to or w.name] for w in self.weights}

    def apply(self) -> None:
        """Mark the model's sites in place. Modules, attributes and parameters keep their names.

        Outputs change only when `Parametrization` sets the multipliers.
        """
        for weight in self.weights:
            module = self.model.get_submodule(weight.module)
            if not weight.is_called:
                mark_parameter(module, weight.parameter, weight.n, weight.layer_type)
            elif not isinstance(module, Site):
                fixed = {} if weight.has_multiplier else {"fixed_scale": True}
                tied = {} if weight.tied_to is None else {"tied": True}
                mark_module(module, weight.n, weight.layer_type, **fixed, **tied)

    def __str__(self) -> str:
        p = self.parametrization
        heads = ["site", "type", "shape", "n", "n_base", "a", "b"]
        rows = []
        lr_of = {} if p is None else p.lrs()
        for w in self.weights:
            a, b = _ab(w) if p is None else (p._exponents[w.name].a, p._exponents[w.name].b)
            row = [w.name, w.layer_type, "x".join(map(str, w.shape)), str(w.n), str(w.n_base)]
            row += [f"{a:g}", f"{b:g}"]
            if p is not None:
                owner = w.tied_to or w.name
                c, lr = p.c.get(owner), lr_of.get(owner)
                row += ["frozen" if c is None else f"{c:.3g}", "-" if lr is None else f"{lr:.3g}"]
                row += [f"{p._stds[owner]:.3g}" if owner in p._stds else "-"]
            notes = [f"tied to {w.tied_to}"] if w.tied_to else []
            notes += [] if w.has_multiplier else ["multiplier 1"]
            notes += ["keeps its bias"] if w.keeps_bias else []
            rows.append([*row, ", ".join(notes)])
        heads += [] if p is None else ["c", "lr", "std"]
        lines = _columns([[*heads, ""], *rows])
        if self.others:
            lrs = {} if p is None else _lrs(self.model, p._param_groups)
            others = [[name, why, lrs.get(name, "")] for name, why in self.others.items()]
            lines += ["", *_columns([["no site", "", "" if p is None else "lr"], *others])]
        return "\n".join(lines)


def _ab(weight: MarkedWeight) -> tuple[float, float]:
    a, b = MUP_AB[weight.layer_type]
    return (a, b) if weight.has_multiplier else (0.0, a + b)


def _lrs(model: nn.Module, groups: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The learning rate of each parameter, by its name."""
    lrs = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
    return {
        name: f"{lrs[id(p)]:.3g}" for name, p in named_parameters(model).items() if id(p) in lrs
    }


def _columns(rows: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]


def named_parameters(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name; a tied weight under each of its names."""
    named = model.named_parameters(remove_duplicate=False)
    return {plain_name(name): parameter for name, parameter in named}
