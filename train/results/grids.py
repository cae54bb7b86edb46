"""The tables of the HTML report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from train.results import notes
from train.results.analysis import Results
from train.results.axes import axes_of
from train.results.collect import UNREADABLE
from train.results.details import Details, hours_name
from train.results.formats import accuracy_text
from train.results.names import in_order, lr_text, value_text

_COMMIT = 9  # characters shown of a commit


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | str | None = None
    """The value to sort by: by default the text; "" sorts last."""
    kind: str = ""
    """CSS classes."""
    remark: str = ""
    bad: bool = False
    """Whether the remark is a warning."""
    link: str = ""
    run: int | None = None
    """Position of the run that a click shows."""


@dataclass(frozen=True)
class Table:
    heads: list[str]
    rows: list[list[Cell]]


_NONE = Cell("–", "")


def summary_grid(results: Results) -> Table:
    """Loss at the best and at the carried lr, regret and basin: one row per scale and method."""
    transfer = {(row["scale"], row["method"]): row for _, row in results.transfer.iterrows()}
    heads = ["scale", "method", "best loss", "best lr", "loss at carried lr", "carried lr"]
    heads += ["regret of carried lr", "basin, decades"]
    lowest = results.methods.groupby("scale")["best_loss"].min()
    rows = []
    for _, row in results.methods.iterrows():
        cells = [_words(row["scale"], results.scales.index(row["scale"])), _words(row["method"])]
        basin = _NONE
        if math.isnan(row["best_loss"]):
            cells += [_NONE] * 2
        else:
            best = "best" if row["best_loss"] == lowest[row["scale"]] else ""
            spread = "" if math.isnan(row["best_std"]) else f"± {row['best_std']:.4f}, "
            count = f"{spread}n = {row['best_seeds']}"
            edge = f"{row['edge']} lr of the grid" if row["edge"] else ""
            remark = ", ".join(filter(None, [row["combination"], edge]))
            bound = "≥ " if row["basin_lower_bound"] else ""
            cells.append(Cell(f"{row['best_loss']:.4f}", row["best_loss"], best, count))
            lr = row["best_lr"]
            cells.append(Cell(lr_text(lr), lr, remark=remark, bad=bool(edge)))
            basin = Cell(f"{bound}{row['basin_decades']:.2f}", row["basin_decades"])
        cells += [*_carried(transfer.get((row["scale"], row["method"]))), basin]
        rows.append(cells)
    return Table(heads, rows)


def gap_grid(results: Results) -> Table | None:
    """Differences of best losses: one row per scale, a column per pair; None without any."""
    pairs = list(dict.fromkeys(results.gaps[["method", "reference"]].itertuples(False, None)))
    at = {(r["scale"], r["method"], r["reference"]): r for _, r in results.gaps.iterrows()}
    scales = [scale for scale in results.scales if scale in set(results.gaps["scale"])]
    if not pairs:
        return None
    rows = [
        [
            _words(scale, results.scales.index(scale)),
            *(_gap(at[scale, *pair]) if (scale, *pair) in at else _NONE for pair in pairs),
        ]
        for scale in scales
    ]
    return Table(["scale", *(f"{method} - {reference}" for method, reference in pairs)], rows)


def loss_grid(cells: pd.DataFrame, results: Results) -> Table:
    """The loss table of one scale: a column per axis, lr, and a column per method."""
    methods = in_order(cells["method"].unique())
    grid: Any = cells.set_index(["combination", "lr", "method"])
    most = cells["seeds"].max()
    rows = []
    for combination, point in results.points.items():
        values = [Cell(value_text(value)) for value in point.values()]
        for lr in sorted(cells.loc[cells["combination"] == combination, "lr"].unique()):
            row = [*values, Cell(lr_text(lr), lr)]
            for method in methods:
                key = (combination, lr, method)
                row.append(_loss(grid.loc[key], most) if key in grid.index else _NONE)
            rows.append(row)
    return Table([*results.axes.values(), "lr", *methods], rows)


def problem_grid(runs: pd.DataFrame) -> Table | None:
    """Why runs failed or cannot be read, most frequent reason first; None if there are none."""
    bad = runs[runs["state"].isin(["failed", UNREADABLE])]
    if bad.empty:
        return None
    rows = [
        [
            Cell(str(len(group))),
            _words(str(state)),
            Cell(str(reason), kind="text long"),
            _words(Path(group["path"].iloc[0]).name),
        ]
        for (state, reason), group in bad.groupby(["state", "description"])
    ]
    rows.sort(key=lambda row: -int(row[0].text))
    return Table(["runs", "state", "reason", "for example"], rows)


def run_grid(runs: pd.DataFrame, several: list[Details], links: list[str]) -> Table:
    """State, numbers and provenance of every run.

    Args:
        several: the details of each run.
        links: address of each run's log; "" if it has none.
    """
    axes = axes_of(runs[runs["state"] != UNREADABLE])
    heads = ["run", "scale", "method", "lr", "seed", "state", "step", "loss", "validation"]
    images = bool(runs["accuracy"].notna().any())
    unit = "images" if images else "tokens"
    heads += [*["accuracy"] * images, "train, last 10%", unit, f"{unit}/s", hours_name(several)]
    heads += ["hardware", "commit", "log", *axes.values(), "reason"]
    rows = []
    for position, run in enumerate(runs.to_dict("records")):
        unread = run["state"] == UNREADABLE
        wrong = unread or run["state"] == "failed"
        bad = wrong or run["state"] == "diverged"
        more, link = several[position], links[position]
        name = Path(run["path"]).name
        rows.append(
            [
                _words(name) if unread else Cell(name, kind="text", run=position),
                _words("" if unread else run["scale"]),
                _words("" if unread else run["method"]),
                _NONE if unread else Cell(lr_text(run["lr"]), run["lr"]),
                _number(run["seed"], ".0f"),
                Cell(run["state"], kind="text bad" if bad else "text"),
                _number(run["step"], ".0f"),
                *(_number(run[name], ".4f") for name in ("loss", "validation")),
                *[_number(run["accuracy"], ".4f")] * images,
                _number(run["train"], ".4f"),
                _number(run["tokens"], ",.0f"),
                _number(run["tokens_per_second"], ",.0f"),
                _number(more.hours, ".2g" if more.hours < 1 else ",.1f"),
                _words(more.device),
                _words(commit_text(more.commit)),
                Cell("log", kind="text", link=link) if link else _words(""),
                *(_words(value_text(run["axes"].get(name))) for name in axes),
                Cell(run["description"], kind="text long") if wrong else _words(""),
            ]
        )
    return Table(heads, rows)


def commit_text(commit: str) -> str:
    """The first digits of a commit, with "+dirty" if it has that."""
    number, dirty, _ = commit.partition("+dirty")
    return number[:_COMMIT] + dirty


def _loss(cell: pd.Series, most: int) -> Cell:
    diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
    if cell["finished"] == 0:
        return Cell("", "", remark=diverged, bad=True) if diverged else _NONE
    remarks = [] if math.isnan(cell["std"]) else [f"± {cell['std']:.4f}"]
    remarks += [accuracy_text(cell)] if accuracy_text(cell) else []
    remarks += [f"n = {cell['seeds']}"] if cell["seeds"] != most else []
    remarks += [diverged] if diverged else []
    remarks += [f"= {cell['run_as']}"] if cell["run_as"] else []
    kind = "best" * bool(cell["best"]) + " of-all" * bool(cell["best_of_all"])
    return Cell(f"{cell['mean']:.4f}", cell["mean"], kind, ", ".join(remarks), bool(diverged))


def _gap(gap: pd.Series) -> Cell:
    count = f"n = {min(gap['seeds'], gap['reference_seeds'])}"
    side = "within" if gap["verdict"] == "within noise" else "beyond"
    remark = f"{side} one std ({gap['noise']:.4f}, {count})"
    if gap["verdict"] == "noise unknown":
        remark = f"too few seeds to tell ({count})"
    return Cell(f"{gap['gap']:+.4f}", gap["gap"], remark=remark)


def _carried(row: pd.Series | None) -> list[Cell]:
    """The loss at the carried lr, that lr, and its regret; nothing where the lr is from."""
    if row is None:
        return [_NONE] * 3
    lr = Cell(lr_text(row["lr"]), row["lr"], remark=f"from {row['from_scale']}")
    loss = _number(row["loss"], ".4f") if math.isfinite(row["loss"]) else _NONE
    if row["outcome"] == "measured" and not math.isnan(row["regret"]):
        return [loss, lr, Cell(f"{row['regret']:.4f}", row["regret"], remark=_interval(row))]
    bad = row["outcome"] == "diverged"
    return [loss, lr, Cell("", "", remark=notes.regret_text(row), bad=bad)]


def _interval(row: pd.Series) -> str:
    return notes.interval_text(row) or ("one seed, no interval" if row["seeds"] else "")


def _words(text: str, value: float | None = None) -> Cell:
    return Cell(text, value, "text")


def _number(value: float, form: str) -> Cell:
    return _NONE if value is None or math.isnan(value) else Cell(format(value, form), value)
