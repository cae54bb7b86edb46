"""The plots of a sweep: loss over lr, transfer across scales, and the gap to a reference."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from train.results import style
from train.results.analysis import Results
from train.results.names import lr_text
from train.run.files import write_whole

LOSS_LABELS = {"validation": "validation loss (nats)", "train": "training loss (nats)"}

_PAGE = 12.6  # inches, the width of three panels
_FEW = 5  # with fewer means than this, none is left out as too high


def loss_against_lr(results: Results, columns: int = 3) -> Figure:
    """Mean loss over seeds with a band of one standard deviation: one panel per scale.

    All panels have the same learning rates. A ring marks each method's best lr, a cross at the top
    an lr at which a seed diverged.
    """
    looks = style.looks(results.methods_order)
    lrs = sorted(results.cells["lr"].unique())
    with style.drawing():
        figure, panels = style.panels(len(results.scales), columns=columns)
        for axes, scale in zip(panels, results.scales, strict=True):
            cells = results.cells[results.cells["scale"] == scale]
            for position, (method, look) in enumerate(looks.items()):
                column = cells[cells["method"] == method].sort_values("lr")
                _line(axes, column, look, crosses=0.985 - 0.045 * position)
            shared = ", one run for all methods" if cells["at_base"].all() else ""
            axes.set(title=f"{scale}{shared}", xscale="log", xlabel="learning rate")
            _leave_out_the_highest(axes, cells.loc[cells["diverged"] == 0, "mean"].dropna())
            _lr_ticks(axes, lrs)
            axes.set_xlim(lrs[0] / 1.3, lrs[-1] * 1.3)
        for axes in panels[::columns]:
            axes.set_ylabel(LOSS_LABELS[results.metric])
        _legend(figure, looks, columns)
    return figure


def transfer(results: Results, columns: int = 3) -> Figure:
    """Best lr, best loss and transfer regret over the scales, one line per method."""
    looks = style.looks(results.methods_order)
    sizes = results.runs.groupby("scale")["parameters"].max()
    known = bool(results.scales) and not sizes[results.scales].isna().any()
    places = {s: float(sizes[s]) if known else i for i, s in enumerate(results.scales)}
    with style.drawing():
        figure, (lr_axes, loss_axes, regret_axes) = style.panels(3, columns=columns)
        for position, (method, (colour, marker)) in enumerate(looks.items()):
            rows = results.methods[results.methods["method"] == method].dropna(subset=["best_loss"])
            # Lines of methods that agree overlap: those below are wider.
            wider = len(looks) - 1 - position
            line: Any = {"color": colour, "marker": marker}
            line |= {"linewidth": 1.6 + 1.1 * wider, "markersize": 5 + 2 * wider}
            at = rows["scale"].map(places)
            lr_axes.plot(at, rows["best_lr"], **line)
            loss_axes.errorbar(at, rows["best_loss"], rows["best_std"].fillna(0), capsize=2, **line)
            moved = results.transfer[results.transfer["method"] == method]
            measured = moved[np.isfinite(moved["regret"])]
            regret_axes.plot(measured["scale"].map(places), measured["regret"], **line)
            lost = moved.loc[moved["outcome"] == "diverged", "scale"].map(places)
            _crosses(regret_axes, lost, colour, height=1.0)
        lr_axes.set(title="best learning rate", yscale="log", ylabel="learning rate")
        loss_axes.set(title="loss at the best learning rate", ylabel=LOSS_LABELS[results.metric])
        regret_axes.set(title="transfer regret", ylabel="nats above the best")
        regret_axes.axhline(0, color=style.GRID, linewidth=1)
        lrs = sorted(results.cells["lr"].unique())
        lr_axes.set_ylim(lrs[0] / 1.3, lrs[-1] * 1.3)
        _lr_ticks(lr_axes, lrs, axis="y")
        for axes in (lr_axes, loss_axes, regret_axes):
            if known:
                axes.set_xscale("log")
            axes.set_xticks(list(places.values()), list(places))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xlabel("scale (placed by parameters)" if known else "scale")
            axes.margins(x=0.1)
        _legend(figure, looks, columns)
    return figure


def gap_map(results: Results, columns: int = 3) -> Figure | None:
    """Loss of each method minus that of each reference, over scale and lr: one panel per pair.

    None without a reference. Blue is lower than the reference, red higher. A cell without a number
    says why: the method, the reference or both diverged (div.), or one has no finished run (–).
    """
    pairs = [
        (method, reference)
        for position, reference in enumerate(results.references)
        for method in results.methods_order
        if method not in results.references[: position + 1]
    ]
    if not pairs:
        return None
    lrs = sorted(results.cells["lr"].unique())
    losses = results.cells["mean"].mask(results.cells["diverged"] > 0, math.inf)
    tables = {
        method: rows.pivot(index="scale", columns="lr", values="mean")
        .reindex(index=results.scales, columns=lrs)
        .to_numpy()
        for method, rows in results.cells.assign(mean=losses).groupby("method")
    }
    with np.errstate(invalid="ignore"):
        gaps = [np.ma.masked_invalid(tables[method] - tables[other]) for method, other in pairs]
    limit = max((float(abs(gap).max()) for gap in gaps if gap.count()), default=0) or 1.0
    with style.drawing():
        width = _PAGE / 3 * columns / min(columns, max(2, len(pairs)))
        height = 1.0 + 0.36 * len(results.scales)
        figure, panels = style.panels(len(pairs), columns=columns, width=width, height=height)
        for axes, (method, other), gap in zip(panels, pairs, gaps, strict=True):
            mesh = axes.pcolormesh(gap, cmap="RdBu_r", vmin=-limit, vmax=limit, edgecolors="none")
            for place in np.ndindex(gap.shape):
                text = _gap_text(tables[method].item(place), tables[other].item(place))
                strong = not np.ma.is_masked(gap[place]) and abs(gap[place]) > 0.6 * limit
                axes.text(
                    place[1] + 0.5, place[0] + 0.5, text, ha="center", va="center", fontsize=8,
                    color="white" if strong else style.INK
                    if np.ma.is_masked(gap[place]) else "#111111",
                )  # fmt: skip
            axes.set(title=f"{method} - {other}", xlabel="learning rate")
            axes.set_xticks(np.arange(len(lrs)) + 0.5, [lr_text(lr) for lr in lrs])
            axes.set_yticks(np.arange(len(results.scales)) + 0.5, results.scales)
            axes.grid(False)
            for spine in axes.spines.values():
                spine.set_visible(False)
        for axes in panels[::columns]:
            axes.set_ylabel("scale")
        bar = figure.colorbar(mesh, ax=panels, shrink=0.9, pad=0.02)
        bar.set_label("difference (nats)")
        bar.outline.set_visible(False)
    return figure


def figures(results: Results, columns: int = 3) -> dict[str, Figure]:
    """File name -> plot, for all plots that the results have data for."""
    makers: dict[str, Callable[[Results, int], Figure | None]] = {
        "loss_against_lr": loss_against_lr
    }
    if len(results.scales) > 1 and results.methods["best_loss"].notna().any():
        makers["transfer"] = transfer
    makers["gap"] = gap_map
    if results.cells.empty:
        return {}
    made = {name: make(results, columns) for name, make in makers.items()}
    return {name: figure for name, figure in made.items() if figure is not None}


def each_figure(results: Results, columns: int = 3) -> Iterator[tuple[str, str, Figure]]:
    """File name, name and plot, for each plot of each combination of the axes' values."""
    for number, (combination, part) in enumerate(results.parts.items(), start=1):
        for name, figure in figures(part, columns).items():
            if combination:
                with style.drawing():
                    figure.suptitle(combination, fontsize=9)
            yield f"{name}_{number}" if combination else name, name, figure


def write_plots(results: Results, folder: str | os.PathLike[str]) -> list[Path]:
    """Write every plot as PNG and SVG into ``folder``, created if needed; returns the files."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    written = []
    for name, _, figure in each_figure(results):
        for kind in ("png", "svg"):
            file = target / f"{name}.{kind}"
            write_whole(file, style.to_bytes(figure, kind))
            written.append(file)
    return written


def _line(axes: Axes, column: pd.DataFrame, look: tuple[str, str], *, crosses: float) -> None:
    colour, marker = look
    held = column[column["diverged"] == 0].dropna(subset=["mean"])
    axes.plot(held["lr"], held["mean"], color=colour, marker=marker)
    std = held["std"].fillna(0)
    axes.fill_between(
        held["lr"], held["mean"] - std, held["mean"] + std, color=colour, alpha=0.18, linewidth=0
    )
    best = column[column["best"]]
    axes.plot(
        best["lr"], best["mean"], "o", markersize=11, markerfacecolor="none", markeredgecolor=colour
    )
    _crosses(axes, column.loc[column["diverged"] > 0, "lr"], colour, height=crosses)


def _crosses(axes: Axes, at: pd.Series[float], colour: str, *, height: float) -> None:
    """Mark places that diverged, and so have no loss, at this height of the axes."""
    for place in at:
        axes.plot(
            place, height, "x", color=colour, transform=axes.get_xaxis_transform(), clip_on=False,
            markeredgewidth=1.6,
        )  # fmt: skip


def _leave_out_the_highest(axes: Axes, means: pd.Series[float]) -> None:
    """End the axis below losses that would flatten the others, and show how many there are."""
    if len(means) < _FEW:
        return
    low, middle = means.min(), means.median()
    top = low + 4 * (middle - low)
    above = int((means > top).sum())
    if above and top > low:
        margin = 0.06 * (top - low)
        axes.set_ylim(low - margin, top + margin)
        axes.text(
            1.02, 0.99, f"{above} higher", transform=axes.transAxes, ha="left", va="top",
            fontsize=8, rotation=-90,
        )  # fmt: skip


def _lr_ticks(axes: Axes, lrs: list[float], axis: str = "x") -> None:
    """Ticks at the lrs that were run, at most eight."""
    shown = lrs[:: max(1, -(-len(lrs) // 8))]
    side = axes.xaxis if axis == "x" else axes.yaxis
    side.set_ticks(shown, labels=[lr_text(lr) for lr in shown])
    side.set_minor_locator(NullLocator())


def _legend(figure: Figure, looks: dict[str, tuple[str, str]], columns: int) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, label=method)
        for method, (colour, marker) in looks.items()
    ]
    most = 3 * columns  # more names are wider than the panels
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), most))


def _gap_text(here: float, there: float) -> str:
    """The difference, or why there is none; a loss is infinite where a seed diverged."""
    if math.isfinite(here - there):
        return f"{here - there:+.3f}"
    diverged = (math.isinf(here), math.isinf(there))
    return {
        (True, True): "both div.",
        (True, False): "div.",
        (False, True): "ref. div.",
        (False, False): "–",
    }[diverged]
