"""Figures of the training part."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.study.figures import heat, new
from scripts.study.fits import geometric
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
