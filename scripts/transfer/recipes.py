"""Parts of the recipe of Kilian and Wojnar (2025), varied one at a time at `WHERE`.

Each part compares maxP-frozen, with a table that was measured under that part, with mup-no.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from scripts.transfer.plan import (
    ABLATED,
    ARMS,
    BASE,
    SEEDS,
    Choice,
    Losses,
    Run,
    extended,
    run_of,
    seeded,
    tuned,
)

PART = "published"
WHERE = ABLATED
BATCH = 16
"""Sequences per step with four times the tokens per step of all other runs."""

FOUR_TIMES_THE_TOKENS = (
    f"--training.local_batch_size={BATCH}",
    f"--training.global_batch_size={BATCH}",
)


@dataclass(frozen=True)
class Recipe:
    """What differs from the recipe of the other runs.

    Attributes:
        flags: of the runs of both methods, and of those that measure the table.
        passive: the table is measured by mup-no at `WHERE`, at its best lr, instead of by the base
            at the carried lr. The runs of mup-no are those of the width ladder.
    """

    title: str
    flags: tuple[str, ...] = ()
    passive: bool = False

    @property
    def methods(self) -> tuple[str, ...]:
        return ("maxP-frozen",) if self.passive else ("mup-no", "maxP-frozen")


RECIPES = {
    "passive": Recipe(f"table from passive runs of `mup-no` at `{WHERE}`", passive=True),
    "bfloat16": Recipe("bfloat16", ("--training.dtype=bfloat16",)),
    "tokens-x4": Recipe("2,048 tokens per step", FOUR_TIMES_THE_TOKENS),
}


def arm_of(name: str, method: str) -> str:
    """The arm, as in docs/results/runs.csv, of a method under the recipe of that name."""
    return f"{name}-{method}"


def table_of(table: str, name: str) -> str:
    """The file of the recipe's alignment, beside ``table``, that of the first design."""
    file = Path(table)
    return str(file.with_stem(f"{file.stem}_{name.replace('-', '_')}"))


def recipe_runs(losses: Losses, table: str, chosen: Choice) -> Iterator[Run]:
    """The runs that measure each recipe's table, and then those of its methods."""
    for name, recipe in RECIPES.items():
        measuring = table_runs_of(losses, table, chosen, name)
        yield from measuring
        if measuring and all(run in losses for run in measuring):
            yield from _compared(losses, table_of(table, name), chosen, name, recipe)


def table_runs_of(losses: Losses, table: str, chosen: Choice, name: str) -> list[Run]:
    """The runs whose alignment is the table of a recipe; none while they cannot be named."""
    recipe, arm = RECIPES[name], arm_of(name, "table")
    if not recipe.passive:
        return seeded(PART, arm, BASE, chosen, SEEDS, *recipe.flags)

    def at(lr: float) -> list[Run]:
        moved = replace(chosen, lr=lr)
        return [run_of("width", ARMS, "mup-no", WHERE, moved, table, seed) for seed in SEEDS]

    best = tuned(losses, chosen.lr, at)
    return [] if best is None else [run._replace(part=PART, arm=arm) for run in at(best)]


def _compared(
    losses: Losses, table: str, chosen: Choice, name: str, recipe: Recipe
) -> Iterator[Run]:
    """Each method at the carried lr and half a decade either side, further as `extended` says."""

    def at(method: str, lr: float) -> list[Run]:
        flags = [*replace(chosen, lr=lr).flags(), *recipe.flags]
        if ARMS[method].table:
            flags.append(f"--alignment-table={table}")
        arm = arm_of(name, method)
        return [Run(PART, arm, WHERE, lr, seed, method, " ".join(flags)) for seed in SEEDS]

    for method in recipe.methods:
        of_method = partial(at, method)
        for lr in extended(losses, chosen.lr, of_method):
            yield from of_method(lr)
