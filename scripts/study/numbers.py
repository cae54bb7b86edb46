"""Every number that the report and the tutorial quote, out of the measured rows."""

import math
from typing import Any

import numpy as np
import pandas as pd

from scripts.study import sweep
from scripts.study.derived import NORMS, RATIOS, TOTAL
from scripts.study.figures import geometric
from scripts.study.mlp import METHODS
from scripts.study.plan import FIT_FROM, OPTIMIZERS, Plan, SinglePass
from scripts.study.summary import kinds, variations

KINDS = ("embedding", "hidden", "readout")


def single_numbers(rows: pd.DataFrame, slopes: pd.DataFrame, plan: SinglePass) -> dict[str, Any]:
    """Of the single pass: see the keys."""
    depth = middle_depth(plan)
    four = slopes[slopes.quantity.isin(RATIOS)]
    near = (four.slope - four.finite).abs() <= 0.1
    found: dict[str, Any] = {
        "depth": depth,
        "layer": depth // 2,
        "lr": plan.lr,
        "slopes": _nested(slopes, plan),
        "close": {
            "all": len(four),
            "close": int(four.close.sum()),
            "near_finite": int(near.sum()),
            "in_interval": int(((four.slope - four.finite).abs() <= four.half).sum()),
            "by_depth": [
                {
                    "depth": int(str(d)),
                    "all": len(f),
                    "close": int(f.close.sum()),
                    "near_finite": int(near[f.index].sum()),
                    **{q: float(f[f.quantity == q].off.abs().max()) for q in RATIOS},
                }
                for d, f in four.groupby("depth")
            ],
            "by_quantity": [
                {
                    "optimizer": optimizer,
                    "quantity": q,
                    "all": len(f),
                    "close": int(f.close.sum()),
                    "near_finite": int(near[f.index].sum()),
                }
                for (optimizer, q), f in four.groupby(["optimizer", "quantity"])
            ],
        },
        "chain": _chain(slopes, depth),
        "kept": _kept(rows),
    }
    over_widths, over_depths = (
        variations(rows, "width", "depth"),
        variations(rows, "depth", "width"),
    )
    hidden = over_widths[over_widths.kind == "hidden"]
    worst = hidden.groupby(["method", "optimizer", "depth"])[[*RATIOS, TOTAL]].max().reset_index()
    found["cv_width"] = worst.to_dict("records")
    widest = over_depths[over_depths.width == max(plan.widths)]
    found["cv_depth"] = widest.drop(columns="layer").to_dict("records")
    adam = hidden[(hidden.method == "mup") & (hidden.optimizer == "adam")]
    found["mup_adam_output_cv"] = float(adam.output.max())
    sgd = hidden[(hidden.method == "mup") & (hidden.optimizer == "sgd")]
    found["mup_sgd_output_cv"] = float(sgd.output.max())
    mine = rows[(rows.method == "mup") & (rows.optimizer == "adam") & (rows.width >= FIT_FROM)]
    change = mine[kinds(mine) == "hidden"].output / plan.lr
    found["constant"] = {"measured": float(change.mean()), "derived": 1 / math.sqrt(2 * math.pi)}
    return found


def middle_depth(plan: SinglePass) -> int:
    """The depth whose layers are shown: 8 in full."""
    return sorted(plan.depths)[len(plan.depths) // 2]


def _nested(slopes: pd.DataFrame, plan: SinglePass) -> dict[str, Any]:
    """By method, optimizer, layer type and quantity: at the middle depth, mean over its layers."""
    mine = slopes[slopes.depth == middle_depth(plan)]
    keys = ["method", "optimizer", "kind", "quantity"]
    columns = ["slope", "half", "derived", "finite"]
    means = mine.groupby(keys)[columns].mean()
    by_key: dict[Any, dict[str, float]] = {key: dict(row) for key, row in means.iterrows()}
    found: dict[str, Any] = {}
    for method in METHODS:
        for optimizer in OPTIMIZERS:
            for kind in KINDS:
                found.setdefault(method, {}).setdefault(optimizer, {})[kind] = {
                    q: by_key[method, optimizer, kind, q] for q in (*RATIOS, TOTAL)
                }
    return found


def _chain(slopes: pd.DataFrame, depth: int) -> dict[str, Any]:
    """Standard, Adam, the middle hidden layer: every norm and ratio on the way to its change."""
    mine = slopes[(slopes.method == "standard") & (slopes.optimizer == "adam")]
    mine = mine[(mine.depth == depth) & (mine.layer == depth // 2)].set_index("quantity")
    found = mine[["slope", "half", "derived"]].to_dict("index")
    return {q: found[q] for q in (*NORMS, *RATIOS)}


def _kept(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """What Adam's default eps leaves of an update: the least over layers, the mean over seeds."""
    adam = rows[(rows.optimizer == "adam") & rows.method.isin(("standard", "mup"))]
    least = adam.groupby(["method", "depth", "width", "seed"]).kept.min()
    means = least.groupby(["method", "depth", "width"]).mean().reset_index()
    return [{str(k): v for k, v in row.items()} for row in means.to_dict("records")]


def training_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """Of the training part: by width and depth, at init and over the run."""
    first = rows[rows.step == 0]
    hidden = first[(first.layer > 0) & (first.layer < first.depth - 1)]
    before_last = first[first.layer == first.depth - 2]
    keys = ["depth", "width"]
    table = pd.DataFrame(
        {
            "late_loss": rows.groupby(keys).late_loss.mean(),
            "accuracy": rows.groupby(keys).accuracy.mean(),
            "activation": geometric(before_last, keys, "activation"),
            "gradient": geometric(hidden, keys, "gradient"),
            "update": geometric(hidden, keys, "update"),
        }
    )
    spread = hidden.groupby([*keys, "seed"]).gradient.agg(lambda g: g.max() / g.min())
    table["spread"] = spread.groupby(keys).mean()
    cells = table.reset_index().to_dict("records")
    cells = [{str(k): v if v == v else None for k, v in cell.items()} for cell in cells]
    width = max(rows.width)
    widest = hidden[hidden.width == width]
    layers = geometric(widest, ["depth", "layer"], "activation").unstack("layer")
    logs = np.log(layers.loc[max(layers.index)].dropna())
    decay = float(np.exp(np.polyfit(logs.index, logs, 1)[0]))
    return {"cells": cells, "decay": decay, "decay_derived": math.sqrt(0.5)}


def sweep_numbers(rows: pd.DataFrame) -> dict[str, Any]:
    """Of the sweep, at either batch size: the best lr, how it moves, what carrying it costs."""
    small, large = min(rows.batch), max(rows.batch)
    return {
        "batches": {"small": int(small), "large": int(large)},
        "small": _of_batch(rows[rows.batch == small]),
        "large": _of_batch(rows[rows.batch == large]),
    }


def _of_batch(rows: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    best, curves = sweep.best(rows), sweep.curves(rows)
    for method, mine in best.groupby("method"):
        mine = mine.sort_values("width")
        fit = sweep.movement(rows, str(method))
        table = curves[(curves.method == method) & (curves.width == mine.width.max())]
        carried = table[table.log2_lr == mine.best.iloc[0]]
        found[str(method)] = {
            "best": mine[["width", "best", "between", "loss", "at_edge"]].to_dict("records"),
            "power": fit.slope,
            "half": fit.half,
            "power_of_mean": float(np.polyfit(np.log2(mine.width), mine.between, 1)[0]),
            "moved": int(mine.best.max() - mine.best.min()),
            "best_loss": float(mine.loss.iloc[-1]),
            "carried_loss": float(carried.loss.iloc[0]),
            "excess": _excess(curves[curves.method == method]),
        }
    return found


def _excess(curves: pd.DataFrame) -> float:
    """By how much the best single lr for all widths is worse than each width's own, at most."""
    table = curves.pivot(index="width", columns="log2_lr", values="loss")
    common = table.mean().idxmin()
    return float((table[common] - table.min(axis=1)).max())


def all_numbers(
    plan: Plan,
    single: pd.DataFrame,
    slopes: pd.DataFrame,
    training: pd.DataFrame,
    swept: pd.DataFrame,
) -> dict[str, Any]:
    """The whole of ``summary.json``."""
    found = {
        "single": single_numbers(single, slopes, plan.single),
        "training": training_numbers(training),
        "sweep": sweep_numbers(swept),
    }
    return rounded(found)


def rounded(value: Any) -> Any:
    """Numbers to five digits, and None for what is not finite: what JSON can hold, and no noise."""
    if isinstance(value, dict):
        return {key: rounded(v) for key, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value
