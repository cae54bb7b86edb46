"""Shows the result of a coordinate check as a table and as a figure."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maxp.diagnose.slopes import CANNOT_TELL, RIGHT, WRONG, Array, SiteStats, Slope
from maxp.module import few

# The largest number of sites that the summary and the legend of a figure name.
_NAMED = 16

# Widths up to this multiple of the largest one of a check are worth naming.
_REACH = 16


def print_axis(
    name: str,
    all_ops: Sequence[str],
    affected: Sequence[str],
    act_stats: Mapping[str, SiteStats],
    widths: Sequence[int],
) -> None:
    """Print a table with one line per site, and a summary.

    Args:
        name: the title.
        all_ops: the sites to show, as `diagnose_axis` returned them.
        affected: as `diagnose_axis` returned it.
        act_stats: as `diagnose_axis` returned it.
        widths: as passed to `diagnose_axis`.
    """
    rows = [("site", "init", "derived", "change", "derived", "verdict", "")]
    for op in all_ops:
        stats = act_stats[op]
        columns = (*_columns(stats.init), *_columns(stats.change))
        rows.append((op, *columns, stats.verdict, stats.text))
    lengths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, lengths)).rstrip() for row in rows]
    if any(" *" in text for row in rows for text in (row[2], row[4])):
        lines.append("* not as measured; derived slopes hold at large widths, for aligned updates")
    over = f"widths {min(widths)} to {max(widths)}"
    seeds = len(act_stats[all_ops[0]].init_rms)
    print(f"{name}: slopes of log rms against log width, {over}, {seeds} seeds")
    print("\n".join([*lines, *explain(all_ops, act_stats)]))
    verdicts = [act_stats[op].verdict for op in all_ops]
    if affected:
        some = few([f"{op} ({act_stats[op].text})" for op in affected], _NAMED)
        print(f"{name}: {len(affected)} of {len(all_ops)} sites are wrong over {over}: {some}")
    elif CANNOT_TELL in verdicts:
        told = verdicts.count(RIGHT)
        print(f"{name}: no site is wrong, {told} of {len(all_ops)} are right over {over}")
    else:
        print(f"{name}: all {len(all_ops)} sites are right over {over}")


def explain(all_ops: Sequence[str], act_stats: Mapping[str, SiteStats]) -> list[str]:
    """One line per fault, and per width that would tell; sites of which it is the same share it.

    Args:
        all_ops: the sites to explain. Faults of all sites are explained.
        act_stats: as `diagnose_axis` returned it.
    """
    faults: dict[str, list[str]] = {}
    others: dict[str, list[str]] = {}
    for op, stats in act_stats.items():
        for fault in stats.faults:
            faults.setdefault(str(fault), []).append(op)
        if op not in all_ops:
            continue
        if stats.verdict == WRONG and not stats.faults:
            others.setdefault(f"wrong only after {few(stats.after, _NAMED)}", []).append(op)
        if stats.widths is not None:
            first, last = stats.widths
            within_reach = last <= _REACH * stats.change.span[1]
            need = (
                f"widths {first} to {last} would, or more seeds" if within_reach else "raise seeds"
            )
            others.setdefault(f"{CANNOT_TELL}; {need}", []).append(op)
    return [f"{few(ops, _NAMED)}: {text}" for text, ops in (*faults.items(), *others.items())]


def _columns(slope: Slope) -> tuple[str, str]:
    zero = slope.mean == -math.inf
    measured = "zero" if zero else f"{slope.mean:+.3f} +- {slope.error:.3f}"
    # Rounded first and + 0.0, so that there is no -0.00.
    derived = "zero" if math.isinf(slope.derived) else f"{round(slope.derived, 2) + 0.0:+.2f}"
    return measured, derived + ("" if slope.near(slope.derived) else " *")


def plot_axis(
    name: str,
    all_ops: Sequence[str],
    affected: Sequence[str],
    act_stats: Mapping[str, SiteStats],
    widths: Sequence[int],
    *,
    filename: str | os.PathLike[str],
) -> None:
    """Plot rms against width, at init and of the change, and write the figure to ``filename``.

    There is one line per site: the geometric mean over seeds, with a band of one standard error. It
    is dashed if the slope is not as wanted. A dotted line through the first point has the derived
    slope. If there are more than 16 sites, the legend names affected ones only.

    Args:
        name: the title.
        all_ops: the sites to show, as `diagnose_axis` returned them.
        affected: as `diagnose_axis` returned it.
        act_stats: as `diagnose_axis` returned it.
        widths: as passed to `diagnose_axis`.
        filename: its extension (png, pdf, svg) sets the format.

    Raises:
        ValueError: matplotlib cannot write files with this extension.
    """
    # Not pyplot, which would choose a backend for the whole process.
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"{name} (dotted: derived slope)")
    colors = colormaps["viridis"](np.linspace(0, 0.92, len(all_ops)))
    named = set(all_ops if len(all_ops) <= _NAMED else affected[:_NAMED])
    ticks = sorted(set(widths))
    for axes, what in zip(figure.subplots(1, 2), ("init", "change"), strict=True):
        for op, color in zip(all_ops, colors, strict=True):
            rms, slope = getattr(act_stats[op], f"{what}_rms"), getattr(act_stats[op], what)
            _draw(axes, f"{op}: {slope}" if op in named else None, rms, slope, widths, color)
        axes.set(xscale="log", yscale="log", xlabel="width", ylabel=f"rms, {what}")
        axes.set_xticks(ticks, [str(width) for width in ticks])
        axes.set_xticks([], minor=True)
        low, high = axes.get_ylim()
        widen = max(1.0, ticks[-1] / ticks[0] * low / high) ** 0.5  # or noise would fill the panel
        axes.set_ylim(low / widen, high * widen)
        if named:
            axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    path = Path(filename)
    unfinished = path.with_name(f".{path.stem}.unfinished{path.suffix}")
    figure.savefig(unfinished, dpi=150)
    os.replace(unfinished, path)


def _draw(
    axes: Any, label: str | None, rms: Array, slope: Slope, widths: Sequence[int], color: Any
) -> None:
    style = "-" if slope.near(slope.wanted) else "--"
    if not math.isfinite(slope.mean):
        axes.plot([], [], style, color=color, label=label)  # no logarithm to plot
        return
    order = np.argsort(widths)
    x, logs = np.asarray(widths, dtype=np.float64)[order], np.log(rms[:, order])
    mean, error = logs.mean(0), logs.std(0, ddof=1) / math.sqrt(len(logs))
    axes.plot(x, np.exp(mean), style, color=color, marker=".", label=label)
    axes.fill_between(x, np.exp(mean - error), np.exp(mean + error), color=color, alpha=0.2, lw=0)
    if math.isfinite(slope.derived):
        axes.plot(x, np.exp(mean[0]) * (x / x[0]) ** slope.derived, ":", color=color, lw=1)
