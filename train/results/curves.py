"""Plots over the steps of a few runs: the best run of each scale and method."""

from __future__ import annotations

import logging
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from train.results import style
from train.results.analysis import Results
from train.results.plots import LOSS_LABELS
from train.run.folder import RunFolderError, load_run

log = logging.getLogger(__name__)

_POINTS = 300  # drawn per curve
Records = list[dict[str, Any]]


def best_runs(results: Results) -> dict[tuple[str, str], Records]:
    """(scale, method) -> the metrics of the run with the lowest loss at the method's best lr."""
    records: dict[tuple[str, str], Records] = {}
    cell = ["scale", "method", "combination", "lr"]
    runs = results.runs.dropna(subset=[results.metric]).sort_values(results.metric)
    paths = runs.drop_duplicates(cell).set_index(cell)["path"].to_dict()
    for _, row in results.methods.dropna(subset=["best_loss"]).iterrows():
        scale, method = row["scale"], row["method"]
        path = paths.get((scale, method, row["combination"], row["best_lr"]))
        if path is None:  # at a base scale, the run of another method
            continue
        try:
            records[scale, method] = [
                r for r in load_run(path).metrics if isinstance(r.get("step"), int)
            ]
        except (RunFolderError, OSError) as error:
            log.warning("no curve of %s (%s)", path, error)
    return records


def loss_over_steps(results: Results, runs: dict[tuple[str, str], Records]) -> Figure | None:
    """Training loss of the best run of each method: one panel per scale."""
    scales = [s for s in results.scales if any(scale == s for scale, _ in runs)]
    if not scales:
        return None
    with style.drawing():
        figure, panels = style.panels(len(scales))
        for axes, scale in zip(panels, scales, strict=True):
            losses: list[pd.Series[float]] = []
            for method, (colour, _) in style.looks(results.methods_order).items():
                records = runs.get((scale, method), [])
                values = {r["step"]: r["loss"] for r in records if "loss" in r}
                losses.append(pd.Series(values, dtype=float).dropna())
                curve = _thinned(losses[-1])
                axes.plot(curve.index, curve, color=colour, linewidth=1.2, label=method)
            axes.set(title=scale, xlabel="step")
            # The first tenth is steep for all methods and would flatten the rest.
            last = max((curve.index.max() for curve in losses if len(curve)), default=0)
            later = pd.concat([curve[curve.index >= last / 10] for curve in losses])
            margin = 0.05 * (later.max() - later.min())
            if margin > 0:
                axes.set_ylim(later.min() - margin, later.max() + margin)
        panels[0].set_ylabel(LOSS_LABELS["train"])
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def exponents_over_steps(results: Results, runs: dict[tuple[str, str], Records]) -> Figure | None:
    """c of every layer, for the first method whose c changes: one panel per scale."""
    shown: dict[str, tuple[str, pd.DataFrame]] = {}
    for scale in results.scales:
        for method in results.methods_order:
            exponents = _exponents(runs.get((scale, method), []))
            if (exponents.nunique() > 1).any():
                shown.setdefault(scale, (method, exponents))
    if not shown:
        return None
    kinds = sorted({_kind(site) for _, exponents in shown.values() for site in exponents.columns})
    colours = dict(zip(kinds, cycle(style.PALETTE), strict=False))
    with style.drawing():
        figure, panels = style.panels(len(shown))
        for axes, (scale, (method, exponents)) in zip(panels, shown.items(), strict=True):
            for site, values in exponents.items():
                curve = _thinned(values)
                colour = colours[_kind(str(site))]
                axes.plot(curve.index, curve, color=colour, linewidth=0.9, alpha=0.7)
            axes.set(title=f"{scale}, {method}", xlabel="step")
        panels[0].set_ylabel("c, with lr of a layer = lr $n^{-c}$")
        handles = [Line2D([], [], color=colour, label=kind) for kind, colour in colours.items()]
        figure.legend(handles=handles, loc="outside right upper", fontsize=8)
    return figure


def _kind(site: str) -> str:
    return site.rsplit(".", 1)[-1]


def _exponents(records: Records) -> pd.DataFrame:
    """c by step (rows) and site (columns)."""
    rows = {
        record["step"]: {name: site.get("c") for name, site in record["sites"].items()}
        for record in records
        if isinstance(record.get("sites"), dict)
    }
    return pd.DataFrame.from_dict(rows, orient="index", dtype=float).dropna(axis=1, how="all")


def _thinned(curve: pd.Series[float]) -> pd.Series[float]:
    """Points that are evenly spread over the curve, with the first and the last."""
    places = np.linspace(0, len(curve) - 1, min(len(curve), _POINTS))
    return curve.iloc[places.round().astype(int)]
