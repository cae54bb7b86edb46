"""With feature learning asked for, the solver finds what the program's relaxation would miss."""

import math
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
from models import sources
from solver_cases import FULL, HALF, KINDS, feature_case, total

from maxp.exponents import Alignment, Exponents, OptimizerType
from maxp.graph import Graph, SiteNode
from maxp.solver import InfeasibleProgramError, solve
from scripts.bench.milp_oracle import GRID, changes, random_exponents, random_graph, solve_big_m

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


def assert_only_the_exact_program_learns_features(
    case: tuple[Graph, dict[str, Exponents]],
    kind: OptimizerType,
    *,
    last: str,
    relaxed: float,
    exact: Mapping[str, float],
) -> None:
    graph, exponents = case
    loose = solve_big_m(graph, exponents, kind, feature_learning=True, relaxed=True)
    assert loose is not None
    assert loose.objective == pytest.approx(relaxed)
    assert changes(graph, exponents, loose.c, kind)[last] > 0.05  # it should have been 0
    solution = solve(graph, exponents, kind, feature_learning=True)
    assert solution.c == pytest.approx(dict(exact))
    assert solution.r[last] == pytest.approx(0, abs=1e-9)


def test_features_are_learnt_where_adams_relaxation_would_freeze_them() -> None:
    """``last`` has r = min(2 - 1, 2 + r_E - 1, r_E - 0.1): only r_E = 0.1 gives 0.

    The ends' c = max(1/2, 1 - r_E) would rather have r_E = 1/2, and the relaxation lets them, with
    c = 1, 2, 1/2, 1/2, 1/2. Exactly: c_E = 1/2 + 0.1 and 1 - 0.1 at both ends.
    """
    end = ("embedding", Alignment(0.5, 0.5, 1.0), None)
    assert_only_the_exact_program_learns_features(
        feature_case(
            {
                "embedding": (None, FULL, None),
                "last": ("embedding", Alignment(1.0, 0.6, 1.0), 2.0),
                "end0": end,
                "end1": end,
                "readout": ("last", FULL, None),
            }
        ),
        "adam",
        last="last",
        relaxed=4.5,
        exact={"embedding": 0.6, "last": 2, "end0": 0.9, "end1": 0.9, "readout": 0.5},
    )


def sgd_case(readout: Alignment) -> tuple[Graph, dict[str, Exponents]]:
    """r of ``last`` is min(0.3 + g - 1, 0.1 + r_in): 0 only where g = 0.7."""
    return feature_case(
        {
            "embedding": (None, FULL, None),
            "first": ("embedding", FULL, None),
            "last": ("first", Alignment(1.0, 0.4, 1.0), 0.3),
            "readout": ("last", readout, None),
        }
    )


def test_features_are_learnt_where_sgds_relaxation_would_freeze_them() -> None:
    """g = min(1, 1 + c_L) = 0.7 takes c_L = -0.3; the others then need c = 1 - g = 0.3.

    The relaxation has g = 1 and c = 0 at all but ``last``, whose r is then 0.1.
    """
    assert_only_the_exact_program_learns_features(
        sgd_case(HALF),
        "sgd",
        last="last",
        relaxed=0.3,
        exact={"embedding": 0.3, "first": 0.3, "last": 0.3, "readout": -0.3},
    )


def test_features_that_sgd_cannot_learn_are_infeasible() -> None:
    """With full alignment the readout needs c_L >= 0, so g = 1 and r of ``last`` is 0.1 or more."""
    graph, exponents = sgd_case(FULL)
    with pytest.raises(InfeasibleProgramError, match="last"):
        solve(graph, exponents, "sgd", feature_learning=True)


def heads(rng: random.Random, blocks: int) -> Graph:
    """A random graph with dead ends beside a site before the readout, that share its input."""
    graph = random_graph(rng, blocks)
    before = sources(graph, feed(graph))
    shared = rng.choice([site.operands for site in graph.sites if site.name in before])
    ends = [SiteNode(f"end{i}", "hidden", shared) for i in range(rng.randint(2, 4))]
    return Graph({**graph.nodes, **{end.name: end for end in ends}})


def held_before_the_readout(
    rng: random.Random, graph: Graph, kind: OptimizerType
) -> dict[str, Exponents]:
    """Exponents in which c is held above its optimum at the sites that feed the readout."""
    exponents = random_exponents(rng, graph, degenerate=rng.random() < 0.3)
    readout = exponents["readout"]
    # Where the readout asks little, c_L, and with it SGD's g, has room to move.
    little = Alignment(0.25, 0.25, 0.5) if rng.random() < 0.7 else readout.alignment
    exponents["readout"] = replace(readout, b=1 - readout.a, alignment=little)
    for name in exponents:
        if name.startswith("end"):
            # c falls as r of the input grows.
            exponents[name] = replace(exponents[name], alignment=Alignment(0.5, 0.5, 1.0))
    free = solve_big_m(graph, exponents, kind, relaxed=True)
    assert free is not None
    for name in sorted(sources(graph, feed(graph)) & free.c.keys()):
        exponents[name] = replace(
            exponents[name],
            c=math.ceil(free.c[name] / GRID) * GRID + 0.125,
            alignment=exponents[name].alignment._replace(dZ_w0=rng.randint(240, 280) / 512),
        )
    return exponents


def feed(graph: Graph) -> str:
    """The node that feeds the readout."""
    (name,) = (s.operands[0] for s in graph.weighted if s.name == "readout")
    assert name is not None
    return name


def compare_feature_learning(
    graph: Graph, exponents: Mapping[str, Exponents], kind: OptimizerType
) -> str:
    """Check against the oracle; says whether the relaxation alone would have done."""
    oracle = solve_big_m(graph, exponents, kind, feature_learning=True)
    if oracle is None:
        with pytest.raises(InfeasibleProgramError):
            solve(graph, exponents, kind, feature_learning=True)
        return "infeasible"
    loose = solve_big_m(graph, exponents, kind, feature_learning=True, relaxed=True)
    assert loose is not None
    c = solve(graph, exponents, kind, feature_learning=True).c
    assert total(c) == pytest.approx(oracle.objective, rel=0, abs=1e-6)
    r = changes(graph, exponents, c, kind)
    assert r[feed(graph)] == pytest.approx(0, abs=1e-9)
    assert min(r.values()) >= -1e-9
    return "relaxed" if loose.objective > oracle.objective - 1e-6 else "exact"


@pytest.mark.parametrize("kind", KINDS)
def test_feature_learning_is_the_oracles(kind: OptimizerType) -> None:
    rng = random.Random(9)
    outcomes = []
    for _ in range(40):
        graph = heads(rng, blocks=rng.randint(1, 4))
        exponents = held_before_the_readout(rng, graph, kind)
        outcomes.append(compare_feature_learning(graph, exponents, kind))
    # Or the sample says nothing about the exact program.
    assert outcomes.count("exact") >= 3
    assert "infeasible" in outcomes


@pytest.mark.slow
@pytest.mark.parametrize(
    "batch", [0, *(pytest.param(n, marks=pytest.mark.exhaustive) for n in range(1, 10))]
)
def test_feature_learning_is_the_oracles_on_large_graphs(batch: int) -> None:
    """A relative gap of 1e-4, a mixed-integer solver's usual default, is seen here."""
    rng = random.Random(4000 + batch)
    for _ in range(10):
        graph = heads(rng, blocks=40)
        compare_feature_learning(graph, held_before_the_readout(rng, graph, "sgd"), "sgd")
