"""Transfer: what the best lr and constants of a base scale cost at the other scales."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from train.results.names import Metric
from train.run.identity import NO_BASE

COLUMNS = (
    *("scale", "method", "from_scale", "lr", "combination", "loss", "best_loss", "best_lr"),
    *("best_combination", "regret", "low", "high", "seeds", "outcome"),
)
NUMBERS = ("lr", "loss", "best_loss", "best_lr", "regret", "low", "high")

LEVEL = 0.95
"""Confidence level of the interval of a regret."""

_POINT: list[Any] = ["scale", "method", "combination", "lr"]


def bests(cells: pd.DataFrame) -> dict[tuple[str, str], dict[Any, Any]]:
    """(scale, method) -> the cell with the lowest mean over all lrs and combinations.

    A cell in which a seed diverged is never best.
    """
    rows = cells.loc[cells["best_of_all"]]
    return {(row["scale"], row["method"]): row for row in rows.to_dict("records")}


def transfer(
    members: pd.DataFrame, cells: pd.DataFrame, metric: Metric, scales: list[str], order: list[str]
) -> pd.DataFrame:
    """One row per method and scale to which something is carried; see `analysis.Results`.

    Args:
        members: runs, those of a base scale once per method.
        cells: from `analysis.loss_table`.
        scales: smallest first.
        order: the methods.
    """
    best = bests(cells)
    at = cells.set_index(_POINT)[["mean", "diverged"]].to_dict("index")
    losses = members.dropna(subset=[metric]).groupby([*_POINT, "seed"])[metric].mean()
    bases = base_scales(members)
    rows = []
    for method in order:
        known = [scale for scale in scales if (scale, method) in best]
        for position, scale in enumerate(scales):
            origin = bases.get(scale)
            if origin not in known:  # the smallest scale of the same ladder
                alike = [other for other in known if bases.get(other) == origin]
                origin = alike[0] if alike and scales.index(alike[0]) < position else None
            if origin is None or origin == scale:
                continue
            carried = best[origin, method]
            point = (scale, method, carried["combination"], carried["lr"])
            cell = at.get(point, {"mean": math.nan, "diverged": 0})
            row: dict[str, Any] = dict.fromkeys(COLUMNS, math.nan) | {"best_combination": ""}
            row |= dict(zip(_POINT, point, strict=True)) | {"from_scale": origin, "seeds": 0}
            row |= {"loss": cell["mean"], "outcome": "measured"}
            if here := best.get((scale, method)):
                row |= {"best_loss": here["mean"], "best_lr": here["lr"]}
                row["best_combination"] = here["combination"]
            if cell["diverged"]:
                row |= {"loss": math.inf, "outcome": "diverged"}
                row["regret"] = math.inf if here else math.nan
            elif math.isnan(cell["mean"]):
                row["outcome"] = "missing"
            elif here:
                there = (scale, method, here["combination"], here["lr"])
                row |= paired(losses.loc[point], losses.loc[there])
            rows.append(row)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(NUMBERS, float))


def base_scales(runs: pd.DataFrame) -> dict[str, str]:
    """Scale -> the base scale of its runs, where all of them have the same one."""
    bases = runs.dropna(subset=["scale"]).groupby("scale")["base_scale"].unique()
    return {
        str(scale): str(names[0])
        for scale, names in bases.items()
        if len(names) == 1 and names[0] != NO_BASE
    }


def paired(losses: pd.Series[float], best: pd.Series[float]) -> dict[str, float]:
    """The regret: the mean over seeds of ``losses - best``, with a 95% interval.

    Only seeds that both have count; without any, the regret is the difference of the means and has
    no interval. The interval is Student's t, mean ± t s / sqrt(n); it needs two seeds.
    """
    differences = (losses - best).dropna()
    count = len(differences)
    if not count:
        return {"regret": float(losses.mean() - best.mean()), "seeds": 0}
    regret = {"regret": float(differences.mean()), "seeds": count}
    if count == 1:
        return regret
    half = half_interval(differences.to_numpy())
    return regret | {"low": regret["regret"] - half, "high": regret["regret"] + half}


def half_interval(values: np.ndarray) -> float:
    """Half of the 95% interval of a mean (Student's t), of at least two values."""
    from scipy.special import stdtrit  # imported only where an interval is needed

    count = len(values)
    return float(stdtrit(count - 1, (1 + LEVEL) / 2) * values.std(ddof=1) / math.sqrt(count))
