"""The constants of the sweep: lr factors of embedding and readout, tuned at the base width.

At the base width, all methods are the same run, so they share the constants.
"""

import math
from typing import Any

import numpy as np
import pandas as pd

from scripts.study import sweep
from scripts.study.plan import Sweep
from scripts.study.pool import run_all
from scripts.study.sweep import Factors

_CELL = ["embedding_factor", "readout_factor"]


def measure(
    batch: int, factors: Factors, log2_lr: int, seed: int, plan: Sweep
) -> list[dict[str, Any]]:
    """Train one model of the base width; one row."""
    [row] = sweep.measure("standard", batch, plan.widths[0], log2_lr, factors, seed, plan)
    ends = {name: row[name] for name in ("loss", "late_loss", "accuracy")}
    cell = dict(zip(_CELL, factors, strict=True))
    return [{"batch": batch, **cell, "log2_lr": log2_lr, "seed": seed, **ends}]


def run(plan: Sweep, workers: int) -> pd.DataFrame:
    """One row per batch size, pair of factors, learning rate and seed."""
    tasks = [
        (batch, Factors(embedding, readout), log2_lr, seed, plan)
        for batch in plan.batches
        for embedding in plan.embedding_factors
        for readout in plan.readout_factors
        for log2_lr in plan.tuning_log2_lrs
        for seed in range(plan.tuning_seeds)
    ]
    return run_all(measure, tasks, workers=workers, label="tuning at the base width")


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """For each batch size and pair of factors, the lr with the smallest mean loss over seeds.

    A mean is infinite if one run diverged.
    """
    finite = rows.assign(loss=rows.loss.where(np.isfinite(rows.loss), math.inf))
    means = finite.groupby(["batch", *_CELL, "log2_lr"], as_index=False).loss.mean()
    return means.loc[means.groupby(["batch", *_CELL]).loss.idxmin()].reset_index(drop=True)


def chosen(rows: pd.DataFrame) -> Factors:
    """The factors with the smallest geometric mean, over batch sizes, of the loss at the best lr.

    All batch sizes share the factors: for one batch size, most differences are noise of the seeds.
    """
    means = np.log(cells(rows).set_index(_CELL).loss).groupby(level=_CELL).mean()
    best = means.reset_index().loc[int(np.argmin(means))]
    return Factors(*(float(best[name]) for name in _CELL))
