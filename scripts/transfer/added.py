"""The parts that were added after the first design: the token horizon, and Muon.

Their learning rates are steps of a factor of 2 from the carried one, `halves`. Only those of `maxP`
measure alignment. Further parts are in `recipes` and `objectives`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pandas as pd

from scripts.transfer.objectives import objective_runs
from scripts.transfer.plan import (
    ABLATED,
    BASE,
    EVERY,
    SEEDS,
    STEPS,
    Choice,
    Losses,
    Run,
    choice,
    extended,
    planned,
    tuned,
)
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

MUON_METHODS = {"maxP": EVERY, "mup-no": (), "sp": ()}
"""Method that `ABLATED` compares with mup-full under `LARGE_BATCH` -> more flags of its runs."""

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
        yield from _muon_methods(losses, chosen)


def _horizon(losses: Losses, chosen: Choice, seed: int, reach: int) -> Iterator[Run]:
    for arm, steps in LENGTHS.items():
        at = _seeded("horizon", arm, "cpu64", chosen, seed, f"--steps={steps}")
        yield from _tuned(losses, chosen.lr, at, reach)


def _muon(losses: Losses, arm: str, chosen: Choice, seed: int) -> Iterator[Run]:
    widths, flags = MUON_ARMS[arm]
    for scale in widths:
        yield from _tuned(losses, chosen.lr, _seeded("muon", arm, scale, chosen, seed, flags))


def _muon_methods(losses: Losses, chosen: Choice) -> Iterator[Run]:
    """The methods other than mup-full, at the lr that Muon carries from the base."""
    _, flags = MUON_ARMS[LARGE_BATCH]
    at_base = _seeded("muon", LARGE_BATCH, BASE, chosen, SEEDS[-1], flags)
    carried = tuned(losses, chosen.lr, at_base, halves(chosen.lr))
    if carried is None:
        return
    for method, more in MUON_METHODS.items():
        given = " ".join([flags, *more])
        at = _seeded("muon", method_arm(method), ABLATED, chosen, SEEDS[-1], given, method)
        yield from _tuned(losses, carried, at)


def method_arm(method: str) -> str:
    """The arm of one of `MUON_METHODS`."""
    return f"{LARGE_BATCH}-{method}"


def halves(lr: float) -> tuple[float, ...]:
    """Learning rates in steps of a factor of 2, with ``lr`` in the middle."""
    return tuple(lr * 2.0**power for power in range(-8, 9))


def _seeded(
    part: str, arm: str, scale: str, chosen: Choice, seed: int, more: str,
    method: str = "mup-full",
) -> Callable[[float], list[Run]]:  # fmt: skip
    """The runs at a lr, one per seed, of which ``seed`` is the last."""

    def at(lr: float) -> list[Run]:
        flags = " ".join([*replace(chosen, lr=lr).flags(), more])
        return [Run(part, arm, scale, lr, n, method, flags) for n in SEEDS if n <= seed]

    return at


def _tuned(
    losses: Losses, start: float, at: Callable[[float], list[Run]], reach: int = 1
) -> Iterator[Run]:
    """``start`` and ``reach`` steps either side; further while the best is at an edge."""
    for lr in extended(losses, start, at, halves(start), reach):
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
