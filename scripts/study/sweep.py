"""The learning-rate sweep over widths: for which methods the best learning rate moves."""

import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from scripts.study.fits import Fit, slope
from scripts.study.mlp import build
from scripts.study.plan import Sweep
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train


def measure(
    method: str, batch: int, width: int, log2_lr: int, seed: int, plan: Sweep
) -> list[dict[str, Any]]:
    """Train one model; one row."""
    more: dict[str, Any] = {"solve_interval": plan.solve_interval} if method == "maxP" else {}
    lr = 2.0**log2_lr
    model, p = build(method, "adam", width, plan.depth, INPUTS, OUTPUTS, lr, seed, **more)
    outcome = train(model, p, plan.steps, batch, seed, measured=method == "maxP")
    run = {"method": method, "batch": batch, "width": width, "log2_lr": log2_lr, "seed": seed}
    return [{**run, **asdict(outcome)}]


def run(plan: Sweep, workers: int) -> pd.DataFrame:
    """One row per method, batch size, width, learning rate and seed."""
    tasks = [
        (method, batch, width, log2_lr, seed, plan)
        for width in plan.widths[::-1]
        for method, log2_lrs in plan.log2_lrs
        for batch in plan.batches
        for log2_lr in log2_lrs
        for seed in range(plan.seeds)
    ]
    return run_all(measure, tasks, workers=workers, label="lr sweep")


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean loss over seeds by method, width and lr, of one batch size; infinite if one diverged."""
    finite = rows.assign(loss=rows.loss.where(np.isfinite(rows.loss), math.inf))
    return finite.groupby(["method", "width", "log2_lr"], as_index=False)[["loss"]].mean()


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """For each method and width, the learning rate with the smallest mean loss.

    Columns: ``best`` (the grid's log2 lr); ``between`` (the vertex of the parabola in log lr and
    log loss through the best point and its neighbours); ``loss``; ``at_edge`` (the best is the
    first or last of the grid, so the optimum may be outside).
    """
    bests = []
    for (method, width), curve in curves(rows).groupby(["method", "width"]):
        curve = curve.sort_values("log2_lr")
        lrs, losses = curve.log2_lr.to_numpy(), curve.loss.to_numpy()
        i = int(np.argmin(losses))
        edge = i in (0, len(lrs) - 1)
        between = float(lrs[i]) if edge else _vertex(lrs[i - 1 : i + 2], losses[i - 1 : i + 2])
        about = {"method": method, "width": width, "best": int(lrs[i]), "between": between}
        bests.append({**about, "loss": float(losses[i]), "at_edge": edge})
    return pd.DataFrame(bests)


def _vertex(lrs: Any, losses: Any) -> float:
    if not np.isfinite(losses).all():
        return float(lrs[1])
    low, middle, high = np.log(losses)
    bend = low - 2 * middle + high
    return float(lrs[1] + 0.5 * (low - high) / bend * (lrs[2] - lrs[1])) if bend > 0 else lrs[1]


def movement(rows: pd.DataFrame, method: str) -> Fit:
    """The power of n with which a method's best lr moves, fitted to the best lr of each seed."""
    mine = rows[rows.method == method]
    widths = np.array(sorted(mine.width.unique()), dtype=np.float64)
    lrs = np.stack(
        [best(frame).sort_values("width").between.to_numpy() for _, frame in mine.groupby("seed")]
    )
    return slope(widths, 2.0**lrs)
