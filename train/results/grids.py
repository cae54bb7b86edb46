"""The report's tables: each cell as text to read and, where it differs, a value to sort by."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from train.results import notes
from train.results.analysis import Results
from train.results.collect import UNREADABLE
from train.results.names import in_order, lr_text


@dataclass(frozen=True)
class Head:
    name: str
    text: bool = False
    """Words, aligned left, not numbers."""


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | str | None = None
    """What sorting looks at; the text by default, "" for what comes last."""
    kind: str = ""
    remark: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Table:
    heads: list[Head]
    rows: list[list[Cell]]


def summary_grid(results: Results) -> Table:
    """A row for each scale and method: its best, basin, regret, and gap to the reference."""
    keys = ["scale", "method"]
    transfer = {(r["scale"], r["method"]): r for _, r in results.transfer.iterrows()}
    gaps = {(r["scale"], r["method"]): r for _, r in results.gaps.iterrows()}
    heads = [Head("scale", True), Head("method", True), Head("best loss"), Head("at lr")]
    heads += [Head("basin, decades"), Head("transfer regret")]
    heads += [Head(f"gap to {results.reference}"), Head("that gap is", True)]
    lowest = results.methods.groupby("scale")["best_loss"].min()
    rows = []
    for _, row in results.methods.iterrows():
        position = results.scales.index(row["scale"])
        cells = [_words(row["scale"], value=position), _words(row["method"])]
        if math.isnan(row["best_loss"]):
            cells += [Cell("–", ""), Cell("–", ""), Cell("–", "")]
        else:
            best = "best" if row["best_loss"] == lowest[row["scale"]] else ""
            spread = "" if math.isnan(row["best_std"]) else f"± {row['best_std']:.4f}, "
            count = f"{spread}n = {row['best_seeds']}"
            cells.append(Cell(f"{row['best_loss']:.4f}", row["best_loss"], best, count))
            cells.append(Cell(lr_text(row["best_lr"]), row["best_lr"]))
            bound = "≥ " if row["basin_lower_bound"] else ""
            cells.append(Cell(f"{bound}{row['basin_decades']:.2f}", row["basin_decades"]))
        key = tuple(row[keys])
        cells.append(_regret(transfer.get(key)))
        gap = gaps.get(key)
        cells.append(Cell("–", "") if gap is None else Cell(f"{gap['gap']:+.4f}", gap["gap"]))
        cells.append(_words("") if gap is None else _verdict(gap))
        rows.append(cells)
    return Table(heads, rows)


def loss_grid(cells: pd.DataFrame) -> Table:
    """The loss table of one scale."""
    methods = in_order(cells["method"].unique())
    grid = cells.set_index(["lr", "method"])
    most = cells["seeds"].max()
    rows = []
    for lr in sorted(cells["lr"].unique()):
        row = [Cell(lr_text(lr), lr)]
        for method in methods:
            known = (lr, method) in grid.index
            row.append(_loss(grid.loc[(lr, method)], most) if known else Cell("–", ""))
        rows.append(row)
    return Table([Head("lr"), *map(Head, methods)], rows)


def problem_grid(runs: pd.DataFrame) -> Table | None:
    """Why runs failed or cannot be read, the most frequent first; None where none did."""
    bad = runs[runs["state"].isin(["failed", UNREADABLE])]
    if bad.empty:
        return None
    rows = [
        [
            Cell(str(len(group))),
            _words(str(state)),
            Cell(str(reason), kind="text long"),
            Cell(Path(group["path"].iloc[0]).name, kind="text"),
        ]
        for (state, reason), group in bad.groupby(["state", "description"])
    ]
    rows.sort(key=lambda row: -int(row[0].text))
    heads = [Head("runs"), Head("state", True), Head("reason", True), Head("for example", True)]
    return Table(heads, rows)


def run_grid(runs: pd.DataFrame) -> Table:
    """Every run with its state and numbers."""
    names = ("run", "scale", "method", "lr", "seed", "state", "step", "loss", "validation", "train")
    heads = [Head(name, name in ("run", "scale", "method", "state")) for name in names]
    heads += [Head("tokens"), Head("tokens/s"), Head("reason", True)]
    rows = []
    for run in runs.to_dict("records"):
        unread = run["state"] == UNREADABLE
        wrong = unread or run["state"] == "failed"
        bad = wrong or run["state"] == "diverged"
        rows.append(
            [
                _words(Path(run["path"]).name),
                _words("" if unread else run["scale"]),
                _words("" if unread else run["method"]),
                Cell("–", "") if unread else Cell(lr_text(run["lr"]), run["lr"]),
                Cell("–", "") if run["seed"] is None else Cell(str(run["seed"])),
                Cell(run["state"], kind="text bad" if bad else "text"),
                _number(run["step"], ".0f"),
                *(_number(run[name], ".4f") for name in ("loss", "validation", "train")),
                _number(run["tokens"], ",.0f"),
                _number(run["tokens_per_second"], ",.0f"),
                Cell(run["description"] if wrong else "", kind="text long" if wrong else ""),
            ]
        )
    return Table(heads, rows)


def _loss(cell: pd.Series, most: int) -> Cell:
    diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
    if cell["finished"] == 0:
        return Cell("", "", remark=diverged, bad=True) if diverged else Cell("–", "")
    remarks = [] if math.isnan(cell["std"]) else [f"± {cell['std']:.4f}"]
    remarks += [f"n = {cell['seeds']}"] if cell["seeds"] != most else []
    remarks += [diverged] if diverged else []
    kind = "best" if cell["best"] else ""
    return Cell(f"{cell['mean']:.4f}", cell["mean"], kind, ", ".join(remarks), bool(diverged))


def _verdict(gap: pd.Series) -> Cell:
    count = f"n = {min(gap['seeds'], gap['reference_seeds'])}"
    if gap["verdict"] == "noise unknown":
        return Cell("too few seeds to tell", kind="text", remark=count)
    side = "within" if gap["verdict"] == "within noise" else "beyond"
    return Cell(f"{side} one std", kind="text", remark=f"{gap['noise']:.4f}, {count}")


def _regret(row: pd.Series | None) -> Cell:
    if row is None:
        return Cell("–", "")
    if row["outcome"] == "measured" and not math.isnan(row["regret"]):
        return Cell(f"{row['regret']:.4f}", row["regret"], remark=f"lr {lr_text(row['lr'])}")
    bad = row["outcome"] == "diverged"
    return Cell("", "", remark=f"{notes.regret_text(row)}, {lr_text(row['lr'])}", bad=bad)


def _words(text: str, value: float | None = None) -> Cell:
    return Cell(text, value, "text")


def _number(value: float, form: str) -> Cell:
    return Cell("–", "") if value is None or math.isnan(value) else Cell(format(value, form), value)
