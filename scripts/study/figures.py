"""Figures of the single pass: heat maps, slopes beside derived lines, and finite sizes."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scripts.study.derived import QUANTITIES, RATIOS
from scripts.study.mlp import METHODS
from scripts.study.plan import OPTIMIZERS

COLORS = {"standard": "#c44e52", "mup": "#4c72b0", "maxP": "#55a868"}
NAMES = {"standard": "standard", "mup": "muP", "maxP": "maxP"}
# A fixed salt, no date, and letters left as letters: the same data give the same bytes.
_SVG: dict[Any, Any] = {"svg.hashsalt": "study", "svg.fonttype": "none"}


def new(width: float, height: float, title: str) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(title)
    return figure


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """As PNG and SVG, each written whole."""
    written = []
    for ending in ("png", "svg"):
        path = folder / f"{name}.{ending}"
        unfinished = folder / f".{name}.unfinished.{ending}"
        with mpl.rc_context(_SVG):
            metadata = {"Date": None} if ending == "svg" else {"Software": None}
            figure.savefig(unfinished, dpi=85, metadata=metadata)
        os.replace(unfinished, path)
        written.append(path)
    return written


def geometric(rows: pd.DataFrame, keys: Sequence[str], value: str) -> pd.Series:
    """Geometric means."""
    logs = np.log(rows.set_index(list(keys))[value])
    return np.exp(logs.groupby(level=list(range(len(keys)))).mean())


def heat(axes: Any, table: pd.DataFrame, title: str, norm: Any = None) -> Any:
    """Rows (depths) by columns (widths) with the numbers in the cells; returns the image."""
    image = axes.imshow(table.to_numpy(), norm=norm, cmap="viridis", origin="lower", aspect="auto")
    axes.set_xticks(range(len(table.columns)), [str(c) for c in table.columns])
    axes.set_yticks(range(len(table.index)), [str(i) for i in table.index])
    axes.set(xlabel="width", ylabel="depth", title=title)
    values = table.to_numpy(dtype=np.float64)
    shade = image.norm(values)
    for i, j in np.ndindex(*values.shape):
        color = "black" if shade[i, j] > 0.6 else "white"
        axes.text(j, i, f"{values[i, j]:.2g}", ha="center", va="center", color=color, fontsize=6.5)
    return image


def heat_maps(rows: pd.DataFrame, optimizer: str) -> Figure:
    """Methods side by side, width x depth: the readout's gradient ratio, and changes of outputs."""
    last = rows.depth - 2
    kinds = (
        ("readout, ‖grad W‖ / ‖W‖", rows.layer == rows.depth - 1, "gradient"),
        ("last hidden, ‖dW‖_2 / ‖W‖_2", (rows.layer == last) & (rows.depth > 2), "spectral"),
        ("last hidden, ‖dW z‖ / ‖W z‖", (rows.layer == last) & (rows.depth > 2), "output"),
        ("last hidden, total ‖dy‖ / ‖y‖", (rows.layer == last) & (rows.depth > 2), "total"),
    )
    figure = new(12, 11, f"{optimizer}: one step, geometric means over seeds")
    axes = figure.subplots(len(kinds), len(METHODS))
    for row, (name, chosen, quantity) in zip(axes, kinds, strict=True):
        mine = rows[chosen & (rows.optimizer == optimizer)]
        values = geometric(mine, ("method", "depth", "width"), quantity)
        norm = LogNorm(values.min(), values.max())
        for axis, method in zip(row, METHODS, strict=True):
            table = values.loc[method].unstack("width")
            image = heat(axis, table, f"{NAMES[method]}: {name}", norm)
        figure.colorbar(image, ax=list(row))
    return figure


def slope_lines(rows: pd.DataFrame, slopes: pd.DataFrame, depth: int) -> Figure:
    """The four quantities of one hidden layer against width, dotted the derived exponents."""
    layer = depth // 2
    figure = new(13, 6.5, f"hidden layer {layer} of depth {depth} (dotted: derived exponent)")
    for axes_row, optimizer in zip(figure.subplots(2, 4), OPTIMIZERS, strict=True):
        for axes, quantity in zip(axes_row, RATIOS, strict=True):
            for method in METHODS:
                here = (
                    (rows.method == method)
                    & (rows.optimizer == optimizer)
                    & (rows.depth == depth)
                    & (rows.layer == layer)
                )
                _line(axes, rows[here], quantity, method, slopes, optimizer, depth, layer)
            axes.set(xscale="log", yscale="log", xlabel="width")
            axes.set_title(f"{optimizer}: {QUANTITIES[quantity]}", fontsize=9)
            widths = sorted(rows.width.unique())
            axes.set_xticks(widths, [str(w) for w in widths], fontsize=7)
            axes.set_xticks([], minor=True)
            axes.legend(fontsize=6.5, frameon=False)
    return figure


def _line(
    axes: Any,
    rows: pd.DataFrame,
    quantity: str,
    method: str,
    slopes: pd.DataFrame,
    optimizer: str,
    depth: int,
    layer: int,
) -> None:
    about = {"method": method, "optimizer": optimizer, "depth": depth, "layer": layer}
    found = slopes[slopes.quantity == quantity]
    for key, value in about.items():
        found = found[found[key] == value]
    fit = found.iloc[0]
    logs = np.log(rows.pivot(index="seed", columns="width", values=quantity))
    mean, spread = logs.mean(), logs.std()
    x, color = mean.index.to_numpy(dtype=float), COLORS[method]
    label = f"{NAMES[method]} {fit['slope']:+.2f} (derived {fit['derived']:+.1f})"
    style = "--" if method == "maxP" else "-"
    axes.plot(x, np.exp(mean), style, marker=".", color=color, label=label, lw=1)
    low, high = np.exp(mean - spread), np.exp(mean + spread)
    axes.fill_between(x, low, high, color=color, alpha=0.15, lw=0)
    start = np.exp(mean.iloc[-1])
    axes.plot(x, start * (x / x[-1]) ** fit["derived"], ":", color=color, lw=1)


def finite_sizes(slopes: pd.DataFrame) -> Figure:
    """How far slopes are from derived ones, by depth, and what finite width and depth explain."""
    figure = new(12, 4, "measured slope - derived exponent, every layer (mean and 95% interval)")
    for axes, quantity in zip(figure.subplots(1, 4, sharey=True), RATIOS, strict=True):
        mine = slopes[(slopes.quantity == quantity) & (slopes.method == "mup")]
        for k, (optimizer, frame) in enumerate(mine.groupby("optimizer")):
            x = np.log2(frame.depth) + (0.18 * k - 0.09) + 0.12 * (frame.layer / frame.depth - 0.5)
            axes.errorbar(x, frame.off, frame.half, fmt=".", ms=3, lw=0.4, label=str(optimizer))
            finite = frame.finite - frame.derived
            axes.plot(x, finite, "_", color="black", ms=5, label="finite sizes" if k else None)
        axes.axhspan(-0.1, 0.1, color="grey", alpha=0.15)
        depths = sorted(slopes.depth.unique())
        axes.set_xticks(np.log2(depths), [str(d) for d in depths])
        axes.set(xlabel="depth", title=QUANTITIES[quantity])
        axes.legend(fontsize=7, frameon=False)
    return figure


def vector_norms(rows: pd.DataFrame, depth: int) -> Figure:
    """Step by step from ‖z‖ to the change of the output: standard, Adam, one lr."""
    layer = depth // 2
    mine = rows[(rows.method == "standard") & (rows.optimizer == "adam") & (rows.depth == depth)]
    mine = mine[mine.layer == layer]
    steps = (("z", 0.5), ("grad", 0.5), ("frobenius", 0.5), ("spectral", 1.0), ("output", 1.0))
    figure = new(13, 2.8, f"standard, Adam at one lr: hidden layer {layer} of depth {depth}")
    for axes, (quantity, exponent) in zip(figure.subplots(1, len(steps)), steps, strict=True):
        means = geometric(mine, ["width"], quantity)
        x, y = means.index.to_numpy(dtype=float), means.to_numpy()
        axes.plot(x, y, "o-", color=COLORS["standard"], ms=3)
        axes.plot(x, y[-1] * (x / x[-1]) ** exponent, ":", color="black", label=f"n^{exponent:g}")
        axes.set(xscale="log", yscale="log", xlabel="width", title=QUANTITIES[quantity])
        axes.legend(fontsize=8, frameon=False)
    return figure
