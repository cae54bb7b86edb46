"""``[axes]`` of a sweep file: flags of ``python -m train`` with several values each.

    [axes]
    maxp.solve_interval = [1, 10]
    "maxp.lr_multipliers.embedding" = [0.3, 1, 3]

Every combination of values is an axis point: all runs of the sweep are done at each.
"""

import hashlib
import re
from collections.abc import Collection, Mapping
from itertools import product
from typing import Any

from slurm.config_file import ConfigError, check_unique
from slurm.flags import Flag, Flags, leaves, read_flags
from train.results.names import short_names, value_text

Axes = dict[str, list[Flag]]

_UNSAFE = re.compile(r"[^A-Za-z0-9.+-]")
_LONGEST = 40  # characters of a value in a run's name


def read_axes(table: Mapping[str, Any], where: str) -> Axes:
    """The values of each axis by the flag's name.

    Args:
        where: the file and table, with which messages begin.

    Raises:
        ConfigError: as `read_flags`; or an axis is no list, is empty, or holds a value twice.
    """
    axes: Axes = {}
    for written, values in leaves(table):
        key = f"{where}.{written}"
        if not isinstance(values, list):
            raise ConfigError(f"{key}: {values}: write a list of values, such as [0.3, 1, 3]")
        if any(isinstance(value, Mapping) for value in values):
            raise ConfigError(f"{key}: holds a table: write text, numbers, true or lists")
        flags = [read_flags({written: value}, where) for value in values]
        try:
            check_unique((value_text(value) for one in flags for value in one.values()), key)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        name = next(iter(flags[0]))
        if name in axes:
            raise ConfigError(f"{key}: is there twice: remove one")
        axes[name] = values
    return axes


def check_free(axes: Collection[str], flags: Collection[str], table: str, where: str) -> None:
    """Refuse an axis that ``flags`` set as well.

    Raises:
        ConfigError: names the axis and the table of the flags.
    """
    for name in axes:
        if name in flags:
            raise ConfigError(f"{where}: axes.{name}: [{table}] sets it too: remove one")


def combinations(axes: Mapping[str, list[Flag]]) -> list[Flags]:
    """Every combination of the axes' values; one empty combination without axes."""
    return [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]


def suffix(combination: Mapping[str, Flag]) -> str:
    """End of a run's name: ``_embedding0.3_max_norm1``; empty without axes.

    Each axis is the last part of the flag's name, or the whole name where two axes end alike. A
    value with other characters than letters, digits and . + - is shortened and gets six digits of
    its hash.
    """
    names = short_names(combination)
    return "".join(f"_{names[name]}{_file_text(value)}" for name, value in combination.items())


def _file_text(value: Flag) -> str:
    text = value_text(value)
    safe = _UNSAFE.sub("-", text)[:_LONGEST]
    return safe if safe == text else f"{safe}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
