"""Programs without a solution, and input that is no program: what the error says."""

import random
from dataclasses import replace

import pytest
from solver_cases import FULL, random_kind

from maxp.exponents import Exponents
from maxp.graph import Graph, SiteNode
from maxp.solver import InfeasibleProgramError, Program, solve
from scripts.bench.milp_oracle import chain_of, preset_exponents, random_exponents, solve_big_m

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


@pytest.mark.parametrize(
    ("site", "constraint"),
    [
        ("embedding", "a + c"),
        ("hidden1", "a + c - align_z0_dW"),
        ("readout", "a + c - align_z0_dW"),
    ],
)
def test_an_infeasible_program_names_the_site_and_the_constraint(
    site: str, constraint: str
) -> None:
    graph = chain_of(4)
    exponents = preset_exponents(graph, "mup", FULL)
    exponents[site] = replace(exponents[site], c=-1.0)
    with pytest.raises(InfeasibleProgramError) as caught:
        solve(graph, exponents)
    assert any(line.startswith(f"{site}: {constraint} ") for line in caught.value.binding)
    assert all(line.startswith(f"{site}: ") for line in caught.value.binding)
    assert caught.value.binding[0] in str(caught.value)


def test_where_the_oracle_finds_nothing_the_program_is_infeasible() -> None:
    rng = random.Random(8)
    infeasible = 0
    for _ in range(30):
        kind, graph = random_kind(rng), chain_of(6)
        exponents = random_exponents(rng, graph)
        c = solve(graph, exponents, kind).c
        exponents["hidden2"] = replace(exponents["hidden2"], c=round(c["hidden2"] * 8) / 8)
        if solve_big_m(graph, exponents, kind) is None:
            infeasible += 1
            with pytest.raises(InfeasibleProgramError):
                solve(graph, exponents, kind)
        else:
            solve(graph, exponents, kind)
    assert 0 < infeasible < 30


def test_sgd_without_a_readout_is_refused() -> None:
    graph = Graph({"embedding": SiteNode("embedding", "embedding", (None,))})
    with pytest.raises(ValueError, match="readout"):
        solve(graph, {"embedding": Exponents(0.0, 0.0, FULL)}, "sgd")


def test_an_unknown_optimizer_type_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimizer_type must be one of adam, sgd, got 'lion'"):
        Program(chain_of(3), "lion")  # type: ignore[arg-type]
