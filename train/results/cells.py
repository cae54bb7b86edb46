"""The cells of a loss table: one metric, averaged over seeds."""

from __future__ import annotations

import pandas as pd

from train.results.collect import UNREADABLE
from train.results.options import Metric
from train.run.tail import TRAIN_STEPS

TITLES: dict[Metric, str] = {
    "validation": "validation loss at the end",
    "train": f"training loss, mean of the last {TRAIN_STEPS} steps",
}


def loss_table(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The table's cells, one row for each scale, lr and method that has runs.

    Columns: scale, lr, method, mean and std (sample standard deviation over seeds, NaN for one
    seed) of ``metric`` in nats a token, finished (runs in the mean), seeds (different ones of
    those), diverged, runs, and best: True at the lowest mean of a scale and method. An lr at which
    a seed diverged is never best, however good the seeds that survived.
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
