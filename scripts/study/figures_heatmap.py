"""Figures of the heat map's page: the heat map, the spiral, and activations in training."""

from typing import Any

import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scripts.study.figures import heat, new
from scripts.study.figures_training import shades
from scripts.study.mlp import METHODS
from scripts.study.spiral import spiral
from train.results.style import PALETTE


def readout_maps(ratios: pd.DataFrame) -> Figure:
    """The readout's gradient ratio, width by depth: standard beside muP, with one scale."""
    figure = new(10, 4.2, "readout: ‖grad W‖ / ‖W‖")
    names = {method: f"{method}_readout" for method in ("standard", "mup")}
    values = ratios[list(names.values())].to_numpy()
    norm = LogNorm(values.min(), values.max())
    axes_row = figure.subplots(1, 2)
    for axes, (method, column) in zip(axes_row, names.items(), strict=True):
        cells = ratios.pivot(index="depth", columns="width", values=column)
        image = heat(axes, cells, METHODS[method], norm, colors="cividis", size=9)
    figure.colorbar(image, ax=list(axes_row), label="‖grad W‖ / ‖W‖")
    return figure


def spiral_points() -> Figure:
    """The points of the spiral; the arm is the class."""
    x, arm = spiral()
    figure = new(4.6, 4.4, f"the spiral: {len(x)} points")
    axes = figure.subplots()
    for value, marker in enumerate("os"):
        mine = x[arm[:, 0] == value]
        label = f"class {value}"
        axes.scatter(mine[:, 0], mine[:, 1], 7, PALETTE[value], marker=marker, label=label)
    axes.set(xlabel="first input", ylabel="second input", aspect="equal", ylim=(-2.2, 2.8))
    axes.legend(ncols=2, loc="upper center", frameon=False)
    return figure


def activation_curves(trained: pd.DataFrame) -> Figure:
    """The last layer's scale and the loss over steps: one panel per depth, one line per width."""
    panels = {"activation": "rms before the readout", "loss": "loss of the batch"}
    depths = sorted(trained.depth.unique())
    figure = new(12, 6, "the spiral, standard parametrization, Adam at one learning rate")
    grid: Any = figure.subplots(len(panels), len(depths), sharex=True, sharey="row", squeeze=False)
    for axes_row, (quantity, label) in zip(grid, panels.items(), strict=True):
        axes_row[0].set_ylabel(label)
        for axes, depth in zip(axes_row, depths, strict=True):
            lines = trained[trained.depth == depth].groupby("width")
            for (width, mine), color in zip(lines, shades(len(lines)), strict=True):
                axes.plot(mine.step, mine[quantity], ".-", color=color, label=f"width {width}")
            axes.set(yscale="log")
    for axes, depth in zip(grid[0], depths, strict=True):
        axes.set_title(f"depth {depth}")
    for axes in grid[-1]:
        axes.set_xlabel("step")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure
