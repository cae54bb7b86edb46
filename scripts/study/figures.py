"""Figures of the single pass: heat maps, slopes with derived lines, and finite sizes."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scripts.study.derived import QUANTITIES, RATIOS
from scripts.study.fits import geometric
from scripts.study.mlp import METHODS
from scripts.study.plan import OPTIMIZERS

# Okabe and Ito, as in all other figures of the project.
COLORS = {"standard": "#cc79a7", "mup": "#d55e00", "maxP": "#0072b2"}


def new(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG file; a file with this name is replaced only by a complete one."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # Without matplotlib's version, the same data give the same bytes.
        figure.savefig(unfinished, dpi=200, format="png", metadata={"Software": None})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def heat(
    axes: Any,
    table: pd.DataFrame,
    title: str,
    norm: Any = None,
    *,
    colors: str = "viridis",
    size: float = 6.5,
) -> Any:
    """Depths (rows) by widths (columns) with the numbers in the cells; returns the image."""
    values = table.to_numpy(dtype=np.float64)
    image = axes.imshow(values, norm=norm, cmap=colors, origin="lower", aspect="auto")
    axes.set_xticks(range(len(table.columns)), table.columns)
    axes.set_yticks(range(len(table.index)), table.index)
    axes.set(xlabel="width", ylabel="depth", title=title)
    shade = image.norm(values)
    for i, j in np.ndindex(*values.shape):
        light = image.cmap(shade[i, j])[:3] @ np.array([0.299, 0.587, 0.114]) > 0.5
        color = "black" if light else "white"
        text = f"{values[i, j]:.2g}"
        axes.text(j, i, text, ha="center", va="center", color=color, fontsize=size)
    return image


def heat_maps(rows: pd.DataFrame, optimizer: str) -> Figure:
    """Methods side by side, width x depth: the readout's gradient ratio, and changes of outputs."""
    rows = rows[rows.optimizer == optimizer]
    readout = rows[rows.layer == rows.depth - 1]
    last_hidden = rows[(rows.layer == rows.depth - 2) & (rows.depth > 2)]
    kinds = (
        ("readout, ‖grad W‖ / ‖W‖", readout, "gradient"),
        ("last hidden, ‖dW‖_2 / ‖W‖_2", last_hidden, "spectral"),
        ("last hidden, ‖dW z‖ / ‖W z‖", last_hidden, "output"),
        ("last hidden, total ‖dy‖ / ‖y‖", last_hidden, "total"),
    )
    figure = new(12, 11, f"{optimizer}: one step, geometric means over seeds")
    grid = figure.subplots(len(kinds), len(METHODS))
    for axes_row, (title, layer, quantity) in zip(grid, kinds, strict=True):
        values = geometric(layer, ("method", "depth", "width"), quantity)
        norm = LogNorm(values.min(), values.max())
        for axes, (method, name) in zip(axes_row, METHODS.items(), strict=True):
            image = heat(axes, values.loc[method].unstack("width"), f"{name}: {title}", norm)
        figure.colorbar(image, ax=list(axes_row))
    return figure


def slope_lines(rows: pd.DataFrame, slopes: pd.DataFrame, depth: int) -> Figure:
    """The four quantities of one hidden layer against width; derived exponents dotted."""
    layer = depth // 2
    figure = new(13, 6.5, f"hidden layer {layer} of depth {depth} (dotted: derived exponent)")
    widths = sorted(rows.width.unique())
    for axes_row, optimizer in zip(figure.subplots(2, 4), OPTIMIZERS, strict=True):
        layer_of = "optimizer == @optimizer and depth == @depth and layer == @layer"
        mine, fits = rows.query(layer_of), slopes.query(layer_of)
        for axes, quantity in zip(axes_row, RATIOS, strict=True):
            by_method = fits[fits.quantity == quantity].set_index("method")
            for method in METHODS:
                values = mine[mine.method == method].pivot(
                    index="seed", columns="width", values=quantity
                )
                _line(axes, values, method, by_method.loc[method])
            axes.set(xscale="log", yscale="log", xlabel="width")
            axes.set_title(f"{optimizer}: {QUANTITIES[quantity]}", fontsize=9)
            axes.set_xticks(widths, widths, fontsize=7)
            axes.set_xticks([], minor=True)
            axes.legend(fontsize=6.5, frameon=False)
    return figure


def _line(axes: Any, values: pd.DataFrame, method: str, fit: Any) -> None:
    """Mean and standard deviation of log values (seeds by widths), and the derived slope."""
    logs = np.log(values)
    mean, deviation = logs.mean(), logs.std()
    x, color = mean.index.to_numpy(dtype=float), COLORS[method]
    label = f"{METHODS[method]} {fit['slope']:+.2f} (derived {fit['derived']:+.1f})"
    style = "--" if method == "maxP" else "-"
    axes.plot(x, np.exp(mean), style, marker=".", color=color, label=label, lw=1)
    low, high = np.exp(mean - deviation), np.exp(mean + deviation)
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    end = np.exp(mean.iloc[-1])
    axes.plot(x, end * (x / x[-1]) ** fit["derived"], ":", color=color, lw=1)


def finite_sizes(slopes: pd.DataFrame) -> Figure:
    """How far slopes are from derived ones, by depth, and what finite width and depth explain."""
    figure = new(12, 4, "measured slope - derived exponent, every layer (mean and 95% interval)")
    depths = sorted(slopes.depth.unique())
    for axes, quantity in zip(figure.subplots(1, 4, sharey=True), RATIOS, strict=True):
        mine = slopes[(slopes.quantity == quantity) & (slopes.method == "mup")]
        for k, (optimizer, frame) in enumerate(mine.groupby("optimizer")):
            x = np.log2(frame.depth) + (0.18 * k - 0.09) + 0.12 * (frame.layer / frame.depth - 0.5)
            axes.errorbar(x, frame.off, frame.half, fmt=".", ms=3, lw=0.4, label=str(optimizer))
            finite = frame.finite - frame.derived
            axes.plot(x, finite, "_", color="black", ms=5, label="finite sizes" if k else None)
        axes.axhspan(-0.1, 0.1, color="grey", alpha=0.15)
        axes.set_xticks(np.log2(depths), depths)
        axes.set(xlabel="depth", title=QUANTITIES[quantity])
        axes.legend(fontsize=7, frameon=False)
    return figure


def chain(rows: pd.DataFrame, depth: int) -> Figure:
    """Step by step from ‖z‖ to the change of the output: standard, Adam, one lr."""
    layer = depth // 2
    mine = rows[(rows.method == "standard") & (rows.optimizer == "adam")]
    mine = mine[(mine.depth == depth) & (mine.layer == layer)]
    steps = {"z": 0.5, "grad": 0.5, "frobenius": 0.5, "spectral": 1.0, "output": 1.0}
    figure = new(13, 2.8, f"standard, Adam at one lr: hidden layer {layer} of depth {depth}")
    for axes, (quantity, exponent) in zip(
        figure.subplots(1, len(steps)), steps.items(), strict=True
    ):
        means = geometric(mine, ["width"], quantity)
        x, y = means.index.to_numpy(dtype=float), means.to_numpy()
        axes.plot(x, y, "o-", color=COLORS["standard"], ms=3)
        axes.plot(x, y[-1] * (x / x[-1]) ** exponent, ":", color="black", label=f"n^{exponent:g}")
        axes.set(xscale="log", yscale="log", xlabel="width", title=QUANTITIES[quantity])
        axes.legend(fontsize=8, frameon=False)
    return figure
