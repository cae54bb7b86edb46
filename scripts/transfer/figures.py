"""The figures of the experiment."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from scripts.transfer.added import LARGE_BATCH, LAW, horizon_curves, muon_curves, seeds_of
from scripts.transfer.plan import ARMS, BASE, DEPTH_ARMS, DEPTH_BASE, DEPTHS, WIDTHS, Arm
from scripts.transfer.results import (
    Data,
    best_lr,
    complete,
    optima,
    optimum,
    power,
    regret,
)
from scripts.transfer.runs import PARTS, TERMS
from train.method.methods import METHODS
from train.results import style
from train.results.names import lr_text

TERM_TITLES = {
    "align_z0_dW": "z0 and dW",
    "align_dZ_w0": "dz and W0",
    "align_dZ_dW": "dz and dW",
}
_MARKERS = "osD^vPX"


def loss(data: Data, part: str, arms: Mapping[str, Arm], sizes: Mapping[str, int]) -> Figure:
    """Loss against lr: a panel per arm, a line per size, bands of ± one standard error.

    A dotted line marks the carried lr, a ring the best one of each size.
    """
    base = next(iter(sizes))
    unit = "width" if part == "width" else "layers"
    carried = best_lr(data.curve(part, next(iter(arms)), base))
    with style.drawing():
        figure, panels = style.panels(len(arms), width=3.6, height=2.9)
        lows, highs = [], []
        for axes, (name, arm) in zip(panels, arms.items(), strict=True):
            for number, (scale, size) in enumerate(sizes.items()):
                curve = complete(data.curve(part, name, scale)).replace(math.inf, np.nan)
                if curve.empty:
                    continue
                mean, error = curve.mean(), curve.sem()
                color = style.PALETTE[number]
                axes.plot(
                    mean.index, mean, color=color, marker=_MARKERS[number], label=f"{unit} {size}"
                )
                axes.fill_between(mean.index, mean - error, mean + error, color=color, alpha=0.2)
                axes.plot(best_lr(curve), mean.min(), "o", mfc="none", ms=11, color=color)
                lows.append(mean.min())
                highs.append(mean[carried] if carried in mean else mean.min())
            axes.axvline(carried, color=style.INK, ls=":", lw=1)
            axes.set(title=arm.title, xscale="log", xlabel="learning rate")
        low, high = min(lows), max(highs)
        for axes in panels:
            axes.set_ylim(low - 0.05, high + 0.25 * (high - low) + 0.1)
            axes.set_xlim(
                min(a.dataLim.x0 for a in panels) / 1.3, max(a.dataLim.x1 for a in panels) * 1.3
            )
            axes.set_ylabel("validation loss (nats)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def best(data: Data, part: str, arms: Mapping[str, Arm], sizes: Mapping[str, int]) -> Figure:
    """The best lr over size, from parabolas, with its power; and the regret of the carried lr."""
    base = next(iter(sizes))
    with style.drawing():
        figure, (lrs, regrets) = style.panels(2, width=5.2, height=3.6)
        looks = style.looks(list(arms))
        carried = best_lr(data.curve(part, next(iter(arms)), base))
        highest = 0.0
        for number, (name, arm) in enumerate(arms.items()):
            color, marker = looks[name]
            curves = {size: data.curve(part, name, scale) for scale, size in sizes.items()}
            known = {size: c for size, c in curves.items() if not complete(c).empty}
            if not set(known) - {sizes[base]}:
                continue
            places = []
            for curve in known.values():
                mean = complete(curve).loc[:3].mean()
                places.append(optimum(list(mean.index), list(mean)))
            label = f"{arm.title}: {power(known).mean:+.2f}"
            lrs.plot(list(known), places, color=color, marker=marker, label=label)
            of = {
                size: regret(c, carried)
                for size, c in known.items()
                if size != sizes[base] and carried in c
            }
            shift = 1 + 0.03 * (number - len(arms) / 2)
            means = [i.mean for i in of.values()]
            highest = max([highest, *filter(math.isfinite, means)])
            errors = [
                [max(0.0, i.mean - i.low) for i in of.values()],
                [i.high - i.mean for i in of.values()],
            ]
            regrets.errorbar(
                [size * shift for size in of], means, np.nan_to_num(errors), color=color,
                marker=marker, capsize=2, label=arm.title,
            )  # fmt: skip
        unit = "width" if part == "width" else "layers"
        lrs.set(title="best learning rate, and its power", yscale="log", ylabel="learning rate")
        lrs.legend(fontsize=7.5)
        regrets.axhline(0.03, color=style.INK, ls=":", lw=1)
        regrets.set(title="regret of the carried learning rate", ylabel="nats (95% interval)")
        regrets.set_ylim(-0.05, max(0.1, 1.3 * highest))
        for axes in (lrs, regrets):
            _sizes(axes, list(sizes.values()), unit)
    return figure


def alignment(data: Data) -> Figure:
    """Measured alignment over training by layer type, at the carried lr; bands over seeds."""
    types = {"hidden": "hidden", "readout": "head", "scores": "QK^T"}
    carried = data.choice.lr
    with style.drawing():
        figure, panels = style.panels(9, width=3.6, height=2.5)
        for row, (of, title) in enumerate(types.items()):
            for column, term in enumerate(TERMS):
                axes = panels[3 * row + column]
                for number, (scale, width) in enumerate(WIDTHS.items()):
                    part, arm = ("base", "mup-full") if scale == BASE else ("width", "maxP")
                    rows = data.alignment(part, arm, scale, carried)
                    rows = rows[(rows["type"] == of) & (rows["term"] == term)]
                    if rows.empty:
                        continue
                    by = rows.groupby("fifth")["value"]
                    mean, low, high = by.mean(), by.min(), by.max()
                    x = (mean.index + 0.5) / PARTS * 100
                    color = style.PALETTE[number]
                    axes.plot(x, mean, color=color, marker=_MARKERS[number], label=f"width {width}")
                    axes.fill_between(x, low, high, color=color, alpha=0.2)
                axes.axhline(0.5, color=style.INK, ls=":", lw=1)
                axes.set(title=f"{title}: {TERM_TITLES[term]}", ylim=(0.4, 1.02))
                axes.set_ylabel("alignment")
                axes.set_xlabel("% of the steps after the warm-up")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=len(labels))
    return figure


def minima(curves: dict[int, pd.DataFrame], unit: str, law: float | None = None) -> Figure:
    """Loss against lr, a line per size; and the best lr of each seed over size, with its power.

    Args:
        law: power of a line through the best lr of the first size; None draws no line.
    """
    seeds = seeds_of(curves)
    with style.drawing():
        figure, (losses, lrs) = style.panels(2, width=5.2, height=3.6)
        lows, highs = [], []
        for number, (size, curve) in enumerate(curves.items()):
            kept = complete(curve, seeds).replace(math.inf, np.nan)
            mean, error, color = kept.mean(), kept.sem(), style.PALETTE[number]
            label, marker = f"{unit} {size:,}", _MARKERS[number]
            losses.plot(mean.index, mean, color=color, marker=marker, label=label)
            losses.fill_between(mean.index, mean - error, mean + error, color=color, alpha=0.2)
            losses.plot(best_lr(kept, seeds), mean.min(), "o", mfc="none", ms=11, color=color)
            lows.append(mean.min())
            highs.append(mean.max())
        losses.set(title="loss", xscale="log", xlabel="learning rate", ylabel="nats per token")
        tried = sorted({float(str(lr)) for curve in curves.values() for lr in curve})
        losses.set_xticks(tried, list(map(lr_text, tried)))
        losses.xaxis.set_minor_locator(NullLocator())
        losses.set_ylim(min(lows) - 0.05, min(max(highs), min(lows) + 1) + 0.05)
        losses.legend()
        sizes = np.array(list(curves))
        places = np.array([optima(curve, seeds) for curve in curves.values()])
        middle = np.exp(np.log(places).mean(1))
        for seed in places.T:
            lrs.plot(sizes, seed, ".", color=style.INK, alpha=0.5)
        fit = f"measured: {power(curves, seeds).mean:+.2f}" if len(curves) > 1 else "measured"
        lrs.plot(sizes, middle, color=style.PALETTE[0], marker="o", label=fit)
        if law is not None:
            line = middle[0] * (sizes / sizes[0]) ** law
            lrs.plot(sizes, line, "--", color=style.PALETTE[1], label=f"law: {law:+.2f}")
        lrs.set(title="best learning rate, and its power", yscale="log", ylabel="learning rate")
        lrs.legend()
        _sizes(lrs, list(curves), unit)
    return figure


def all_figures(data: Data) -> dict[str, Figure]:
    """File name -> figure, of the parts that have runs."""
    methods = {name: arm for name, arm in ARMS.items() if name in METHODS}
    made = {
        "methods": loss(data, "width", methods, WIDTHS),
        "loss": loss(data, "width", ARMS, WIDTHS),
        "transfer": best(data, "width", ARMS, WIDTHS),
        "alignment": alignment(data),
    }
    if not data.curve("depth", "depth-1", DEPTH_BASE).empty:
        made["depth_loss"] = loss(data, "depth", DEPTH_ARMS, DEPTHS)
        made["depth_transfer"] = best(data, "depth", DEPTH_ARMS, DEPTHS)
    if curves := horizon_curves(data):
        made["horizon"] = minima(curves, "tokens", LAW)
    if curves := muon_curves(data):
        made["muon"] = minima(curves, "width")
    if curves := muon_curves(data, LARGE_BATCH):
        made["muon_tokens_x4"] = minima(curves, "width")
    return made


def _sizes(axes: Axes, sizes: list[int], unit: str) -> None:
    axes.set_xscale("log")
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(unit)
