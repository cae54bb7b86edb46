"""The learning-rate sweep over depths, at the base width: with which rules the best one stays.

At the base width, all methods are the same run, so the arms are not methods: they are the plain
chain of the other parts, and a residual MLP with three rules for depth.
"""

from dataclasses import asdict
from typing import Any

import pandas as pd

from maxp import Depth
from scripts.study.mlp import build
from scripts.study.plan import Depths, Sweep
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train
from scripts.study.sweep import Factors

# The name in rows -> the name in tables and figures, and the exponent of the branch's multiplier.
ARMS: dict[str, tuple[str, float | None]] = {
    "chain": ("no residual", None),
    "residual": ("residual, no rule", None),
    "half": ("residual, exponent 1/2", 0.5),
    "one": ("residual, exponent 1", 1.0),
}
# Derived power of the number of hidden layers with which the best lr moves.
DERIVED = {"chain": -1.0, "residual": -1.0, "half": 0.0, "one": 0.0}


def measure(
    arm: str, blocks: int, log2_lr: int, seed: int, factors: Factors, plan: Depths, sweep: Sweep
) -> list[dict[str, Any]]:
    """Train one model; one row."""
    exponent = ARMS[arm][1]
    ends = [f"hidden.{i}" for i in range(blocks)]
    rule = None if exponent is None else Depth(blocks / plan.blocks[0], exponent, branches=ends)
    base = sweep.widths[0]
    more: dict[str, Any] = {"lr_multipliers": factors._asdict(), "rule": rule}
    more |= {"base_width": base, "residual": arm != "chain"}
    size = (base, blocks + 2, INPUTS, OUTPUTS)
    model, p = build("standard", "adam", *size, 2.0**log2_lr, seed, **more)
    outcome = asdict(train(model, p, plan.steps, plan.batch, seed))
    run = {"method": arm, "blocks": blocks, "log2_lr": log2_lr, "seed": seed}
    return [run | {name: outcome[name] for name in ("loss", "late_loss", "accuracy")}]


def run(plan: Depths, sweep: Sweep, factors: Factors, workers: int) -> pd.DataFrame:
    """One row per arm, number of hidden layers, learning rate and seed.

    Args:
        factors: see `tuning.chosen`.
    """
    tasks = [
        (arm, blocks, log2_lr, seed, factors, plan, sweep)
        for blocks in plan.blocks[::-1]
        for arm in ARMS
        for log2_lr in plan.log2_lrs
        for seed in range(plan.seeds)
    ]
    return run_all(measure, tasks, workers=workers, label="depth sweep")
