"""A program that is solved again from its last solution gives what a new one gives."""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from solver_cases import FULL, KINDS, llama

from maxp.exponents import Alignment, Exponents, OptimizerType
from maxp.graph import Graph
from maxp.solver import InfeasibleProgramError, Program, solve
from scripts.bench.milp_oracle import chain_of, preset_exponents

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("graph", [chain_of(30), llama(4)], ids=["chain", "llama"])
def test_a_warm_start_changes_nothing(graph: Graph, kind: OptimizerType) -> None:
    rng = random.Random(7)
    warm = Program(graph, kind, warm_start=True)
    exponents = preset_exponents(graph, "mup", FULL)
    for step in range(40):
        # Every fifth step returns to the degenerate grid, where many c share the optimum.
        exponents = walk(rng, graph, exponents, on_grid=step % 5 == 0)
        assert warm.solve(exponents).c == solve(graph, exponents, kind).c


def walk(
    rng: random.Random, graph: Graph, exponents: Mapping[str, Exponents], *, on_grid: bool
) -> dict[str, Exponents]:
    """Move every measured exponent a little; sites without a weight keep theirs."""

    def move(x: float) -> float:
        x = min(1.1, max(0.3, x + rng.gauss(0, 0.05)))
        return round(4 * x) / 4 if on_grid else x

    return {
        site.name: replace(
            exponents[site.name], alignment=Alignment(*map(move, exponents[site.name].alignment))
        )
        if site.has_weight
        else exponents[site.name]
        for site in graph.sites
    }


def test_a_warm_start_survives_an_infeasible_program_and_newly_fixed_c() -> None:
    graph = chain_of(5)
    free = preset_exponents(graph, "mup", FULL)
    impossible = {**free, "embedding": replace(free["embedding"], c=0.0)}
    possible = {**free, "embedding": replace(free["embedding"], c=0.75)}
    warm = Program(graph, warm_start=True)
    warm.solve(free)
    with pytest.raises(InfeasibleProgramError):
        warm.solve(impossible)
    assert warm.solve(possible).c == solve(graph, possible).c
    assert warm.solve(free).c == solve(graph, free).c


def test_a_warm_start_is_a_cold_one_once_qk_asks_for_more_than_its_inputs() -> None:
    graph = llama(1)
    before = preset_exponents(graph, "mup", Alignment(1.0, 0.25, 1.0))
    after = {**before, "0.qk": Exponents(0.5, 0.0, Alignment(0.5, 0.5, 0.75))}
    program = Program(graph, warm_start=True)
    program.solve(before)
    assert program.solve(after).c == solve(graph, after).c
