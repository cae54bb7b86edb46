"""The numbers of a sweep: its loss table, and each method's best, basin, transfer and gap."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pandas as pd

from train.results.basin import basin
from train.results.collect import UNREADABLE
from train.results.names import Metric, in_order, scales_in_order

TITLES: dict[Metric, str] = {
    "validation": "validation loss at the end",
    "train": "training loss, mean over the last 10% of the steps",
}

REFERENCES = ("mup-full", "mup-no", "sp")
"""The other methods are compared with the first of these that was run."""

_METHODS = (
    *("scale", "method", "best_loss", "best_std", "best_seeds", "best_lr"),
    *("lower_where_diverged", "basin_decades", "basin_lower_bound"),
    *("basin_low", "basin_high", "basin_low_end", "basin_high_end"),
)
_TRANSFER = ("scale", "method", "from_scale", "lr", "loss", "best_loss", "regret", "outcome")
_NUMBERS = (
    *("best_loss", "best_std", "best_lr", "basin_decades", "basin_low", "basin_high"),
    *("lr", "loss", "regret", "gap", "noise"),
)
_GAPS = ("scale", "method", "reference", "gap", "noise", "seeds", "reference_seeds", "verdict")


@dataclass(frozen=True)
class Results:
    """Everything that the outputs show for one metric; losses are in nats per token.

    Attributes:
        runs: from `collect`.
        cells: from `loss_table`.
        methods: one row per scale and method: best loss, its standard deviation over seeds, the
            number of seeds, its lr; whether a mean is lower at an lr where a seed diverged; basin.
        transfer: one row per method and scale, for scales above the smallest at which the method
            has a best: the loss here at that smallest scale's best lr, and the regret, that loss
            minus the best loss here. outcome: "measured", "diverged" (a seed diverged) or "missing"
            (no finished run at that lr).
        gaps: one row per scale and method other than the reference: its best loss minus the
            reference's, the noise (the larger of their two standard deviations over seeds), and
            the verdict: "lower", "higher", "within noise" or "noise unknown" (fewer than two seeds
            for one of them).
        scales: smallest first.
        methods_order: the order of the columns.
        reference: the method to compare with; None if none of `REFERENCES` was run.
    """

    runs: pd.DataFrame
    metric: Metric
    cells: pd.DataFrame
    methods: pd.DataFrame
    transfer: pd.DataFrame
    gaps: pd.DataFrame
    scales: list[str]
    methods_order: list[str]
    reference: str | None

    @classmethod
    def of(cls, runs: pd.DataFrame, metric: Metric) -> Results:
        cells = loss_table(runs, metric)
        scales = scales_in_order(runs[runs["state"] != UNREADABLE])
        order = in_order(map(str, cells["method"].unique()))
        reference = next((name for name in REFERENCES if name in order), None)
        methods = _methods(cells, scales, order)
        transfer = _transfer(cells, methods, scales, order)
        gaps = _gaps(methods, reference)
        return cls(runs, metric, cells, methods, transfer, gaps, scales, order, reference)


def loss_table(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The cells of the loss tables: one row per scale, lr and method that has runs.

    Columns: scale, lr, method; mean and std of ``metric`` in nats per token (the sample standard
    deviation over seeds, NaN for one seed); finished, the number of runs in the mean; seeds, the
    number of different seeds among those; diverged and runs, numbers of runs; best, True at the
    lowest mean of a scale and method. An lr at which a seed diverged is never best.
    """
    readable = runs[runs["state"] != UNREADABLE]
    counted = readable["seed"].astype(str).where(readable[metric].notna())
    cells = (
        readable.assign(diverged=readable["state"] == "diverged", counted=counted)
        .groupby(["scale", "lr", "method"], as_index=False)
        .agg(
            mean=(metric, "mean"),
            std=(metric, "std"),
            finished=(metric, "count"),
            seeds=("counted", "nunique"),
            diverged=("diverged", "sum"),
            runs=("diverged", "size"),
        )
    )
    candidates = cells[(cells["diverged"] == 0) & cells["mean"].notna()]
    best = candidates.groupby(["scale", "method"])["mean"].idxmin()
    return cells.assign(best=cells.index.isin(best))


def _frame(rows: list[Any], columns: tuple[str, ...]) -> pd.DataFrame:
    """A frame with the right types, also without rows."""
    frame = pd.DataFrame(rows, columns=list(columns))
    return frame.astype({name: float for name in columns if name in _NUMBERS})


def _methods(cells: pd.DataFrame, scales: list[str], order: list[str]) -> pd.DataFrame:
    groups = dict(list(cells.groupby(["scale", "method"])))
    rows = [
        _method(groups[scale, method], scale, method)
        for scale in scales
        for method in order
        if (scale, method) in groups
    ]
    return _frame(rows, _METHODS)


def _method(column: pd.DataFrame, scale: str, method: str) -> dict[str, Any]:
    column = column.sort_values("lr").reset_index(drop=True)
    row: dict[str, Any] = dict.fromkeys(_METHODS, math.nan) | {"scale": scale, "method": method}
    row |= {"best_seeds": 0, "basin_lower_bound": False, "basin_low_end": "", "basin_high_end": ""}
    row["lower_where_diverged"] = bool(column["finished"].any())
    best = column.index[column["best"]]
    if best.empty:
        return row
    index = int(best[0])
    cell = column.iloc[index]
    # Infinite if a seed diverged, NaN if no run has finished.
    losses = column["mean"].mask(column["diverged"] > 0, math.inf)
    around = basin(column["lr"].tolist(), losses.tolist(), index)
    return row | {
        "best_loss": cell["mean"],
        "best_std": cell["std"],
        "best_seeds": int(cell["seeds"]),
        "best_lr": cell["lr"],
        "lower_where_diverged": bool(column["mean"].min() < cell["mean"]),
        "basin_decades": around.decades,
        "basin_lower_bound": around.lower_bound,
        **{f"basin_{name}": value for name, value in vars(around).items()},
    }


def _transfer(
    cells: pd.DataFrame, methods: pd.DataFrame, scales: list[str], order: list[str]
) -> pd.DataFrame:
    bests = methods.set_index(["scale", "method"])[["best_loss", "best_lr"]].to_dict("index")
    at = cells.set_index(["scale", "method", "lr"])[["mean", "diverged"]].to_dict("index")
    rows = []
    for method in order:
        known = [s for s in scales if not math.isnan(_best(bests, s, method))]
        for scale in scales[scales.index(known[0]) + 1 :] if known else []:
            lr = bests[known[0], method]["best_lr"]
            cell = at.get((scale, method, lr), {"mean": math.nan, "diverged": 0})
            best = _best(bests, scale, method)
            loss, outcome = cell["mean"], "measured"
            if cell["diverged"]:
                loss, outcome = math.inf, "diverged"
            elif math.isnan(loss):
                outcome = "missing"
            regret = math.nan if math.isnan(best) else loss - best
            rows.append((scale, method, known[0], lr, loss, best, regret, outcome))
    return _frame(rows, _TRANSFER)


def _best(bests: dict[Any, Any], scale: str, method: str) -> float:
    return float(bests.get((scale, method), {"best_loss": math.nan})["best_loss"])


def _gaps(methods: pd.DataFrame, reference: str | None) -> pd.DataFrame:
    rows = []
    for scale, here in methods.groupby("scale", sort=False):
        standard = here[here["method"] == reference]
        if standard.empty or math.isnan(standard["best_loss"].iloc[0]):
            continue
        other = standard.iloc[0]
        for _, row in here[(here["method"] != reference) & here["best_loss"].notna()].iterrows():
            gap = row["best_loss"] - other["best_loss"]
            seeds = (row["best_seeds"], other["best_seeds"])
            known = min(seeds) > 1
            noise = max(row["best_std"], other["best_std"]) if known else math.nan
            rows.append((scale, row["method"], reference, gap, noise, *seeds, _verdict(gap, noise)))
    return _frame(rows, _GAPS)


def _verdict(gap: float, noise: float) -> str:
    if math.isnan(noise):
        return "noise unknown"
    if abs(gap) <= noise:
        return "within noise"
    return "lower" if gap < 0 else "higher"
