"""Pictures over the steps of a few runs, those with the best loss of their scale and method."""

from __future__ import annotations

import logging
import math
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train.results import style
from train.results.analysis import Results
from train.results.plots import LOSS_LABELS
from train.run.folder import RunFolderError, load_run

log = logging.getLogger(__name__)

_POINTS = 300  # drawn of one curve
Records = list[dict[str, Any]]
Curve = tuple[list[float], list[float]]  # steps and values


def best_runs(results: Results) -> dict[tuple[str, str], Records]:
    """(scale, method) -> the metrics of the run with the lowest loss at the method's best lr."""
    found: dict[tuple[str, str], Records] = {}
    for _, row in results.methods.dropna(subset=["best_loss"]).iterrows():
        runs = results.runs
        cell = runs[
            (runs["scale"] == row["scale"])
            & (runs["method"] == row["method"])
            & (runs["lr"] == row["best_lr"])
        ].dropna(subset=[results.metric])
        path = cell.sort_values(results.metric)["path"].iloc[0]
        try:
            found[row["scale"], row["method"]] = load_run(path).metrics
        except (RunFolderError, OSError) as error:
            log.warning("no curve of %s (%s)", path, error)
    return found


def loss_over_steps(results: Results, runs: dict[tuple[str, str], Records]) -> Figure | None:
    """A panel a scale, a line a method: the training loss of its best run."""
    scales = [s for s in results.scales if any(scale == s for scale, _ in runs)]
    looks = style.looks(results.methods_order)
    if not scales:
        return None
    with style.drawing():
        figure, panels = style.panels(len(scales))
        for axes, scale in zip(panels, scales, strict=True):
            drawn = []
            for method, (colour, _) in looks.items():
                curve = _thin(_series(runs.get((scale, method), []), "loss"))
                axes.plot(*curve, color=colour, linewidth=1.2, label=method)
                drawn.append(curve)
            axes.set(title=scale, xlabel="step")
            _skip_the_fall(axes, drawn)
        panels[0].set_ylabel(LOSS_LABELS["train"])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def exponents_over_steps(results: Results, runs: dict[tuple[str, str], Records]) -> Figure | None:
    """A panel a scale: c of every layer of the best run of the first method whose c changes."""
    curves: dict[str, tuple[str, pd.DataFrame]] = {}
    for scale in results.scales:
        for method in results.methods_order:
            exponents = _exponents(runs.get((scale, method), []))
            if len(exponents) > 1 and (exponents.nunique() > 1).any():
                curves.setdefault(scale, (method, exponents))
    if not curves:
        return None
    kinds = sorted({_kind(site) for _, frame in curves.values() for site in frame.columns})
    colours = dict(zip(kinds, cycle(style.PALETTE), strict=False))
    with style.drawing():
        figure, panels = style.panels(len(curves))
        for axes, (scale, (method, frame)) in zip(panels, curves.items(), strict=True):
            for site in frame.columns:
                steps, values = _thin((frame.index.tolist(), frame[site].tolist()))
                axes.plot(steps, values, color=colours[_kind(site)], linewidth=0.9, alpha=0.7)
            axes.set(title=f"{scale}, {method}", xlabel="step")
        panels[0].set_ylabel("c, with lr of a layer = lr $n^{-c}$")
        handles = [Line2D([], [], color=colours[kind], label=kind) for kind in kinds]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def _skip_the_fall(axes: Axes, drawn: list[Curve]) -> None:
    """Give the height to what follows the first tenth of the steps, which is steep for all."""
    last = max((steps[-1] for steps, _ in drawn if steps), default=0)
    later = [
        loss
        for steps, losses in drawn
        for step, loss in zip(steps, losses, strict=True)
        if step >= last / 10
    ]
    if later and max(later) > min(later):
        margin = 0.05 * (max(later) - min(later))
        axes.set_ylim(min(later) - margin, max(later) + margin)


def _kind(site: str) -> str:
    return site.rsplit(".", 1)[-1]


def _exponents(records: Records) -> pd.DataFrame:
    rows = {}
    for record in records:
        sites = record.get("sites")
        if isinstance(sites, dict) and isinstance(record.get("step"), int):
            values = {name: site.get("c") for name, site in sites.items() if isinstance(site, dict)}
            rows[record["step"]] = {name: c for name, c in values.items() if c is not None}
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).dropna(axis=1, how="all")


def _series(records: Records, key: str) -> Curve:
    pairs = [
        (record["step"], record[key])
        for record in records
        if isinstance(record.get("step"), int) and isinstance(record.get(key), int | float)
    ]
    return [step for step, _ in pairs], [value for _, value in pairs]


def _thin(curve: Curve) -> Curve:
    """Every so many points, and the last."""
    steps, values = curve
    stride = max(1, math.ceil(len(steps) / _POINTS))
    kept = sorted({*range(0, len(steps), stride), *([len(steps) - 1] if steps else [])})
    return [steps[i] for i in kept], [values[i] for i in kept]
