"""Curves over the steps, for the runs at the best learning rate of each scale and method.

Only those runs are read, and of a long run only some of its records.
"""

from __future__ import annotations

import logging
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from train.results import style
from train.results.analysis import Results
from train.results.plots import LOSS_LABELS
from train.run.files import parse_record
from train.run.folder import METRICS

log = logging.getLogger(__name__)

_POINTS = 300  # per curve
_DIGITS = 6  # significant ones, of a value in the page

SITE_VALUES = {
    "align_z0_dW": "align_z0_dW",
    "align_dZ_w0": "align_dZ_w0",
    "align_dZ_dW": "align_dZ_dW",
    "c": "c (lr ∝ width^-c)",
    "lr": "learning rate",
}
"""Key in the ``sites`` of a record -> label of the y axis; in the order of the rows."""

_EMBEDDING = re.compile(r"embed|cls_token|^layers\.0$")
_READOUT = ("lm_head", "head", "output")

Curve = pd.DataFrame
"""By step: mean and std over seeds; std is NaN for one seed."""


@dataclass(frozen=True)
class Panel:
    """One chart: a curve for each label, which is a method or a layer type."""

    title: str
    curves: Mapping[str, Curve]
    looks: Mapping[str, tuple[str, str]]
    """Label -> (colour, dashes)."""


@dataclass(frozen=True)
class Row:
    """Panels side by side, one per scale, with the same steps.

    Attributes:
        method: whose runs they show; "" for those of all methods.
        label: of the y axes.
        same_y: whether all panels have the same y range.
    """

    method: str
    label: str
    panels: list[Panel]
    same_y: bool = True
    log: bool = False


@cache
def layer_type(site: str) -> str:
    """A site's layer type, from its name."""
    if site.endswith("attention"):
        return "attention product"
    if site in _READOUT:
        return "readout"
    return "embedding" if _EMBEDDING.search(site) else "hidden"


def best_runs(results: Results) -> dict[tuple[str, str], list[Path]]:
    """(scale, method) -> the runs, one per seed, at the method's best learning rate."""
    cell = ["scale", "method", "combination", "lr"]
    runs = results.runs.dropna(subset=[results.metric])
    paths = {key: list(map(Path, group["path"])) for key, group in runs.groupby(cell)}
    best = results.methods.dropna(subset=["best_loss"])
    keys = best[["scale", "method", "combination", "best_lr"]].itertuples(False, None)
    # At a base scale, some methods are the run of another.
    return {(key[0], key[1]): paths[key] for key in keys if key in paths}


def read(paths: list[Path]) -> dict[tuple[str, str], Curve]:
    """(value, label) -> its curve over the seeds' runs: of the loss, and of the `SITE_VALUES`.

    Label is "" for the loss, else a layer type, whose value is the mean over its sites. The steps
    are those that all runs have logged, at most `_POINTS`, evenly spread, with the first and last.
    """
    logged = {path: {step for step, _ in _records(path)} for path in paths}
    paths = [path for path in paths if logged[path]]  # metrics may be deleted to save space
    common = sorted(set.intersection(*(logged[path] for path in paths))) if paths else []
    places = np.linspace(0, len(common) - 1, min(len(common), _POINTS)).round().astype(int)
    steps = {common[place] for place in places}
    columns: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(dict)
    for seed, path in enumerate(paths):
        for step, line in _records(path):
            if step in steps:
                for key, value in _values(parse_record(line) or {}):
                    columns[key].setdefault(seed, {})[step] = value
    curves = {}
    for key, seeds in columns.items():
        table = pd.DataFrame(seeds).sort_index()
        curves[key] = pd.DataFrame({"mean": table.mean(axis=1), "std": table.std(axis=1)})
    return curves


def rows(results: Results) -> list[Row]:
    """The rows of the report: the loss, then the `SITE_VALUES` of each method."""
    read_curves = {key: read(paths) for key, paths in best_runs(results).items()}
    methods = results.methods_order
    looks = {name: (colour, "") for name, (colour, _) in style.looks(methods).items()}
    losses = []
    for scale in results.scales:
        curves = {
            method: read_curves[scale, method]["loss", ""]
            for method in methods
            if ("loss", "") in read_curves.get((scale, method), {})
        }
        losses += [Panel(scale, curves, looks)] if curves else []
    made = [Row("", LOSS_LABELS["train"], losses, same_y=False)] if losses else []
    for method in methods:
        for value, label in SITE_VALUES.items():
            panels = []
            for scale in results.scales:
                read_here = read_curves.get((scale, method), {})
                curves = {
                    kind: read_here[value, kind]
                    for kind in style.LAYER_TYPES
                    if (value, kind) in read_here
                }
                panels += [Panel(scale, curves, style.LAYER_TYPES)] if curves else []
            if panels:
                made.append(Row(method, label, panels, log=value == "lr"))
    return made


def to_data(rows: list[Row]) -> list[list[dict[str, Any]]]:
    """The panels of each row, for the page's script; all have the same first and last step."""
    every = [curve for row in rows for panel in row.panels for curve in panel.curves.values()]
    ends = {int(step) for curve in every for step in (curve.index.min(), curve.index.max())}
    data = []
    for row in rows:
        curves = [curve for panel in row.panels for curve in panel.curves.values()]
        shared = _range(curves, row) if row.same_y else None
        data.append([_panel(panel, row, shared, ends) for panel in row.panels])
    return data


def _panel(
    panel: Panel, row: Row, shared: tuple[float, float] | None, ends: set[int]
) -> dict[str, Any]:
    curves = list(panel.curves.values())
    steps = sorted({min(ends), max(ends)}.union(*(map(int, curve.index) for curve in curves)))
    lines = []
    for label, curve in panel.curves.items():
        colour, dashes = panel.looks[label]
        curve = curve.reindex(steps)
        lines.append(
            {
                "label": label,
                # The ink depends on the page's colour scheme.
                "colour": "ink" if colour == style.INK else colour,
                "dashes": [int(length) for length in dashes.split()],
                "mean": _numbers(curve["mean"]),
                "std": _numbers(curve["std"]) if curve["std"].notna().any() else None,
            }
        )
    return {
        "title": panel.title,
        "label": row.label,
        "log": row.log,
        "range": shared or _range(curves, row),
        "steps": steps,
        "lines": lines,
    }


def _range(curves: list[Curve], row: Row) -> tuple[float, float]:
    """The y range; that of a loss leaves out its first, steep tenth, which would flatten the rest.

    The range of learning rates begins at a thousandth of the highest.
    """
    last = max(curve.index.max() for curve in curves)
    shown = [curve if row.same_y else curve[curve.index >= last / 10] for curve in curves]
    low = min(float((curve["mean"] - curve["std"].fillna(0)).min()) for curve in shown)
    high = max(float((curve["mean"] + curve["std"].fillna(0)).max()) for curve in shown)
    if not math.isfinite(low + high):
        return 0.0, 1.0
    if row.log:
        high = high if high > 0 else 1.0
        return max(low, high / 1000) / 1.2, high * 1.2
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin


def _records(folder: Path) -> Iterator[tuple[int, bytes]]:
    """Step and line of each training record, without parsing it whole."""
    try:
        with (folder / METRICS).open("rb") as lines:
            for line in lines:
                step = re.search(rb'"step": ?(\d+)', line)
                if step and b'"loss"' in line:
                    yield int(step[1]), line
    except OSError as error:
        log.warning("no curve of %s (%s)", folder, error)


def _values(record: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], float]]:
    """The loss, and the means over the sites of each layer type."""
    loss = _finite(record.get("loss"))
    yield ("loss", ""), math.nan if loss is None else loss
    sites = record.get("sites")
    several: dict[tuple[str, str], list[float]] = defaultdict(list)
    for site, values in sites.items() if isinstance(sites, dict) else ():
        # What has an lr alone, such as a bias, is no site.
        for key in SITE_VALUES if isinstance(values, dict) and values.keys() - {"lr"} else ():
            if (value := _finite(values.get(key))) is not None:
                several[key, layer_type(site)].append(value)
    for place, numbers in several.items():
        yield place, math.fsum(numbers) / len(numbers)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _numbers(values: pd.Series[float]) -> list[float | None]:
    return [None if math.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in values]
