"""The settings in which runs differ beyond scale, method, lr, seed and steps.

Runs of one scale are seeds of one experiment, or methods to compare, only if all their other
defining settings are equal. A setting that differs is an axis of the tables: each combination of
values has its own cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pandas as pd

from train.results.names import short_names, value_text
from train.run.identity import ADAMW, ADJUST_LR_FN, LATER, NO_BASE, NOT_IDENTITY, TABLE_DIGEST

Path = tuple[str, ...]

_BASE: Path = ("maxp", "base_scale")
_UNWRITTEN: dict[Path, str] = {
    _BASE: NO_BASE,
    ("maxp", "optimizer"): ADAMW,
    ("maxp", "adjust_lr_fn"): ADJUST_LR_FN,
}
"""Path -> value of a setting that a configuration lacks."""
_OF_METHOD = frozenset(
    ("maxp", name)
    for name in (
        *("probe", "probe_sequences", "probe_tokens", "measure", "measure_from", "solve_interval"),
        *("c_ema", "alignment_ema", "resample_w0", "measure_bilinear", "warm_start", "bounded"),
        "alignment_table",
    )
) | {(TABLE_DIGEST,)}
"""Settings of alignment, which other methods do not use: they are compared within a method."""
_OF_STEPS: frozenset[Path] = frozenset(
    {("lr_scheduler", "warmup_steps"), ("maxp", "measure_from"), ("validator", "freq")}
)
"""Settings whose defaults follow from the steps: compared between runs of the same length."""
_PLACED = NOT_IDENTITY | {"scale", "method", "lr", "seed", "steps"}


def base_scale(config: Mapping[str, Any]) -> str:
    """The base scale in a run's configuration; earlier versions had none."""
    return str(_value(config, _BASE))


class _Place(NamedTuple):
    scale: str
    method: str
    steps: str


class Varying:
    """Finds the settings in which the configurations of many runs differ.

    It keeps one configuration per scale, and of the others only what differs.
    """

    def __init__(self) -> None:
        self._first: dict[str, Mapping[str, Any]] = {}
        self._runs: list[tuple[_Place, dict[Path, Any]]] = []

    def add(self, config: Mapping[str, Any]) -> None:
        place = _Place(*(str(config[key]) for key in _Place._fields))
        first = self._first.setdefault(place.scale, config)
        self._runs.append((place, dict(_changes(first, config))))

    def points(self) -> list[dict[str, Any]]:
        """The axes and their values for each configuration, in the order of `add`.

        An axis is a setting that differs between runs of the same scale; see `_OF_METHOD` and
        `_OF_STEPS` for those that are compared between fewer. A setting that follows from the axes
        before it is left out; those of ``maxp`` come first.
        """
        paths = {path for _, changes in self._runs for path in changes}
        points: list[dict[str, Any]] = [{} for _ in self._runs]
        above: list[tuple[str, ...]] = [() for _ in self._runs]  # the values of the axes so far
        for path in sorted(paths, key=lambda path: (path[0] != "maxp", path)):
            default = {scale: _value(config, path) for scale, config in self._first.items()}
            values = [changes.get(path, default[place.scale]) for place, changes in self._runs]
            keys = [
                (*_compared(place, path), *texts_above)
                for (place, _), texts_above in zip(self._runs, above, strict=True)
            ]
            if ".".join(path) in LATER:
                values = _filled(keys, values)
            texts = list(map(value_text, values))
            if len({*zip(keys, texts, strict=True)}) == len({*keys}):
                continue
            above = [(*key, text) for key, text in zip(above, texts, strict=True)]
            for point, value in zip(points, values, strict=True):
                point[".".join(path)] = value
        return points


def _filled(keys: list[tuple[str, ...]], values: list[Any]) -> list[Any]:
    """``values`` where None becomes the only other value that has the same key, if there is one."""
    known: dict[tuple[str, ...], set[Any]] = {}
    for key, value in zip(keys, values, strict=True):
        if value is not None:
            known.setdefault(key, set()).add(value)
    only = {key: several.pop() for key, several in known.items() if len(several) == 1}
    return [
        only.get(key) if value is None else value for key, value in zip(keys, values, strict=True)
    ]


def _compared(place: _Place, path: Path) -> tuple[str, ...]:
    """What runs have in common between which the setting at ``path`` is compared."""
    method = place.method if path in _OF_METHOD else ""
    return place.scale, method, place.steps if path in _OF_STEPS else ""


def _changes(first: Any, other: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Path and value of each setting of ``other`` that differs from ``first``."""
    if first == other and type(first) is type(other):
        return
    if isinstance(first, Mapping) and other is None:
        other = {}
    if isinstance(other, Mapping) and first is None:
        first = {}
    if isinstance(first, Mapping) and isinstance(other, Mapping):
        for key in first.keys() | other.keys():
            if _PLACED.isdisjoint(str(key).split(".")):
                yield from _changes(first.get(key), other.get(key), (*path, str(key)))
    elif isinstance(first, list) and isinstance(other, list) and len(first) == len(other):
        for index, pair in enumerate(zip(first, other, strict=True)):
            yield from _changes(*pair, (*path, str(index)))
    else:
        yield path, _UNWRITTEN.get(path) if other is None else other


def _value(config: Any, path: Path) -> Any:
    """The setting at ``path``; None if there is none."""
    for part in path:
        if isinstance(config, Mapping):
            config = config.get(part)
        elif isinstance(config, list) and part.isdecimal() and int(part) < len(config):
            config = config[int(part)]
        else:
            config = None
    return _UNWRITTEN.get(path) if config is None else config


def axes_of(runs: pd.DataFrame) -> dict[str, str]:
    """Name -> short name of the axes that have several values among ``runs``."""
    texts: dict[str, set[str]] = {}
    for point in runs["axes"]:
        for name, value in point.items():
            texts.setdefault(name, set()).add(value_text(value))
    return short_names(name for name, values in texts.items() if len(values) > 1)


def label(point: Mapping[str, Any], axes: Mapping[str, str]) -> str:
    """A combination as text, "embedding 0.3, max_norm 1"; empty without axes."""
    return ", ".join(f"{short} {value_text(point.get(name))}" for name, short in axes.items())


def points_of(runs: pd.DataFrame, axes: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Label -> value of each axis, ordered by value, for the combinations among ``runs``."""
    points = {label(p, axes): {name: p.get(name) for name in axes} for p in runs["axes"]}
    return dict(sorted(points.items(), key=lambda item: [*map(_order, item[1].values())]))


def _order(value: Any) -> tuple[int, float, str]:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return (0, float(value), "") if number else (1, 0.0, value_text(value))


def with_shared(runs: pd.DataFrame, methods: Iterable[str] = ()) -> pd.DataFrame:
    """``runs`` with the runs of base scales repeated for every method of ``runs`` and ``methods``.

    At a scale that is its own base all methods are the same run. A method that has no run of its
    own there with the same combination, lr and seed gets a copy. Adds ``at_base``, whether the
    scale is the run's base, and ``run_as``, the method that a copy was run as, else "".
    """
    runs = runs.assign(at_base=(runs["base_scale"] == runs["scale"]), run_as="")
    place = ["scale", "combination", "lr", "seed", "steps"]
    own = runs[runs["at_base"]].drop_duplicates([*place, "method"])
    once = own.drop_duplicates(place)
    copies = [
        once.assign(run_as=once["method"], method=method)
        for method in dict.fromkeys([*runs["method"], *methods])
        if len(once)
    ]
    every = pd.concat([own, *copies]).drop_duplicates([*place, "method"])
    return pd.concat([runs, every[every["run_as"] != ""]], ignore_index=True)
