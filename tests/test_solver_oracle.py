"""The solver against an independent mixed-integer program, on random graphs and exponents.

Random exponents come in steps of 1/512 (`GRID`), so that the oracle is exact.
"""

import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from solver_cases import KINDS, random_kind, total

from maxp.exponents import PRESETS, Alignment, Exponents, OptimizerType, change_exponents
from maxp.graph import Graph, JoinNode, Node, SiteNode
from maxp.solver import solve
from scripts.bench.milp_oracle import (
    chain_of,
    changes,
    fix_some,
    preset_exponents,
    random_exponents,
    random_graph,
    solve_big_m,
)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")

BATCHES = 20


def assert_as_good_as_the_oracle(
    graph: Graph, exponents: Mapping[str, Exponents], kind: OptimizerType
) -> None:
    """The objective is the oracle's; r follows the oracle's own formulas, and none is below 0."""
    oracle, solution = solve_big_m(graph, exponents, kind), solve(graph, exponents, kind)
    assert oracle is not None
    assert total(solution.c) == pytest.approx(oracle.objective, rel=0, abs=1e-6)
    assert solution.r == pytest.approx(changes(graph, exponents, solution.c, kind))
    assert min(solution.r.values()) >= -1e-9


@pytest.mark.parametrize("batch", range(BATCHES))
def test_on_random_chains_the_objective_is_the_oracles(batch: int) -> None:
    rng = random.Random(batch)
    for degenerate in (False, True) * 5:
        graph = chain_of(rng.randint(10, 30))
        drawn = random_exponents(rng, graph, degenerate=degenerate)
        assert_as_good_as_the_oracle(graph, drawn, random_kind(rng))


@pytest.mark.parametrize("batch", range(BATCHES))
def test_on_random_graphs_the_objective_is_the_oracles(batch: int) -> None:
    rng = random.Random(1000 + batch)
    for degenerate in (False, True, False):
        graph = random_graph(rng, blocks=rng.randint(1, 5))
        drawn = random_exponents(rng, graph, degenerate=degenerate)
        assert_as_good_as_the_oracle(graph, drawn, random_kind(rng))


@pytest.mark.parametrize("batch", range(BATCHES))
def test_with_some_c_fixed_the_objective_is_the_oracles(batch: int) -> None:
    rng = random.Random(2000 + batch)
    for graph in (chain_of(rng.randint(5, 20)), random_graph(rng, blocks=rng.randint(1, 4))):
        kind = random_kind(rng)
        drawn = random_exponents(rng, graph, degenerate=rng.random() < 0.5)
        assert_as_good_as_the_oracle(
            graph, fix_some(rng, drawn, solve(graph, drawn, kind).c, 0.3), kind
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_on_chains_of_226_sites_the_objective_is_the_oracles(
    kind: OptimizerType, seed: int
) -> None:
    rng = random.Random(seed)
    graph = chain_of(226)
    assert_as_good_as_the_oracle(graph, random_exponents(rng, graph), kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_on_graphs_of_40_blocks_the_objective_is_the_oracles(
    kind: OptimizerType, seed: int
) -> None:
    rng = random.Random(seed)
    graph = random_graph(rng, blocks=40)
    assert_as_good_as_the_oracle(graph, random_exponents(rng, graph), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_r_is_at_least_0_after_rounding_when_exponents_are_arbitrary_floats(
    kind: OptimizerType,
) -> None:
    rng = random.Random(0)
    graph = chain_of(40)
    for _ in range(10):
        exponents = {
            name: replace(
                e,
                alignment=Alignment(
                    rng.uniform(0.5, 1), rng.uniform(0.45, 0.6), rng.uniform(0.5, 1)
                ),
            )
            for name, e in preset_exponents(graph, "mup", PRESETS["full"]).items()
        }
        c = solve(graph, exponents, kind).c
        assert min(change_exponents(graph, exponents, c, kind).values()) >= -1e-9


def test_a_bilinear_site_that_magnifies_small_changes_does_not_trade_the_objective_away() -> None:
    """31 embeddings, summed and squared 5 times (r doubles), then carried to the readout.

    Raising all 31 r by 1/64 costs 31/64 and raises the readout's r_in by 1/2, which saves 1/2: a
    gain of 1/64 for a total r that grows with every site on the way, so no weight on r, only an
    order of stages, finds it.
    """
    plain = Alignment(0.5, 0.5, 0.5)
    nodes: dict[str, Node] = {}
    exponents = {}
    for i in range(31):
        nodes[f"e{i}"] = SiteNode(f"e{i}", "embedding", (None,))
        exponents[f"e{i}"] = Exponents(0.0, 0.0, plain)
    nodes["sum"], feed = JoinNode("sum", tuple(nodes)), "sum"
    for i in range(65):
        nodes[f"s{i}"] = SiteNode(f"s{i}", "hidden", (feed, feed), has_weight=False)
        square = i < 5
        exponents[f"s{i}"] = (
            Exponents(1.0, 0.0, Alignment(0.0, 0.0, 1.0)) if square else Exponents(0.5, 0.0, plain)
        )
        feed = f"s{i}"
    nodes["readout"] = SiteNode("readout", "readout", (feed,))
    exponents["readout"] = Exponents(0.5, 0.5, Alignment(0.5, 0.5, 1.0))
    assert total(solve(Graph(nodes), exponents).c) == pytest.approx(31 / 64, abs=1e-6)
