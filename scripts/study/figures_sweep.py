"""Figures of the learning-rate sweeps over widths and over depths."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.study.depths import ARMS, DERIVED
from scripts.study.figures import COLORS, new
from scripts.study.figures_training import shades
from scripts.study.mlp import METHODS
from scripts.study.sweep import best, curves, prediction

_ARM_COLORS = dict(zip(ARMS, ("#7f7f7f", "#cc79a7", "#009e73", "#0072b2"), strict=True))


def sweep_figure(rows: pd.DataFrame) -> Figure:
    """One row per batch size: loss against lr, a line per width; best lr, predicted, measured."""
    batches = sorted(rows.batch.unique())
    figure = new(14, 3.7 * len(batches), "spiral, Adam at a constant lr: mean loss of the run")
    grid = figure.subplots(len(batches), len(METHODS) + 1, squeeze=False)
    for axes, batch in zip(grid, batches, strict=True):
        mine = rows[rows.batch == batch]
        powers = {method: prediction(mine, method)["power"] for method in METHODS}
        _row(axes, mine, "width", METHODS, COLORS, powers, "predicted", f", batch {batch}")
    return figure


def depth_figure(rows: pd.DataFrame) -> Figure:
    """The same over the number of hidden layers, with the derived powers."""
    figure = new(17, 4, "spiral at the base width, Adam at a constant lr: mean loss of the run")
    names = {arm: name for arm, (name, _) in ARMS.items()}
    axes = figure.subplots(1, len(ARMS) + 1)
    _row(axes, rows, "blocks", names, _ARM_COLORS, DERIVED, "derived")
    return figure


def _row(
    axes_row: Any,
    rows: pd.DataFrame,
    over: str,
    names: Mapping[str, str],
    colors: Mapping[str, str],
    powers: Mapping[str, float],
    what: str,
    title: str = "",
) -> None:
    """A panel per method, and a last one with the best lr and the line of the given power."""
    *panels, last = axes_row
    table, bests = curves(rows, over), best(rows, over)
    sizes = sorted(rows[over].unique())
    lrs = 2.0 ** np.array([rows.log2_lr.min() - 0.5, rows.log2_lr.max() + 0.5])
    for axes, (method, name) in zip(panels, names.items(), strict=True):
        mine = bests[bests.method == method].sort_values(over)
        for (_, at), color in zip(mine.iterrows(), shades(len(sizes)), strict=True):
            curve = table[(table.method == method) & (table[over] == at[over])]
            curve = curve[np.isfinite(curve.loss)]
            axes.plot(2.0**curve.log2_lr, curve.loss, ".-", color=color, label=at[over], lw=1)
            axes.plot(2.0 ** at["best"], at["loss"], "*", color=color, ms=11, mec="black", mew=0.5)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="lr", title=f"{name}{title}", xlim=lrs)
        axes.set_ylim(0.95 * table.loss.min(), 1.2 * math.log(2))  # ln 2: nothing learned
        x = mine[over].to_numpy(dtype=float)
        measured = 2.0 ** mine.between.to_numpy()
        last.plot(x, measured, "o-", color=colors[method], label=name)
        middle = np.exp(np.mean(np.log(measured) - powers[method] * np.log(x)))
        last.plot(x, middle * x ** powers[method], ":", color=colors[method])
    panels[0].set_ylabel("mean loss")
    label = {"blocks": "hidden layers"}.get(over, over)
    panels[0].legend(title=label, fontsize=8, title_fontsize=8, frameon=False)
    last.set(xscale="log", yscale="log", xlabel=label, ylabel="best lr")
    last.set_title(f"best lr (dotted: {what}){title}", fontsize=10)
    last.set_xticks(sizes, sizes)
    last.set_xticks([], minor=True)
    last.legend(fontsize=8, frameon=False)
