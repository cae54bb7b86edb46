"""All numbers that the report and the tutorial quote, computed from the measured rows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from scripts.study import depths, sweep, tuning
from scripts.study.derived import NORMS, RATIOS, TOTAL
from scripts.study.fits import geometric
from scripts.study.mlp import METHODS
from scripts.study.plan import FIT_FROM, OPTIMIZERS, Plan, SinglePass
from scripts.study.summary import CLOSE, kinds, variations
from scripts.study.training import cells

# Ways in which a slope agrees with the derived exponent.
_AGREE = ("close", "near_finite", "in_interval", "near_square", "square_in_interval")


def middle(values: tuple[int, ...]) -> int:
    """The size that is shown where only one can be: depth 8 of the full study's single pass."""
    return sorted(values)[len(values) // 2]


def single_numbers(rows: pd.DataFrame, slopes: pd.DataFrame, plan: SinglePass) -> dict[str, Any]:
    """Numbers of the single pass."""
    depth = middle(plan.depths)
    ratios = slopes[slopes.quantity.isin(RATIOS)]
    miss = (ratios.slope - ratios.finite).abs()
    ratios = ratios.assign(near_finite=miss <= CLOSE, in_interval=miss <= ratios.half)
    square_miss = (ratios.square - ratios.square_finite).abs()
    ratios = ratios.assign(
        near_square=square_miss <= CLOSE, square_in_interval=square_miss <= ratios.square_half
    )
    largest = ratios.assign(off=ratios.off.abs()).groupby(["depth", "quantity"]).off.max()
    hidden = variations(rows, "width", "depth").query("kind == 'hidden'")
    quantities = [*RATIOS, TOTAL]
    worst = hidden.groupby(["method", "optimizer", "depth"])[quantities].max()
    over_depths = variations(rows, "depth", "width")
    over_depths = over_depths[over_depths.width == max(plan.widths)].drop(columns="layer")
    wide = rows[(rows.method == "mup") & (rows.optimizer == "adam") & (rows.width >= FIT_FROM)]
    change = wide[kinds(wide) == "hidden"].output / plan.lr
    return {
        "depth": depth,
        "layer": depth // 2,
        "lr": plan.lr,
        "slopes": _by_type(slopes[slopes.depth == depth], quantities),
        "close": {
            "all": len(ratios),
            "square_gap": float(ratios.assign(gap=square_miss).gap.max()),
            **{name: int(ratios[name].sum()) for name in _AGREE},
            "by_depth": _counts(ratios, ["depth"], largest.unstack()[list(RATIOS)]),
            "by_quantity": _counts(ratios, ["optimizer", "quantity"]),
        },
        "chain": _chain(slopes, depth),
        "kept": _kept(rows),
        "cv_width": worst.reset_index().to_dict("records"),
        "cv_depth": over_depths.to_dict("records"),
        **{f"mup_{o}_output_cv": float(worst.output["mup", o].max()) for o in OPTIMIZERS},
        "constant": {"measured": float(change.mean()), "derived": 1 / math.sqrt(2 * math.pi)},
    }


def _counts(
    ratios: pd.DataFrame, keys: list[str], more: pd.DataFrame | None = None
) -> list[dict[Any, Any]]:
    """How many slopes agree with the derived exponents, and more columns with the same keys."""
    groups = ratios.groupby(keys)
    counts = groups[["close", "near_finite", "near_square"]].sum()
    counts.insert(0, "all", groups.size())
    if more is not None:
        counts = counts.join(more)
    return counts.reset_index().to_dict("records")


def _by_type(slopes: pd.DataFrame, quantities: list[str]) -> dict[str, Any]:
    """Method -> optimizer -> layer type -> quantity -> means over the layers of that type."""
    slopes = slopes[slopes.quantity.isin(quantities)]
    nested: dict[str, Any] = {}
    for key, layers in slopes.groupby(["method", "optimizer", "kind", "quantity"]):
        method, optimizer, kind, quantity = map(str, key)
        of_kind = nested.setdefault(method, {}).setdefault(optimizer, {}).setdefault(kind, {})
        of_kind[quantity] = dict(layers[["slope", "half", "derived", "finite"]].mean())
    return nested


def _chain(slopes: pd.DataFrame, depth: int) -> dict[Any, Any]:
    """Standard, Adam, the middle hidden layer: every norm and ratio on the way to its change."""
    mine = slopes[(slopes.method == "standard") & (slopes.optimizer == "adam")]
    mine = mine[(mine.depth == depth) & (mine.layer == depth // 2)].set_index("quantity")
    return mine.loc[[*NORMS, *RATIOS], ["slope", "half", "derived"]].to_dict("index")


def _kept(rows: pd.DataFrame) -> list[dict[Any, Any]]:
    """The part of an update that Adam's default eps leaves: least over layers, mean over seeds."""
    adam = rows[(rows.optimizer == "adam") & rows.method.isin(("standard", "mup"))]
    keys = ["method", "depth", "width"]
    least = adam.groupby([*keys, "seed"]).kept.min()
    return least.groupby(keys).mean().reset_index().to_dict("records")


def training_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """Numbers of the training part: see `training.cells`; and how scales fall from layer to layer
    in the largest model."""
    first = rows[(rows.step == 0) & (rows.width == max(rows.width))]
    first = first[first.depth == max(first.depth)]
    hidden = first[(first.layer > 0) & (first.layer < first.depth - 1)]
    logs = np.log(geometric(hidden, ["layer"], "activation"))
    decay = float(np.exp(np.polyfit(logs.index, logs, 1)[0]))
    records = cells(rows).reset_index().to_dict("records")
    return {"cells": records, "decay": decay, "decay_derived": math.sqrt(0.5)}


def tuning_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """The tuned factors, and the loss at the best lr of each pair of factors."""
    cells = tuning.cells(rows).to_dict("records")
    return {**tuning.chosen(rows)._asdict(), "cells": cells}


def sweep_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """Numbers of the sweep, for the smallest and the largest batch."""
    small, large = min(rows.batch), max(rows.batch)
    numbers: dict[str, Any] = {"batches": {"small": int(small), "large": int(large)}}
    for name, batch in numbers["batches"].items():
        mine = rows[rows.batch == batch]
        numbers[name] = carried(mine)
        for method in METHODS:
            numbers[name][method]["predicted"] = sweep.prediction(mine, method)
        against = sweep.carried_difference(mine, "maxP", "mup")
        numbers[name]["maxP"] |= {"minus_mup": against.slope, "minus_mup_half": against.half}
    return numbers


def carried(rows: pd.DataFrame, over: str = "width") -> dict[str, Any]:
    """By method: the best lr, how it moves, and what it costs to carry the base's.

    Args:
        rows: of one batch size.
        over: the column of the size.
    """
    numbers: dict[str, Any] = {}
    curves = sweep.curves(rows, over)
    for method, mine in sweep.best(rows, over).groupby("method"):
        mine = mine.sort_values(over)
        fit = sweep.movement(rows, str(method), over)
        losses = curves[curves.method == method].pivot(index=over, columns="log2_lr", values="loss")
        regret = sweep.regret(rows, str(method), over)
        numbers[str(method)] = {
            "best": mine[[over, "best", "between", "loss", "at_edge"]].to_dict("records"),
            "power": fit.slope,
            "half": fit.half,
            "power_of_mean": float(np.polyfit(np.log2(mine[over]), mine.between, 1)[0]),
            "moved": int(mine.best.max() - mine.best.min()),
            "best_loss": float(mine.loss.iloc[-1]),
            "carried_loss": float(losses.iloc[-1][mine.best.iloc[0]]),
            "regret": regret.slope,
            "regret_half": regret.half,
        }
    return numbers


def depth_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """By arm of the depth sweep: as `carried`, and the derived power."""
    numbers = carried(rows, "blocks")
    return {arm: {**numbers[arm], "derived": depths.DERIVED[arm]} for arm in depths.ARMS}


def all_numbers(
    plan: Plan,
    single: pd.DataFrame,
    slopes: pd.DataFrame,
    training: pd.DataFrame,
    swept: Mapping[str, pd.DataFrame],
) -> dict[str, Any]:
    """The contents of ``summary.json``.

    Args:
        swept: the rows of the parts tuning, sweep and depths.
    """
    numbers = {
        "single": single_numbers(single, slopes, plan.single),
        "training": training_numbers(training),
        "tuning": tuning_numbers(swept["tuning"]),
        "sweep": sweep_numbers(swept["sweep"]),
        "depths": depth_numbers(swept["depths"]),
    }
    return rounded(numbers)


def rounded(value: Any) -> Any:
    """Numbers to five digits, and None for what JSON cannot hold."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
