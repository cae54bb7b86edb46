"""Figures of the training part and of the learning-rate sweep."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.study.figures import COLORS, NAMES, geometric, heat, new
from scripts.study.mlp import METHODS
from scripts.study.sweep import best, curves

_PANELS = (
    ("activation", "rms of the output, at init"),
    ("gradient", "‖grad W‖, at init"),
    ("update", "‖dW‖ / ‖W‖, first step"),
)


def along(rows: pd.DataFrame, by: str, fixed: int) -> Figure:
    """Layer by layer at init, and the loss over steps, for widths at one depth or the reverse.

    Args:
        by: ``"width"`` or ``"depth"``.
        fixed: the value of the other.
    """
    other = "depth" if by == "width" else "width"
    rows = rows[rows[other] == fixed]
    values = sorted(rows[by].unique())
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(values)))
    figure = new(14, 3.6, f"standard parametrization, one lr, {other} {fixed}: by {by}")
    axes = figure.subplots(1, len(_PANELS) + 1)
    for value, color in zip(values, colors, strict=True):
        mine = rows[rows[by] == value]
        first = mine[mine.step == 0]
        for axis, (quantity, title) in zip(axes, _PANELS, strict=False):
            means = geometric(first, ["layer"], quantity)
            axis.plot(means.index, means, ".-", color=color, label=str(value))
            axis.set(yscale="log", xlabel="layer", title=title)
        losses = geometric(mine[mine.layer == 0], ["step"], "loss")
        smooth = losses.rolling(3, min_periods=1, center=True).mean()
        axes[-1].plot(smooth.index, smooth, color=color, label=str(value))
    axes[-1].set(yscale="log", xlabel="step", title="loss of the batch")
    axes[0].legend(title=by, fontsize=7, title_fontsize=7, frameon=False)
    return figure


def training_maps(rows: pd.DataFrame) -> Figure:
    """Width x depth: end loss, relative update, gradient norm and its spread over depth."""
    figure = new(13, 6.5, "standard parametrization, one lr for all: spiral")
    first = rows[rows.step == 0]
    keys = ["depth", "width"]
    hidden = first[(first.layer > 0) & (first.layer < first.depth - 1)]
    spread = hidden.groupby([*keys, "seed"]).gradient.agg(lambda g: g.max() / g.min())
    maps: tuple[tuple[str, pd.Series], ...] = (
        ("late loss", rows.groupby(keys).late_loss.mean()),
        ("accuracy", rows.groupby(keys).accuracy.mean()),
        (
            "last output before the readout, rms (init)",
            geometric(_before_last(first), keys, "activation"),
        ),
        ("hidden ‖grad W‖, geometric mean (init)", geometric(hidden, keys, "gradient")),
        ("hidden ‖grad W‖, max / min over depth (init)", spread.groupby(keys).mean()),
        ("hidden ‖dW‖/‖W‖, first step", geometric(hidden, keys, "update")),
    )
    for axes, (title, values) in zip(figure.subplots(2, 3).flat, maps, strict=True):
        table = values.unstack("width")
        low, high = float(np.nanmin(table)), float(np.nanmax(table))
        norm: Any = mpl.colors.LogNorm(low, high) if low > 0 and high > 3 * low else None
        figure.colorbar(heat(axes, table, title, norm), ax=axes)
    return figure


def _before_last(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows.layer == rows.depth - 2]


def sweep_figure(rows: pd.DataFrame) -> Figure:
    """A row a batch size: loss against lr, a line a width, the best marked; and the best lr."""
    batches = sorted(rows.batch.unique())
    figure = new(14, 3.5 * len(batches), "spiral, Adam at a constant lr: mean loss of the run")
    grid = figure.subplots(len(batches), len(METHODS) + 1, squeeze=False)
    for axes, batch in zip(grid, batches, strict=True):
        _sweep_row(axes, rows[rows.batch == batch], f"batch {batch}")
    return figure


def _sweep_row(axes_row: Any, rows: pd.DataFrame, title: str) -> None:
    *panels, last = axes_row
    table, found = curves(rows), best(rows)
    widths = sorted(rows.width.unique())
    colors = mpl.colormaps["viridis"](np.linspace(0, 0.9, len(widths)))
    for axes, method in zip(panels, METHODS, strict=True):
        for width, color in zip(widths, colors, strict=True):
            curve = table[(table.method == method) & (table.width == width)]
            curve = curve[np.isfinite(curve.loss)]
            axes.plot(2.0**curve.log2_lr, curve.loss, ".-", color=color, label=str(width), lw=1)
            mark = found[(found.method == method) & (found.width == width)].iloc[0]
            axes.plot(2.0**mark.best, mark.loss, "*", color=color, ms=11, mec="black", mew=0.5)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="lr", title=f"{NAMES[method]}, {title}")
        axes.set_ylim(0.95 * table.loss.min(), 1.2 * math.log(2))  # ln 2: nothing learned
    panels[0].legend(title="width", fontsize=7, title_fontsize=7, frameon=False)
    for method in METHODS:
        mine = found[found.method == method].sort_values("width")
        last.plot(mine.width, 2.0**mine.between, "o-", color=COLORS[method], label=NAMES[method])
        if method == "standard":
            x = mine.width.to_numpy(dtype=float)
            middle = float(np.exp(np.mean(np.log(2.0**mine.between * x))))
            last.plot(x, middle / x, ":", color="black", label="n^-1, derived")
    last.set(xscale="log", yscale="log", xlabel="width", title=f"best lr, {title}")
    last.set_xticks(widths, [str(w) for w in widths])
    last.set_xticks([], minor=True)
    last.legend(fontsize=7, frameon=False)
