"""The order and the spelling of scales, methods and learning rates, for every output."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # slow to import, and not needed for the names alone
    import pandas as pd

Metric = Literal["validation", "train"]
Format = Literal["text", "markdown", "csv", "json", "latex"]

METHODS = ("maxP", "mup-full", "mup-no", "maxP-frozen", "sp")
"""Order of the columns; other methods follow alphabetically."""

_SHOWN = 3  # paths or messages listed in a note


def in_order(methods: Iterable[str]) -> list[str]:
    """The methods in the order of their columns."""
    rank = {method: position for position, method in enumerate(METHODS)}
    return sorted(methods, key=lambda method: (rank.get(method, len(rank)), method))


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which s2 precedes s10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def scales_in_order(runs: pd.DataFrame) -> list[str]:
    """The scales of ``runs``, smallest first: by parameters if all are known, else by name."""
    sizes = runs.dropna(subset=["scale"]).groupby("scale")["parameters"].max()
    scales = sorted(map(str, sizes.index), key=natural)
    return scales if sizes.isna().any() else sorted(scales, key=sizes.to_dict().__getitem__)


def lr_text(lr: float) -> str:
    """0.0003 -> "3e-4"; at most four digits."""
    digits, exponent = lr_parts(lr)
    return f"{digits}e{exponent}"


def lr_parts(lr: float) -> tuple[str, int]:
    """0.0003 -> ("3", -4)."""
    digits, exponent = f"{lr:.3e}".split("e")
    return digits.rstrip("0").rstrip("."), int(exponent)


def named(texts: pd.Series[str]) -> str:
    """Their number and the first few, for example "4 (a; b; c; ...)"."""
    shown = "; ".join(texts.iloc[:_SHOWN])
    return f"{len(texts)} ({shown}{'; ...' if len(texts) > _SHOWN else ''})"


def short_names(settings: Iterable[str]) -> dict[str, str]:
    """Dotted name -> its last part, or the whole name where two of ``settings`` end alike."""
    names = list(settings)
    counts = Counter(name.rpartition(".")[2] for name in names)
    return {name: last if counts[last := name.rpartition(".")[2]] == 1 else name for name in names}


def value_text(value: Any) -> str:
    """A setting's value as text: 3.0 -> "3", True -> "true", None -> "none"."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return short if float(short := f"{value:g}") == value else repr(value)
    if isinstance(value, list | tuple):
        return ",".join(map(value_text, value))
    return str(value)
