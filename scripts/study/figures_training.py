"""Figures of the training part and of the learning-rate sweep."""

import math
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.study.figures import COLORS, heat, new
from scripts.study.fits import geometric
from scripts.study.mlp import METHODS
from scripts.study.sweep import best, curves
from scripts.study.training import cells


def along(rows: pd.DataFrame, by: str, fixed: int) -> Figure:
    """Layer by layer at init, and the loss over steps, for widths at one depth or the reverse.

    Args:
        by: ``"width"`` or ``"depth"``.
        fixed: the value of the other.
    """
    other = "depth" if by == "width" else "width"
    rows = rows[rows[other] == fixed]
    values = sorted(rows[by].unique())
    panels = {
        "activation": "rms of the output, at init",
        "gradient": "‖grad W‖, at init",
        "update": "‖dW‖ / ‖W‖, first step",
    }
    figure = new(14, 3.6, f"standard parametrization, one lr, {other} {fixed}: by {by}")
    *axes, loss_axes = figure.subplots(1, len(panels) + 1)
    for value, color in zip(values, shades(len(values)), strict=True):
        mine = rows[rows[by] == value]
        for panel, quantity in zip(axes, panels, strict=True):
            means = geometric(mine[mine.step == 0], ["layer"], quantity)
            panel.plot(means.index, means, ".-", color=color, label=str(value))
            panel.set(yscale="log", xlabel="layer", title=panels[quantity])
        losses = geometric(mine[mine.layer == 0], ["step"], "loss")
        smooth = losses.rolling(3, min_periods=1, center=True).mean()
        loss_axes.plot(smooth.index, smooth, color=color, label=str(value))
    loss_axes.set(yscale="log", xlabel="step", title="loss of the batch")
    axes[0].legend(title=by, fontsize=7, title_fontsize=7, frameon=False)
    return figure


def shades(count: int) -> Any:
    return mpl.colormaps["viridis"](np.linspace(0, 0.9, count))


def training_maps(rows: pd.DataFrame) -> Figure:
    """Width x depth: late loss, relative update, gradient norm and its spread over depth."""
    figure = new(13, 6.5, "standard parametrization, one lr for all: spiral")
    maps = {
        "late_loss": "late loss",
        "accuracy": "accuracy",
        "activation": "last output before the readout, rms (init)",
        "gradient": "hidden ‖grad W‖, geometric mean (init)",
        "spread": "hidden ‖grad W‖, max / min over depth (init)",
        "update": "hidden ‖dW‖/‖W‖, first step",
    }
    means = cells(rows)
    for axes, (quantity, title) in zip(figure.subplots(2, 3).flat, maps.items(), strict=True):
        # Depth 2 has no hidden layer.
        table = means[quantity].dropna().unstack("width")
        low, high = float(np.nanmin(table)), float(np.nanmax(table))
        norm: Any = mpl.colors.LogNorm(low, high) if low > 0 and high > 3 * low else None
        figure.colorbar(heat(axes, table, title, norm), ax=axes)
    return figure


def sweep_figure(rows: pd.DataFrame) -> Figure:
    """One row per batch size: loss against lr, one line per width, the best marked; the best lr."""
    batches = sorted(rows.batch.unique())
    figure = new(14, 3.5 * len(batches), "spiral, Adam at a constant lr: mean loss of the run")
    grid = figure.subplots(len(batches), len(METHODS) + 1, squeeze=False)
    for axes, batch in zip(grid, batches, strict=True):
        _sweep_row(axes, rows[rows.batch == batch], f"batch {batch}")
    return figure


def _sweep_row(axes_row: Any, rows: pd.DataFrame, title: str) -> None:
    *panels, last = axes_row
    table, bests = curves(rows), best(rows)
    widths = sorted(rows.width.unique())
    for axes, (method, name) in zip(panels, METHODS.items(), strict=True):
        mine = bests[bests.method == method].sort_values("width")
        marks = zip(mine.width, mine.best, mine.loss, shades(len(widths)), strict=True)
        for width, log2_lr, loss, color in marks:
            curve = table[(table.method == method) & (table.width == width)]
            curve = curve[np.isfinite(curve.loss)]
            lrs = 2.0**curve.log2_lr
            axes.plot(lrs, curve.loss, ".-", color=color, label=str(width), lw=1)
            axes.plot(2.0**log2_lr, loss, "*", color=color, ms=11, mec="black", mew=0.5)
        axes.set_xscale("log", base=2)
        axes.set(yscale="log", xlabel="lr", title=f"{name}, {title}")
        axes.set_ylim(0.95 * table.loss.min(), 1.2 * math.log(2))  # ln 2: nothing learned
        last.plot(mine.width, 2.0**mine.between, "o-", color=COLORS[method], label=name)
        if method == "standard":
            x = mine.width.to_numpy(dtype=float)
            middle = float(np.exp(np.mean(np.log(2.0**mine.between * x))))
            last.plot(x, middle / x, ":", color="black", label="n^-1, derived")
    panels[0].legend(title="width", fontsize=7, title_fontsize=7, frameon=False)
    last.set(xscale="log", yscale="log", xlabel="width", title=f"best lr, {title}")
    last.set_xticks(widths, widths)
    last.set_xticks([], minor=True)
    last.legend(fontsize=7, frameon=False)
