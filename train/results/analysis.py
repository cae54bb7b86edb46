"""The numbers of a sweep: its loss table, and each method's best, basin, transfer and gap."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from train.results.axes import axes_of, label, points_of, with_shared
from train.results.basin import basin
from train.results.collect import UNREADABLE
from train.results.names import Metric, in_order, scales_in_order
from train.results.transfer import transfer

TITLES: dict[Metric, str] = {
    "validation": "validation loss at the end",
    "train": "training loss, mean over the last 10% of the steps",
}

REFERENCES = ("mup-full", "mup-no")
"""Methods are compared with each of these that was run; if neither was, with "sp"."""

_METHODS = (
    *("scale", "method", "combination", "best_loss", "best_std", "best_seeds", "best_lr"),
    *("edge", "lower_where_diverged", "basin_decades", "basin_lower_bound"),
    *("basin_low", "basin_high", "basin_low_end", "basin_high_end", "at_base"),
)
_NUMBERS = (
    *("best_loss", "best_std", "best_lr", "basin_decades", "basin_low", "basin_high"),
    *("gap", "noise"),
)
_GAPS = ("scale", "method", "reference", "gap", "noise", "seeds", "reference_seeds", "verdict")


@dataclass(frozen=True)
class Results:
    """Everything that the outputs show for one metric; losses are in nats per token or image.

    Attributes:
        runs: from `collect`, with their combination.
        members: the readable runs, those of a base scale once per method.
        axes: name -> short name of the settings that differ between the runs of a method at a
            scale; a combination is one value of each.
        points: combination, as text -> the value of each axis, ordered by value; one combination,
            "", without axes.
        cells: from `loss_table`.
        methods: one row per scale and method, at its best combination: best loss, its standard
            deviation over seeds, the number of seeds, its lr; edge: "lowest", "highest" or "only"
            if that is the lowest, highest or only lr with a result, else ""; whether a mean is
            lower at an lr where a seed diverged; basin; whether the scale is its own base.
        transfer: one row per method and scale to which it is carried: the loss here at the best lr
            and combination of the scale's base, or else of the smallest scale at which the method
            has a best; and the regret, the loss minus the best loss here. The regret is a mean
            over the seeds that both have, and low and high are the ends of its 95% interval, NaN
            for fewer than two seeds. outcome: "measured", "diverged" (a seed diverged) or
            "missing" (no finished run there).
        gaps: one row per scale, reference and other method: its best loss minus the reference's,
            the noise (the larger of their two standard deviations over seeds), and the verdict:
            "lower", "higher", "within noise" or "noise unknown" (fewer than two seeds for one of
            them). The second reference is compared with the first, not the first with the second.
            There is none at a base scale.
        scales: smallest first.
        methods_order: the order of the columns.
        references: the methods to compare with; see `REFERENCES`.
    """

    runs: pd.DataFrame
    members: pd.DataFrame
    metric: Metric
    axes: dict[str, str]
    points: dict[str, dict[str, Any]]
    cells: pd.DataFrame
    methods: pd.DataFrame
    transfer: pd.DataFrame
    gaps: pd.DataFrame
    scales: list[str]
    methods_order: list[str]
    references: list[str]

    @classmethod
    def of(cls, runs: pd.DataFrame, metric: Metric, methods: Collection[str] = ()) -> Results:
        """The results of ``runs``, a table from `collect.collect`.

        Args:
            methods: methods without runs for which those at a base scale count as well.
        """
        readable = runs[runs["state"] != UNREADABLE]
        axes = axes_of(readable)
        points = points_of(readable, axes) or {"": {}}
        runs = runs.assign(combination=[label(point, axes) for point in runs["axes"]])
        members = with_shared(runs[runs["state"] != UNREADABLE], methods)
        return cls._of(runs, members, metric, axes, points)

    @classmethod
    def _of(
        cls,
        runs: pd.DataFrame,
        members: pd.DataFrame,
        metric: Metric,
        axes: dict[str, str],
        points: dict[str, dict[str, Any]],
    ) -> Results:
        cells = _cells(members, metric)
        scales = scales_in_order(members)
        order = in_order(map(str, cells["method"].unique()))
        references = [name for name in REFERENCES if name in order]
        references = references or [name for name in order if name == "sp"]
        each = [_methods(group, scales, order) for _, group in cells.groupby("combination")]
        methods = _best_of(pd.concat(each or [_frame([], _METHODS)]), scales, order)
        return cls(
            *(runs, members, metric, axes, points, cells, methods),
            transfer=transfer(members, cells, metric, scales, order),
            gaps=_frame([*_gaps(methods, references)], _GAPS),
            scales=scales,
            methods_order=order,
            references=references,
        )

    @cached_property
    def parts(self) -> dict[str, Results]:
        """Combination -> the results of its runs alone, without axes."""
        if not self.axes:
            return {"": self}
        runs, members = (
            dict(list(table.groupby("combination"))) for table in (self.runs, self.members)
        )
        return {
            name: Results._of(runs[name], members[name], self.metric, {}, {name: {}})
            for name in self.points
        }


def loss_table(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The cells of the loss tables: one row per scale, combination, lr and method that has runs.

    Columns: scale, lr, method; combination of values of the axes, as text; mean and std of
    ``metric`` in nats per token or image (the sample standard deviation over seeds, NaN for one
    seed); accuracy, the mean of the validation's, where runs on images have one;
    finished, the number of runs in the mean; seeds, the number of different seeds among those;
    diverged and runs, numbers of runs; at_base, whether the scale is its own base, where all
    methods are the same run; run_as, the method that was run there for this one, else ""; best,
    True at the lowest mean of a scale, combination and method; best_of_all, True at the lowest of
    a scale and method. An lr at which a seed diverged is never best.
    """
    return Results.of(runs, metric).cells


def _cells(members: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    counted = members["seed"].astype(str).where(members[metric].notna())
    accuracy: dict[str, Any] = {"accuracy": ("accuracy", "mean")}
    if metric == "train" or not members["accuracy"].notna().any():  # of validation; none for text
        accuracy = {}
    cells = (
        members.assign(diverged=members["state"] == "diverged", counted=counted)
        .groupby(["scale", "lr", "method", "combination"], as_index=False)
        .agg(
            mean=(metric, "mean"),
            std=(metric, "std"),
            **accuracy,
            finished=(metric, "count"),
            seeds=("counted", "nunique"),
            diverged=("diverged", "sum"),
            runs=("diverged", "size"),
            at_base=("at_base", "all"),
            run_as=("run_as", "max"),
        )
    )
    candidates = cells[(cells["diverged"] == 0) & cells["mean"].notna()]
    best = candidates.groupby(["scale", "method", "combination"])["mean"].idxmin()
    of_all = candidates.groupby(["scale", "method"])["mean"].idxmin()
    return cells.assign(best=cells.index.isin(best), best_of_all=cells.index.isin(of_all))


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


def _best_of(methods: pd.DataFrame, scales: list[str], order: list[str]) -> pd.DataFrame:
    """The row of the best combination for each scale and method."""
    methods = methods.reset_index(drop=True)
    losses = methods["best_loss"].fillna(math.inf)
    best = methods.loc[losses.groupby([methods["scale"], methods["method"]]).idxmin()]
    place = best["scale"].map(scales.index) * len(order) + best["method"].map(order.index)
    return best.loc[place.sort_values().index].reset_index(drop=True)


def _method(column: pd.DataFrame, scale: str, method: str) -> dict[str, Any]:
    column = column.sort_values("lr").reset_index(drop=True)
    row: dict[str, Any] = dict.fromkeys(_METHODS, math.nan) | {"scale": scale, "method": method}
    row |= {"best_seeds": 0, "basin_lower_bound": False}
    row |= {"edge": "", "basin_low_end": "", "basin_high_end": ""}
    row["lower_where_diverged"] = bool(column["finished"].any())
    row |= {"combination": column["combination"].iloc[0], "at_base": column["at_base"].all()}
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
        "edge": _edge(column, cell["lr"]),
        "lower_where_diverged": bool(column["mean"].min() < cell["mean"]),
        "basin_decades": around.decades,
        "basin_lower_bound": around.lower_bound,
        **{f"basin_{name}": value for name, value in vars(around).items()},
    }


def _edge(column: pd.DataFrame, lr: float) -> str:
    """Which end of the learning rates with a result ``lr`` is; "" if it is none."""
    known = column.loc[column[["finished", "diverged"]].sum(axis=1) > 0, "lr"]
    if known.min() == known.max():
        return "only"
    return "lowest" if lr == known.min() else "highest" if lr == known.max() else ""


def _gaps(methods: pd.DataFrame, references: list[str]) -> Iterator[tuple[Any, ...]]:
    for scale, here in methods.dropna(subset=["best_loss"]).groupby("scale", sort=False):
        rows = {row["method"]: row for row in here.to_dict("records")}
        for position, reference in enumerate(references):
            if reference in rows:
                for name in [name for name in rows if name not in references[: position + 1]]:
                    if not (rows[name]["at_base"] and rows[reference]["at_base"]):
                        yield _gap(scale, rows[name], rows[reference])


def _gap(scale: Any, row: dict[Any, Any], other: dict[Any, Any]) -> tuple[Any, ...]:
    gap = row["best_loss"] - other["best_loss"]
    seeds = (row["best_seeds"], other["best_seeds"])
    noise = max(row["best_std"], other["best_std"]) if min(seeds) > 1 else math.nan
    return scale, row["method"], other["method"], gap, noise, *seeds, _verdict(gap, noise)


def _verdict(gap: float, noise: float) -> str:
    if math.isnan(noise):
        return "noise unknown"
    if abs(gap) <= noise:
        return "within noise"
    return "lower" if gap < 0 else "higher"
