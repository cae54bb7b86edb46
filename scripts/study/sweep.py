"""The learning-rate sweep over widths: whose best learning rate moves, and by which power."""

import math
from typing import Any

import numpy as np
import pandas as pd

from scripts.study.fits import Fit, slope
from scripts.study.mlp import build
from scripts.study.plan import Sweep
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train

Row = dict[str, Any]


def measure(method: str, batch: int, width: int, log2_lr: int, seed: int, plan: Sweep) -> list[Row]:
    """Train one model; one row."""
    more = {"solve_interval": plan.solve_interval} if method == "maxP" else {}
    lr = 2.0**log2_lr
    model, p = build(method, "adam", width, plan.depth, INPUTS, OUTPUTS, lr, seed, **more)
    end = train(model, p, plan.steps, batch, seed, measured=method == "maxP")
    about = {"method": method, "batch": batch, "width": width}
    about |= {"log2_lr": log2_lr, "seed": seed}
    return [{**about, "loss": end.mean, "late_loss": end.late, "accuracy": end.accuracy}]


def cost(method: str, batch: int, width: int, log2_lr: int, seed: int, plan: Sweep) -> float:
    """About how long `measure` takes, in no unit."""
    return plan.steps * (width * width + 4e4) * (1.3 if method == "maxP" else 1.0)


def run(plan: Sweep, workers: int) -> pd.DataFrame:
    """A row for each method, batch size, width, learning rate and seed."""
    tasks = [
        (method, batch, width, log2_lr, seed, plan)
        for method, log2_lrs in plan.log2_lrs
        for batch in plan.batches
        for width in plan.widths
        for log2_lr in log2_lrs
        for seed in range(plan.seeds)
    ]
    return pd.DataFrame.from_records(
        run_all(measure, tasks, cost, workers=workers, label="lr sweep")
    )


def curves(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean loss over seeds by method, width and lr, of one batch size; infinite if one diverged."""
    finite = rows.assign(loss=rows.loss.where(np.isfinite(rows.loss), math.inf))
    return finite.groupby(["method", "width", "log2_lr"], as_index=False)[["loss"]].mean()


def best(rows: pd.DataFrame) -> pd.DataFrame:
    """For each method and width the learning rate of the smallest mean loss.

    Columns ``best`` (on the grid), ``between`` (of the parabola in log lr and log loss through it
    and its neighbours), ``loss``, ``at_edge`` (the best is the grid's first or last, so it may lie
    beyond).
    """
    found = []
    for (method, width), curve in curves(rows).groupby(["method", "width"]):
        curve = curve.sort_values("log2_lr")
        lrs, losses = curve.log2_lr.to_numpy(), curve.loss.to_numpy()
        i = int(np.argmin(losses))
        edge = i in (0, len(lrs) - 1)
        between = float(lrs[i]) if edge else _vertex(lrs[i - 1 : i + 2], losses[i - 1 : i + 2])
        about = {"method": method, "width": width, "best": int(lrs[i]), "between": between}
        found.append({**about, "loss": float(losses[i]), "at_edge": edge})
    return pd.DataFrame(found)


def _vertex(lrs: Any, losses: Any) -> float:
    if not np.isfinite(losses).all():
        return float(lrs[1])
    low, middle, high = np.log(losses)
    bend = low - 2 * middle + high
    return float(lrs[1] + 0.5 * (low - high) / bend * (lrs[2] - lrs[1])) if bend > 0 else lrs[1]


def movement(rows: pd.DataFrame, method: str) -> Fit:
    """The power of the width by which a method's best lr moves: each seed's own best, fitted."""
    mine = rows[rows.method == method]
    widths = np.array(sorted(mine.width.unique()), dtype=np.float64)
    lrs = np.stack(
        [best(frame).sort_values("width").between.to_numpy() for _, frame in mine.groupby("seed")]
    )
    return slope(widths, 2.0**lrs)
