"""Which runs the experiment needs. Later stages depend on the losses of earlier ones.

docs/results.md describes the design. Learning rates are steps of half a decade, `GRID`.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

STEPS = 150
GRID = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
SEEDS = (1, 2, 3)
MORE_SEEDS = (4, 5)
"""At the widest model, for the carried and the best lr."""

FACTORS = (1 / 3, 1.0, 3.0)
"""Factors on the lr of the embedding and of the head that are tried at the base."""

BASE = "cpu64"
WIDTHS = {"cpu64": 64, "cpu128": 128, "cpu256": 256, "cpu512": 512}
WIDEST = "cpu512"
DEPTHS = {"cpu64-d2": 2, "cpu64-d4": 4, "cpu64-d8": 8, "cpu64-d16": 16}
DEPTH_BASE = "cpu64-d2"
ABLATED = "cpu256"
READOUT_EXCESS = 0.228
"""By which the frozen table of Kilian and Wojnar (2025) raises c of the head over mup-no's."""


class Run(NamedTuple):
    """One run; `flags` are those of ``python -m train`` beyond scale, method, lr and seed.

    They contain the number of steps if it is not `STEPS`.
    """

    part: str
    arm: str
    scale: str
    lr: float
    seed: int
    method: str
    flags: str


Losses = Mapping[Run, float]


@dataclass(frozen=True)
class Choice:
    """What is carried from the base: the lr and the factors on embedding and head."""

    lr: float
    embedding: float = 1.0
    readout: float = 1.0

    def flags(self, readout: float = 1.0) -> list[str]:
        """Flags of the factors; ``readout`` multiplies that of the head."""
        factors = {"embedding": self.embedding, "readout": self.readout * readout}
        return [f"--maxp.lr_multipliers.{name}={value:.6g}" for name, value in factors.items()]


@dataclass(frozen=True)
class Arm:
    """A method of the comparison.

    Attributes:
        flags: beyond those of every run.
        readout_power: the head's lr is multiplied by (n / n_base)^-readout_power.
        table: takes the alignment that the base's runs measured.
        factors: uses the factors that were tuned at the base.
    """

    title: str
    method: str
    flags: tuple[str, ...] = ()
    readout_power: float = 0.0
    table: bool = False
    factors: bool = True


ARMS = {
    "sp": Arm("sp", "sp"),
    "mup-full": Arm("mup-full", "mup-full"),
    "mup-no": Arm("mup-no", "mup-no"),
    "maxP": Arm("maxP", "maxP"),
    "maxP-frozen": Arm("maxP-frozen", "maxP-frozen", table=True),
    "maxP-frozen-unbounded": Arm(
        "maxP-frozen, unbounded", "maxP-frozen", ("--maxp.no_bounded",), table=True
    ),
    "mup-no-head": Arm("mup-no, c of the head + 0.228", "mup-no", readout_power=READOUT_EXCESS),
}
FIRST = ("sp", "mup-full", "mup-no", "maxP")
FROZEN = ("maxP-frozen", "maxP-frozen-unbounded", "mup-no-head")

DEPTH_ARMS = {
    "depth-0": Arm("not scaled", "mup-full", ("--maxp.depth_exponent=0",)),
    "depth-1/2": Arm("(L / 2)^-1/2", "mup-full", ("--maxp.depth_exponent=0.5",)),
    "depth-1": Arm("(L / 2)^-1", "mup-full", ("--maxp.depth_exponent=1",)),
}

ABLATIONS = {
    "unbounded": Arm("bounds off", "maxP", ("--maxp.no_bounded",)),
    "no-factors": Arm("factors off", "maxP", factors=False),
    "solve-1": Arm("solve every step", "maxP", ("--maxp.solve_interval=1",)),
    "solve-100": Arm("solve every 100 steps", "maxP", ("--maxp.solve_interval=100",)),
    "c-ema": Arm("c averaged, 0.9", "maxP", ("--maxp.c_ema=0.9",)),
    "alignment-ema": Arm("alignment averaged, 0.9", "maxP", ("--maxp.alignment_ema=0.9",)),
    "coupled-decay": Arm("decay coupled", "maxP", ("--maxp.weight_decay=coupled",)),
    "fixed-eps": Arm("epsilon fixed", "maxP", ("--maxp.epsilon=fixed",)),
    "fixed-probe": Arm("fixed probe", "maxP", ("--maxp.probe=fixed",)),
}
NO_BASE = Arm("no base", "maxP", ("--maxp.base_scale=none",), factors=False)

EVERY = ("--maxp.measure", "--maxp.solve_interval=10")
"""Flags of every run: measuring changes no loss, and gives the alignment of every method."""


def planned(losses: Losses, table: str) -> Iterator[Run]:
    """All runs that can be named from the losses known so far, in order of importance.

    Args:
        table: file of the alignment that the base's best runs measured. It is written once
            `choice` is known.
    """
    yield from _base_grid("base", BASE)
    chosen = choice(losses)
    for factors in _cells(losses):
        yield from seeded("base", "mup-full", BASE, factors, SEEDS)
    if chosen:
        for scale in ("cpu128", "cpu256", "cpu512"):
            for arm in FIRST:
                yield from _ladder(losses, "width", ARMS, arm, scale, chosen, table)
        yield from _depth(losses, chosen)
        for scale in ("cpu128", "cpu256"):
            for arm in FROZEN:
                yield from _ladder(losses, "width", ARMS, arm, scale, chosen, table)
        yield from _ablations(losses, chosen)
        for arm in FROZEN:
            yield from _ladder(losses, "width", ARMS, arm, WIDEST, chosen, table)
        for arm in (*FIRST, *FROZEN):
            yield from _more_seeds(losses, arm, chosen, table)


def choice(losses: Losses) -> Choice | None:
    """The best lr and factors at the base, over 3 seeds; None while a run is missing."""
    cells = _cells(losses)
    if not cells:
        return None
    means = {c: mean(losses, seeded("base", "mup-full", BASE, c, SEEDS)) for c in cells}
    known = {c: value for c, value in means.items() if value is not None}
    if len(known) < len(cells):
        return None
    best = min(known, key=known.__getitem__)
    return best if len(_cells_around(best) - known.keys()) == 0 else None


def table_runs(chosen: Choice) -> list[Run]:
    """The runs whose alignment is the table of maxP-frozen."""
    return seeded("base", "mup-full", BASE, chosen, SEEDS)


def _cells(losses: Losses) -> list[Choice]:
    """Choices to compare at the base: lr alone, factors at its best, and lr around those."""
    alone = {lr: mean(losses, seeded("base", "mup-full", BASE, Choice(lr), SEEDS)) for lr in _START}
    cells = [Choice(lr) for lr in _START]
    if (best := _best(alone)) is None:
        return []
    cells += [Choice(best, e, h) for e, h in itertools.product(FACTORS, FACTORS)]
    cells = list(dict.fromkeys(cells))
    means = {c: mean(losses, seeded("base", "mup-full", BASE, c, SEEDS)) for c in cells}
    if any(value is None for value in means.values()):
        return cells
    chosen = min(cells, key=lambda c: means[c] or 0.0)
    return list(dict.fromkeys([*cells, *sorted(_cells_around(chosen), key=str)]))


_START = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


def _cells_around(cell: Choice) -> set[Choice]:
    at = GRID.index(cell.lr)
    return {Choice(GRID[i], cell.embedding, cell.readout) for i in (at - 1, at + 1)}


def _base_grid(part: str, scale: str) -> Iterator[Run]:
    for seed, lr in itertools.product(SEEDS, _START):
        yield from seeded(part, "mup-full", scale, Choice(lr), (seed,))


def seeded(
    part: str, arm: str, scale: str, chosen: Choice, seeds: tuple[int, ...], *more: str
) -> list[Run]:
    flags = " ".join([*EVERY, *chosen.flags(), *more])
    return [Run(part, arm, scale, chosen.lr, seed, "mup-full", flags) for seed in seeds]


def run_of(
    part: str, arms: Mapping[str, Arm], arm: str, scale: str, at: Choice, table: str, seed: int
) -> Run:
    """The run of an arm with what is carried from the base, at lr ``at.lr``."""
    of = arms[arm]
    ratio = WIDTHS.get(scale, WIDTHS[BASE]) / WIDTHS[BASE]
    factors = at if of.factors else Choice(at.lr)
    flags = [*EVERY, *factors.flags(readout=ratio**-of.readout_power), *of.flags]
    if of.table:
        flags.append(f"--alignment-table={table}")
    return Run(part, arm, scale, at.lr, seed, of.method, " ".join(flags))


def _ladder(
    losses: Losses, part: str, arms: Mapping[str, Arm], arm: str, scale: str, chosen: Choice,
    table: str,
) -> Iterator[Run]:  # fmt: skip
    """The carried lr and half a decade either side; further while the best is at an edge."""

    def at(lr: float) -> list[Run]:
        moved = Choice(lr, chosen.embedding, chosen.readout)
        return [run_of(part, arms, arm, scale, moved, table, seed) for seed in SEEDS]

    for lr in extended(losses, chosen.lr, at):
        yield from at(lr)


def extended(
    losses: Losses,
    start: float,
    at: Callable[[float], list[Run]],
    grid: Sequence[float] = GRID,
    reach: int = 1,
) -> list[float]:
    """The lrs to run: ``start`` and its neighbours, extended while the best is an end of them.

    Args:
        reach: how many neighbours on either side.
    """
    middle = grid.index(start)
    low, high = max(0, middle - reach), min(len(grid) - 1, middle + reach)
    while True:
        means = {lr: mean(losses, at(lr)) for lr in grid[low : high + 1]}
        best = _best(means)
        if best == grid[low] and low > 0:
            low -= 1
        elif best == grid[high] and high < len(grid) - 1:
            high += 1
        else:
            return list(grid[low : high + 1])


def tuned(
    losses: Losses,
    start: float,
    at: Callable[[float], list[Run]],
    grid: Sequence[float] = GRID,
) -> float | None:
    """The best of the lrs of `extended`; None while a loss is missing."""
    return _best({lr: mean(losses, at(lr)) for lr in extended(losses, start, at, grid)})


def _more_seeds(losses: Losses, arm: str, chosen: Choice, table: str) -> Iterator[Run]:
    def at(lr: float, seeds: tuple[int, ...] = SEEDS) -> list[Run]:
        moved = Choice(lr, chosen.embedding, chosen.readout)
        return [run_of("width", ARMS, arm, WIDEST, moved, table, seed) for seed in seeds]

    best = tuned(losses, chosen.lr, at)
    for lr in dict.fromkeys([chosen.lr, best or chosen.lr]):
        yield from at(lr, MORE_SEEDS)


def _depth(losses: Losses, chosen: Choice) -> Iterator[Run]:
    """The base of the depth ladder is tuned over lr, and its best lr is carried."""

    def at(scale: str, arm: str, lr: float) -> list[Run]:
        moved = Choice(lr, chosen.embedding, chosen.readout)
        return [run_of("depth", DEPTH_ARMS, arm, scale, moved, "", seed) for seed in SEEDS]

    at_base = partial(at, DEPTH_BASE, "depth-1")
    for lr in extended(losses, chosen.lr, at_base):
        yield from at_base(lr)
    best = tuned(losses, chosen.lr, at_base)
    if best is None:
        return
    for scale in ("cpu64-d4", "cpu64-d8", "cpu64-d16"):
        for arm in DEPTH_ARMS:
            for lr in extended(losses, best, lambda lr, s=scale, a=arm: at(s, a, lr)):  # type: ignore[misc]
                yield from at(scale, arm, lr)


def _ablations(losses: Losses, chosen: Choice) -> Iterator[Run]:
    arms = {**ABLATIONS, "no-base": NO_BASE}
    for seed, arm in itertools.product(SEEDS, ABLATIONS):
        yield run_of("ablation", arms, arm, ABLATED, chosen, "", seed)

    def at(scale: str, lr: float) -> list[Run]:
        return [run_of("ablation", arms, "no-base", scale, Choice(lr), "", s) for s in SEEDS]

    start, at_base = 3e-1, partial(at, BASE)
    for lr in extended(losses, start, at_base):
        yield from at_base(lr)
    best = tuned(losses, start, at_base)
    if best is not None:
        for lr in extended(losses, best, lambda lr: at(ABLATED, lr)):
            yield from at(ABLATED, lr)


def mean(losses: Losses, runs: list[Run]) -> float | None:
    """The mean loss of runs that differ in their seed; None while one is missing."""
    values = [losses.get(run) for run in runs]
    if any(value is None for value in values):
        return None
    return statistics.fmean(value for value in values if value is not None)


def _best(means: Mapping[float, float | None]) -> float | None:
    """The lr with the smallest loss; None while a loss is missing."""
    known = {lr: loss for lr, loss in means.items() if loss is not None}
    if len(known) < len(means):
        return None
    best = min(known, key=known.__getitem__)
    return best if math.isfinite(known[best]) else None
