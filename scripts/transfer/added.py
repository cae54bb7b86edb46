"""The parts that were added after the first design: the token horizon, and Muon.

Their learning rates are steps of a factor of 2 from the carried one, `halves`. Their runs do not
measure alignment.
"""

from collections.abc import Iterator
from dataclasses import replace

import pandas as pd

from scripts.transfer.plan import SEEDS, STEPS, Choice, Losses, Run, choice, extended, planned
from scripts.transfer.results import Data, complete

LENGTHS = {"x1": STEPS, "x2": 2 * STEPS, "x4": 4 * STEPS}
"""Arm of the part "horizon" -> the number of steps of its runs."""

STEP_TOKENS = 512

MUON_WIDTHS = {"cpu64": 64, "cpu128": 128, "cpu256": 256}
MUON_SEEDS = (1, 2)

LAW = -0.32
"""The power of the best lr over tokens that Bjorck et al. (arXiv 2409.19913) report."""


def all_runs(losses: Losses, table: str) -> Iterator[Run]:
    """The runs of the first design, then the added ones; arguments as of `planned`."""
    yield from planned(losses, table)
    if chosen := choice(losses):
        yield from _horizon(losses, chosen, ("x1", "x4"), reach=1)
        for scale in MUON_WIDTHS:
            flag = "--optimizer=muon"
            yield from _tuned(losses, "muon", "mup-full", scale, chosen, flag, MUON_SEEDS)
        yield from _horizon(losses, chosen, ("x2",), reach=1)
        yield from _horizon(losses, chosen, tuple(LENGTHS), reach=2)


def _horizon(losses: Losses, chosen: Choice, arms: tuple[str, ...], reach: int) -> Iterator[Run]:
    for arm in arms:
        flag = f"--steps={LENGTHS[arm]}"
        yield from _tuned(losses, "horizon", arm, "cpu64", chosen, flag, SEEDS, reach)


def halves(lr: float) -> tuple[float, ...]:
    """Learning rates in steps of a factor of 2, with ``lr`` in the middle."""
    return tuple(lr * 2.0**power for power in range(-8, 9))


def _tuned(
    losses: Losses, part: str, arm: str, scale: str, chosen: Choice, flag: str,
    seeds: tuple[int, ...], reach: int = 1,
) -> Iterator[Run]:  # fmt: skip
    """The carried lr and ``reach`` steps either side; further while the best is at an edge."""

    def at(lr: float) -> list[Run]:
        flags = " ".join([*replace(chosen, lr=lr).flags(), flag])
        return [Run(part, arm, scale, lr, seed, "mup-full", flags) for seed in seeds]

    for lr in extended(losses, chosen.lr, at, halves(chosen.lr), reach):
        yield from at(lr)


def horizon_curves(data: Data) -> dict[int, pd.DataFrame]:
    """Number of training tokens -> losses, as from `Data.curve`; without lengths that have none."""
    curves = {
        steps * STEP_TOKENS: data.curve("horizon", arm, "cpu64") for arm, steps in LENGTHS.items()
    }
    return {tokens: curve for tokens, curve in curves.items() if not complete(curve).empty}


def muon_curves(data: Data) -> dict[int, pd.DataFrame]:
    """Width -> losses of Muon; without widths that have none."""
    curves = {width: data.curve("muon", "mup-full", scale) for scale, width in MUON_WIDTHS.items()}
    seeds = len(MUON_SEEDS)
    return {width: curve for width, curve in curves.items() if not complete(curve, seeds).empty}
