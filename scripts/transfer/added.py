"""The parts that were added after the first design: the token horizon, and Muon.

Their learning rates are steps of a factor of 2 from the carried one, `halves`. Their runs do not
measure alignment. Further parts are in `recipes` and `objectives`.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from scripts.transfer.objectives import objective_runs
from scripts.transfer.plan import SEEDS, STEPS, Choice, Losses, Run, choice, extended, planned
from scripts.transfer.recipes import FOUR_TIMES_THE_TOKENS, recipe_runs
from scripts.transfer.results import Data, complete

LENGTHS = {"x1": STEPS, "x2": 2 * STEPS, "x4": 4 * STEPS}
"""Arm of the part "horizon" -> the number of steps of its runs."""

STEP_TOKENS = 512

MUON_WIDTHS = {"cpu64": 64, "cpu128": 128, "cpu256": 256}
LARGE_BATCH = "tokens-x4"
_MUON = "--optimizer=muon"
MUON_ARMS = {
    "mup-full": (MUON_WIDTHS, _MUON),
    LARGE_BATCH: (
        {"cpu64": 64, "cpu256": 256},
        " ".join([_MUON, *FOUR_TIMES_THE_TOKENS]),
    ),
}
"""Arm of the part "muon" -> its widths by scale, and the flags of its runs."""

LAW = -0.32
"""The power of the best lr over tokens that Bjorck et al. (arXiv 2409.19913) report."""


def all_runs(losses: Losses, table: str) -> list[Run]:
    """The runs of the first design, then the added ones; arguments as of `planned`."""
    return list(dict.fromkeys(_parts(losses, table)))  # two parts can share a run


def _parts(losses: Losses, table: str) -> Iterator[Run]:
    yield from planned(losses, table)
    if chosen := choice(losses):
        for seed in SEEDS:
            yield from _muon(losses, "mup-full", chosen, seed)
            yield from _horizon(losses, chosen, seed, reach=1)
        for seed in SEEDS:
            yield from _horizon(losses, chosen, seed, reach=2)
        for seed in SEEDS:
            yield from _muon(losses, LARGE_BATCH, chosen, seed)
        yield from recipe_runs(losses, table, chosen)
        yield from objective_runs(table, chosen)


def _horizon(losses: Losses, chosen: Choice, seed: int, reach: int) -> Iterator[Run]:
    for arm, steps in LENGTHS.items():
        flags = f"--steps={steps}"
        yield from _tuned(losses, "horizon", arm, "cpu64", chosen, seed, reach, flags)


def _muon(losses: Losses, arm: str, chosen: Choice, seed: int) -> Iterator[Run]:
    widths, flags = MUON_ARMS[arm]
    for scale in widths:
        yield from _tuned(losses, "muon", arm, scale, chosen, seed, 1, flags)


def halves(lr: float) -> tuple[float, ...]:
    """Learning rates in steps of a factor of 2, with ``lr`` in the middle."""
    return tuple(lr * 2.0**power for power in range(-8, 9))


def _tuned(
    losses: Losses, part: str, arm: str, scale: str, chosen: Choice, seed: int, reach: int,
    more: str,
) -> Iterator[Run]:  # fmt: skip
    """The carried lr and ``reach`` steps either side; further while the best is at an edge.

    Args:
        seed: the last one to run.
    """

    def at(lr: float) -> list[Run]:
        flags = " ".join([*replace(chosen, lr=lr).flags(), more])
        return [Run(part, arm, scale, lr, n, "mup-full", flags) for n in SEEDS if n <= seed]

    grid = halves(chosen.lr)
    for lr in extended(losses, chosen.lr, at, grid, reach):
        yield from at(lr)


def horizon_curves(data: Data) -> dict[int, pd.DataFrame]:
    """Number of training tokens -> losses, as from `Data.curve`, of the seeds that all have."""
    curves = {
        steps * STEP_TOKENS: data.curve("horizon", arm, "cpu64") for arm, steps in LENGTHS.items()
    }
    return _common(curves)


def muon_curves(data: Data, arm: str = "mup-full") -> dict[int, pd.DataFrame]:
    """Width -> losses of Muon, of the seeds that all widths have.

    Args:
        arm: ``mup-full``, or `LARGE_BATCH` for four times the tokens per step.
    """
    widths, _ = MUON_ARMS[arm]
    return _common({width: data.curve("muon", arm, scale) for scale, width in widths.items()})


def _common(curves: dict[int, pd.DataFrame]) -> dict[int, pd.DataFrame]:
    kept = {size: curve for size, curve in curves.items() if _tried(curve, 1)}
    return {size: curve.loc[: seeds_of(kept)] for size, curve in kept.items()}


def seeds_of(curves: dict[int, pd.DataFrame]) -> int:
    """How many seeds all curves have."""
    return max(n for n in (1, *SEEDS) if n == 1 or all(_tried(c, n) for c in curves.values()))


def _tried(curve: pd.DataFrame, seeds: int) -> bool:
    """Whether so many seeds have a lr on either side of a third one."""
    return len(complete(curve, seeds).columns) >= 3
