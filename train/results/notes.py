"""The lines below a table: bests, basins, gaps, transfer, and notes on runs it leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from train.results.analysis import Results
from train.results.basin import TOLERANCE
from train.results.collect import UNREADABLE
from train.results.names import Metric, lr_text, named
from train.run.folder import FINISHED
from train.run.tail import COUNTS

Row = pd.Series | Mapping[Any, Any]


def legend(results: Results, scale: str) -> str:
    """What the marks in the table of a scale mean."""
    cells = results.cells[results.cells["scale"] == scale]
    parts = ["* best lr", seeds_legend(cells)]
    if cells["combination"].nunique() > 1:
        names = " and ".join(results.axes.values())
        parts = [f"* best lr of a group, ** best lr and {names}", parts[1]]
    if run_as := sorted({*cells["run_as"]} - {""}):
        parts.append(f"= the run of {' and '.join(run_as)}: at its base scale one for all methods")
    if note := carried_note(results, scale):
        parts.append(note)
    return ", ".join(parts)


def marked_cells(results: Results, scale: str) -> pd.DataFrame:
    """The cells of a scale; ``carried`` is True at the best lr of the scale it is carried from."""
    cells = results.cells[results.cells["scale"] == scale]
    rows = results.transfer[["scale", "method", "lr"]].itertuples(index=False, name=None)
    carried = set() if results.axes else set(rows)
    places = cells[["scale", "method", "lr"]].itertuples(index=False, name=None)
    return cells.assign(carried=[place in carried for place in places])


def carried_note(results: Results, scale: str) -> str:
    """What the mark of carried learning rates means; empty if no cell has it."""
    if not marked_cells(results, scale)["carried"].any():
        return ""
    here = results.transfer[results.transfer["scale"] == scale]
    return f"^ best lr of {' and '.join(sorted({*here['from_scale']}))}"


def best_lines(results: Results, scale: str) -> list[str]:
    """One line per method with its best loss and lr, then one per method with its basin."""
    here = results.methods[results.methods["scale"] == scale]
    if here["at_base"].all():  # one run
        here = here.head(1).assign(method="of every method" if len(here) > 1 else here["method"])
    width = here["method"].str.len().max()
    bests, basins = [], []
    for _, row in here.iterrows():
        method = row["method"].ljust(width)
        best = "none"
        if not math.isnan(row["best_loss"]):
            constants = f", {row['combination']}" if row["combination"] else ""
            best = f"{row['best_loss']:.4f} at lr {lr_text(row['best_lr'])}{constants}"
            basins.append(f"basin {method}   {basin_text(row)}")
        if row["lower_where_diverged"]:
            best += " (lower only where a seed diverged)"
        bests.append(f"best {method}   {best}")
    return bests + basins


def basin_text(row: pd.Series) -> str:
    """E.g. "within 0.05 over >=1.48 decades (2.1e-3 to >=6e-2)"."""
    low = ("<=" if row["basin_low_end"] == "open" else "") + _short(row["basin_low"])
    high = (">=" if row["basin_high_end"] == "open" else "") + _short(row["basin_high"])
    width = (">=" if row["basin_lower_bound"] else "") + f"{row['basin_decades']:.2f}"
    return f"within {TOLERANCE:g} over {width} decades ({low} to {high})"


def gap_lines(results: Results, scale: str) -> list[str]:
    """One line per method and reference: the gap, and whether it is significant."""
    here = results.gaps[results.gaps["scale"] == scale]
    width = here["method"].str.len().max() if len(here) else 0
    lines = []
    for _, row in here.iterrows():
        line = f"{row['method'].ljust(width)} - {row['reference']}: {row['gap']:+.4f}"
        lines.append(f"{line}, {verdict_text(row)}")
    return lines


def verdict_text(row: pd.Series) -> str:
    """The significance of a row of `Results.gaps`."""
    seeds = sorted({row["seeds"], row["reference_seeds"]})
    count = f"n = {' and '.join(map(str, seeds))}"
    if row["verdict"] == "noise unknown":
        return f"too few seeds to tell it from noise ({count})"
    side = "within" if row["verdict"] == "within noise" else "beyond"
    return f"{side} one standard deviation over seeds ({row['noise']:.4f}, {count})"


def origin(results: Results) -> str:
    """Where the carried lr is from: "learning rate of the smallest scale"."""
    what = "learning rate and constants" if results.axes else "learning rate"
    return f"{what} of the {'base' if _have_base(results) else 'smallest'} scale"


def transfer_title(results: Results) -> str:
    scale = "base" if _have_base(results) else "smallest"
    what = "lr and constants" if results.axes else "lr"
    return f"transfer: loss at the {scale} scale's best {what} - best loss"


def _have_base(results: Results) -> bool:
    return bool(results.cells["at_base"].any())


def transfer_lines(results: Results) -> list[str]:
    """One line per method and scale that something is carried to."""
    rows = results.transfer
    method = rows["method"].str.len().max() if len(rows) else 0
    scale = rows["scale"].str.len().max() if len(rows) else 0
    return [
        f"{row['method'].ljust(method)}   {row['from_scale']} -> {row['scale'].ljust(scale)}   "
        f"lr {lr_text(row['lr'])}{', ' * bool(row['combination'])}{row['combination']}   "
        f"{regret_text(row)}"
        for _, row in rows.iterrows()
    ]


def regret_text(row: Row) -> str:
    """The regret in a row of `Results.transfer`, or why there is none."""
    if row["outcome"] == "diverged":
        return "diverged at that lr"
    if row["outcome"] == "missing":
        return "no finished run at that lr"
    if math.isnan(row["regret"]):
        return "no best to compare with"
    interval = interval_text(row)
    return f"regret {row['regret']:.4f}" + (f" ({interval})" if interval else "")


def interval_text(row: Row) -> str:
    """The 95% interval of a regret, or "" if there is none; or that it compares other seeds."""
    if math.isnan(row["low"]):
        unpaired = row["seeds"] == 0 and math.isfinite(row["regret"])
        return "no seed in common" if unpaired else ""
    return f"95% {row['low']:.4f} to {row['high']:.4f}, n = {row['seeds']}"


def run_notes(runs: pd.DataFrame, metric: Metric) -> list[str]:
    """What the table of one scale leaves out or mixes."""
    notes = []
    ended = runs["state"].isin(FINISHED)
    if not ended.all():
        counts = runs.loc[~ended, "state"].value_counts(sort=False)
        notes.append(f"not finished: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    completed = runs[runs["state"] == "completed"]
    lacking = completed[completed[metric].isna()]
    if len(lacking):
        notes.append(f"completed without a {metric} loss: {named(lacking['path'])}")
    corrupt = runs[runs["skipped_lines"] > 0]
    if len(corrupt):
        lines = corrupt["skipped_lines"].sum()
        notes.append(f"corrupt lines of metrics skipped: {lines}, in {named(corrupt['path'])}")
    bad = runs.loc[runs["bad_summary"].fillna("") != "", "bad_summary"]
    if len(bad):
        notes.append(f"unusable summaries, metrics read instead: {named(bad)}")
    for column, words in COUNTS.items():
        affected = runs[runs[column] > 0]
        if len(affected):
            # A bound that acts is no fault, so no run is named.
            where = f"{len(affected)} runs" if column == "bounded" else named(affected["path"])
            notes.append(f"{words}: {affected[column].sum():.0f}, in {where}")
    averaged = completed[completed[metric].notna()]
    same = ["method", "combination", "lr", "seed"]
    again = averaged[averaged.duplicated(same, keep=False)]
    if len(again):
        notes.append(f"several runs with the same seed, all in the mean: {named(again['path'])}")
    # Numbers with a point where an unreadable run is beside them.
    steps = sorted(averaged["steps"].astype(int).unique())
    if len(steps) > 1:
        notes.append(f"runs of different lengths: {', '.join(map(str, steps))} steps")
    made_with: dict[str, set[str]] = {}
    for name, version in (item for one in averaged["made_with"] for item in one.items()):
        made_with.setdefault(name, set()).add(version)
    several = [f"{n} {' and '.join(sorted(v))}" for n, v in made_with.items() if len(v) > 1]
    if several:
        notes.append(f"runs of different versions: {', '.join(several)}")
    return notes


def unreadable_note(runs: pd.DataFrame) -> str | None:
    """The folders that cannot be read, if there are any."""
    unreadable = runs.loc[runs["state"] == UNREADABLE, "description"]
    return f"unreadable folders: {named(unreadable)}" if len(unreadable) else None


def every_note(results: Results) -> list[str]:
    """The `run_notes` of every scale, each after the scale's name, and the `unreadable_note`."""
    lines = [
        f"{scale}: {note}"
        for scale in results.scales
        for note in run_notes(results.runs[results.runs["scale"] == scale], results.metric)
    ]
    unreadable = unreadable_note(results.runs)
    return [*lines, unreadable] if unreadable else lines


def seeds_legend(cells: pd.DataFrame) -> str:
    """The number of seeds in the means of these cells."""
    counts = sorted({int(n) for n in cells["seeds"] if n})
    if not counts or counts == [1]:
        return "one seed" if counts else "no finished run"
    spread = "± standard deviation over seeds, n = "
    return spread + (f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}")


def _short(lr: float) -> str:
    digits, exponent = f"{lr:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"
