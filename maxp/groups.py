"""Param groups: one per site, one per bias with a learning rate of its own, one for the rest."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

import torch


def group_name(name: str, sites: Container[str]) -> str:
    """The name of a param group that is no site's: ``name``, or ``.name`` where a site has it.

    The name of a module never starts with a dot, so group names are unique.

    Args:
        name: ``"rest"``, or ``"SITE.bias"``.
        sites: the names of the sites.
    """
    return f".{name}" if name in sites else name


def split_group(
    group: Mapping[str, Any], own: Mapping[str, torch.Tensor], rest: str
) -> list[dict[str, Any]]:
    """Split a param group: one group per parameter of ``own``, and a last one for the others.

    Args:
        group: as optimizers take it: ``params``, maybe ``param_names`` (one per parameter), and
            settings, which every new group keeps.
        own: the parameters with a learning rate of their own, by group name
            (`Parametrization.own_parameters`). Those that ``group`` does not hold are left out.
        rest: the name of the last group (`Parametrization.rest`).

    Returns:
        The groups, each with its ``name``: those of ``own`` in its order, then the rest, which is
        left out where it is empty.
    """
    name_of = {id(parameter): name for name, parameter in own.items()}
    members: dict[str, list[int]] = {name: [] for name in (*own, rest)}
    for i, parameter in enumerate(group["params"]):
        members[name_of.get(id(parameter), rest)].append(i)
    lists = [key for key in ("params", "param_names") if key in group]
    return [
        {**group, **{key: [group[key][i] for i in indices] for key in lists}, "name": name}
        for name, indices in members.items()
        if indices
    ]


def set_lrs(groups: Iterable[dict[str, Any]], lrs: Mapping[str, float]) -> None:
    """Write the learning rates into the groups of the same names; others keep theirs."""
    for group in groups:
        if group.get("name") in lrs:
            group["lr"] = lrs[group["name"]]
