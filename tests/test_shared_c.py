"""The program where several nodes have one c, and where a node has none."""

import pytest

from maxp.exponents import PRESETS, Alignment, Exponents
from maxp.graph import Graph, JoinNode, Node, SiteNode
from maxp.solver import solve

FULL, NO = PRESETS["full"], PRESETS["no"]


def graph(*nodes: Node) -> Graph:
    return Graph({node.name: node for node in nodes})


def hidden(alignment: Alignment = FULL) -> Exponents:
    return Exponents(0.0, 0.5, alignment)


EMBED = Exponents(-0.5, 0.5, FULL)


@pytest.mark.parametrize(
    ("readout", "c"),
    [
        (Exponents(0.5, 0.5, FULL), 0.5),  # both ask for 1/2
        (Exponents(0.5, 0.5, NO), 0.5),  # the readout alone would ask for 0
        (Exponents(0.0, 0.5, FULL), 1.0),  # the embedding alone would ask for 1/2
    ],
)
def test_a_tied_weight_has_the_larger_c_that_its_two_roles_ask_for(
    readout: Exponents, c: float
) -> None:
    tied = graph(
        SiteNode("embed", "embedding", (None,)),
        SiteNode("layer", "hidden", ("embed",)),
        SiteNode("head", "readout", ("layer",), weight_of="embed"),
    )
    solution = solve(tied, {"embed": EMBED, "layer": hidden(), "head": readout})
    assert solution.c == pytest.approx({"embed": c, "layer": 1.0})
    assert min(solution.r.values()) >= -1e-9


@pytest.mark.parametrize(("alignment", "c"), [(FULL, 1.0), (NO, 0.5)])
def test_a_looped_site_has_one_c_that_keeps_all_its_calls_bounded(
    alignment: Alignment, c: float
) -> None:
    looped = graph(
        SiteNode("embed", "embedding", (None,)),
        SiteNode("layer", "hidden", ("embed",)),
        JoinNode("sum", ("embed", "layer")),
        SiteNode("layer (call 2)", "hidden", ("sum",), call_of="layer"),
        SiteNode("head", "readout", ("layer (call 2)",)),
    )
    e = {"embed": EMBED, "layer": hidden(alignment), "head": Exponents(0.5, 0.5, FULL)}
    solution = solve(looped, e)
    assert solution.c == pytest.approx({"embed": 0.5, "layer": c, "head": 0.5})
    assert min(solution.r.values()) >= -1e-9


def test_a_frozen_site_has_no_c_and_passes_on_the_change_of_its_input() -> None:
    frozen = graph(
        SiteNode("embed", "embedding", (None,), frozen=True),
        SiteNode("first", "hidden", ("embed",), frozen=True),
        SiteNode("layer", "hidden", ("first",)),
        SiteNode("second", "hidden", ("layer",), frozen=True),
        SiteNode("head", "readout", ("second",)),
    )
    e = {name: hidden() for name in ("first", "layer", "second")}
    solution = solve(frozen, {"embed": EMBED, **e, "head": Exponents(0.5, 0.5, FULL)})
    assert solution.c == pytest.approx({"layer": 1.0, "head": 0.5})
    assert solution.r["embed"] == solution.r["first"] == float("inf")
    assert solution.r["second"] == pytest.approx(0.0)


def test_sgd_counts_the_gradient_that_comes_through_a_tied_readout() -> None:
    tied = graph(
        SiteNode("embed", "embedding", (None,)),
        SiteNode("layer", "hidden", ("embed",)),
        SiteNode("head", "readout", ("layer",), weight_of="embed"),
    )
    untied = graph(
        SiteNode("embed", "embedding", (None,)),
        SiteNode("layer", "hidden", ("embed",)),
        SiteNode("head", "readout", ("layer",)),
    )
    e = {"embed": EMBED, "layer": hidden(), "head": Exponents(0.5, 0.5, FULL)}
    apart, together = solve(untied, e, "sgd").c, solve(tied, e, "sgd").c
    assert apart["embed"] == pytest.approx(0.0)
    assert apart["head"] == pytest.approx(0.0)
    assert together["embed"] == pytest.approx(0.0)
