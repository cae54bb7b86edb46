"""The learning-rate sweep over widths: for which methods the best learning rate moves."""

import math
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from scripts.parabola import minimum
from scripts.study.fits import Fit, over_seeds, slope
from scripts.study.mlp import build
from scripts.study.plan import Sweep
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train


class Factors(NamedTuple):
    """Factors on the lr of the embedding and of the readout."""

    embedding: float
    readout: float


def measure(
    method: str,
    batch: int,
    width: int,
    log2_lr: int,
    factors: Factors,
    seed: int,
    plan: Sweep,
) -> list[dict[str, Any]]:
    """Train one model; one row.

    Args:
        factors: on the lr of the embedding and of the readout.
    """
    adapts = method == "maxP"
    more: dict[str, Any] = {"solve_interval": plan.measure_every} if adapts else {}
    more["lr_multipliers"] = factors._asdict()
    size = (width, plan.depth, INPUTS, OUTPUTS)
    model, p = build(method, "adam", *size, 2.0**log2_lr, seed, base_width=plan.widths[0], **more)
    every = plan.measure_every
    outcome = train(model, p, plan.steps, batch, seed, measured=adapts, measure_every=every)
    run = {"method": method, "batch": batch, "width": width, "log2_lr": log2_lr, "seed": seed}
    return [{**run, **asdict(outcome)}]


def run(plan: Sweep, factors: Factors, workers: int) -> pd.DataFrame:
    """One row per method, batch size, width, learning rate and seed.

    At the base width, all methods are the same run. It is trained once, in the standard
    parametrization.

    Args:
        factors: see `tuning.chosen`.
    """
    base = plan.widths[0]
    grids = dict(plan.log2_lrs)
    at_base = sorted(set().union(*grids.values()))
    sizes = [(width, method) for width in plan.widths[:0:-1] for method in grids]
    tasks = [
        (method, batch, width, log2_lr, factors, seed, plan)
        for width, method in [*sizes, (base, "standard")]
        for batch in plan.batches
        for log2_lr in (at_base if width == base else grids[method])
        for seed in range(plan.seeds)
    ]
    rows = run_all(measure, tasks, workers=workers, label="lr sweep")
    shared = rows[rows.width == base]
    copies = [
        shared[shared.log2_lr.isin(grid)].assign(method=method) for method, grid in grids.items()
    ]
    return pd.concat([rows[rows.width != base], *copies], ignore_index=True)


def curves(rows: pd.DataFrame, over: str = "width") -> pd.DataFrame:
    """Mean loss over seeds by method, size and lr, of one batch size; infinite if one diverged.

    Args:
        over: the column of the size.
    """
    finite = rows.assign(loss=rows.loss.where(np.isfinite(rows.loss), math.inf))
    return finite.groupby(["method", over, "log2_lr"], as_index=False)[["loss"]].mean()


def best(rows: pd.DataFrame, over: str = "width") -> pd.DataFrame:
    """For each method and size, the learning rate with the smallest mean loss over seeds.

    Columns: ``best`` (the grid's log2 lr); ``between`` (the vertex of the parabola in log lr and
    log loss through the best point and its neighbours); ``loss``; ``at_edge`` (the best is the
    first or last of the grid, so the optimum may be outside).
    """
    bests = []
    for (method, size), curve in curves(rows, over).groupby(["method", over]):
        curve = curve.sort_values("log2_lr")
        lrs, losses = curve.log2_lr.to_numpy(), curve.loss.to_numpy()
        i = int(np.argmin(losses))
        bests.append(
            {
                "method": method,
                over: size,
                "best": int(lrs[i]),
                "between": minimum(lrs, np.log(losses)),
                "loss": float(losses[i]),
                "at_edge": i in (0, len(lrs) - 1),
            }
        )
    return pd.DataFrame(bests)


def movement(rows: pd.DataFrame, method: str, over: str = "width") -> Fit:
    """The power of the size with which a method's best lr moves, fitted to each seed's best lr."""
    mine = rows[rows.method == method]
    sizes = np.array(sorted(mine[over].unique()), dtype=np.float64)
    lrs = np.stack(
        [
            best(frame, over).sort_values(over).between.to_numpy()
            for _, frame in mine.groupby("seed")
        ]
    )
    return slope(sizes, 2.0**lrs)


def regret(rows: pd.DataFrame, method: str, over: str = "width") -> Fit:
    """Loss at the base's best lr minus the smallest loss, at the largest size.

    Both lrs are those with the smallest mean loss over seeds. The difference is paired over seeds,
    with half of its 95% interval.
    """
    mine = rows[rows.method == method]
    lrs = best(mine, over).sort_values(over).best
    wide = mine[mine[over] == mine[over].max()].pivot(
        index="seed", columns="log2_lr", values="loss"
    )
    lost = (wide[lrs.iloc[0]] - wide[lrs.iloc[-1]]).to_numpy()
    return over_seeds(lost)


def carried_difference(rows: pd.DataFrame, one: str, other: str) -> Fit:
    """Loss of one method minus that of another, paired over seeds.

    Both are at the largest width, with the best lr of the base width, which they share.
    """
    lr = best(rows[rows.method == one]).sort_values("width").best.iloc[0]
    wide = rows[(rows.width == rows.width.max()) & (rows.log2_lr == lr)]
    losses = wide.pivot(index="seed", columns="method", values="loss")
    return over_seeds((losses[one] - losses[other]).to_numpy())


def prediction(rows: pd.DataFrame, method: str) -> dict[str, Any]:
    """The power of n with which measured alignment says that a method's best lr moves.

    For a layer, it is the c that the method uses minus the c that the program gives for the
    alignment of the method's own runs. The smallest of them counts: there, the changes grow fastest
    with the width. The alignment is that at each width's best lr, the mean over widths and seeds.

    Returns:
        ``hidden`` and ``readout``, the measured alignment; ``growth`` of both, the slope over
        widths of ``alignment * log n``, the log of the factor that alignment stands for;
        ``by_growth``, the power of hidden layers with this slope in place of their alignment;
        ``layers``, the power of each layer type; ``power``, the smallest; ``decides``, its type.
    """
    mine = rows[rows.method == method]
    lrs = best(mine).set_index("width").best
    at_best = mine[mine.log2_lr == mine.width.map(lrs)]
    kinds = ("hidden", "readout")
    means = {kind: float(at_best[f"{kind}_alignment"].mean()) for kind in kinds}
    over = at_best.groupby("width")[[f"{kind}_alignment" for kind in kinds]].mean()
    logs = np.log(over.index.to_numpy(dtype=np.float64))
    growth = {k: float(np.polyfit(logs, over[f"{k}_alignment"] * logs, 1)[0]) for k in kinds}
    needed = {kind: min(1.0, max(0.5, means[kind])) for kind in kinds}
    # a + c: 0 in the standard parametrization, 1 in muP, and in maxP what is needed.
    used = {kind: needed[kind] if method == "maxP" else float(method == "mup") for kind in kinds}
    layers = {"embedding": 0.0, **{kind: used[kind] - needed[kind] for kind in kinds}}
    decides = min(layers, key=layers.__getitem__)
    return {
        **means,
        "growth": growth,
        "by_growth": used["hidden"] - growth["hidden"],
        "layers": layers,
        "power": layers[decides],
        "decides": decides,
    }
