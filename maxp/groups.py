"""Param groups: one per site, one per bias with a learning rate of its own, one for the rest."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from maxp.exponents import Exponents, OptimizerType
from maxp.module import Site, bias_of


def group_name(name: str, sites: Container[str]) -> str:
    """A unique name for a param group that is not a site's: ``name``, or ``.name`` if it is taken.

    A site's name never starts with a dot.

    Args:
        name: ``"rest"``, or ``"SITE.bias"``.
        sites: the names of the sites.
    """
    return f".{name}" if name in sites else name


def own_biases(
    sites: Mapping[str, Site], exponents: Mapping[str, Exponents], optimizer_type: OptimizerType
) -> dict[str, tuple[str, nn.Parameter]]:
    """(site, bias) by group name, for the biases that have a learning rate of their own.

    These are the biases with a c other than 0: with SGD all, with Adam those of sites whose
    multiplier is not 1.
    """
    return {
        group_name(f"{name}.bias", sites): (name, bias)
        for name, site in sites.items()
        if isinstance(bias := bias_of(site), nn.Parameter)
        and (exponents[name].a != 0 or optimizer_type == "sgd")
    }


def split_group(
    group: Mapping[str, Any], own: Mapping[str, torch.Tensor | Sequence[torch.Tensor]], rest: str
) -> list[dict[str, Any]]:
    """Split a param group: one group per entry of ``own``, and a last one for the others.

    Args:
        group: ``params``, optionally ``param_names`` (one per parameter), and settings, which every
            new group keeps.
        own: the parameter, or the parameters, of each group but the last, by group name
            (`Parametrization.own_parameters`). They may include parameters of other groups.
        rest: the name of the last group (`Parametrization.rest`).

    Returns:
        The groups, each with its ``name``, in the order of ``own`` and then the rest. Empty groups
        are left out.
    """
    name_of = {
        id(parameter): name
        for name, value in own.items()
        for parameter in ([value] if isinstance(value, torch.Tensor) else value)
    }
    members: dict[str, list[int]] = {name: [] for name in (*own, rest)}
    for i, parameter in enumerate(group["params"]):
        members[name_of.get(id(parameter), rest)].append(i)
    lists = [key for key in ("params", "param_names") if key in group]
    return [
        {**group, **{key: [group[key][i] for i in indices] for key in lists}, "name": name}
        for name, indices in members.items()
        if indices
    ]


def set_values(groups: Iterable[dict[str, Any]], values: Mapping[str, Mapping[str, Any]]) -> None:
    """Write each group's values, such as its ``lr``, into the group of the same name."""
    for group in groups:
        group.update(values.get(group.get("name", ""), {}))
