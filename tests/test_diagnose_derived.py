"""The slopes that the check derives: at init through the graph, and of changes."""

from typing import Any

import pytest
import torch
from diagnose_cases import IN, SITES, TOKENS, WIDE, Model, check, mup
from torch import nn

from maxp import Alignment, Graph, ParametrizedModule
from maxp.diagnose.slopes import init_slopes
from maxp.exponents import Exponents
from maxp.graph import JoinNode, Node, SiteNode, chain

# At init


def exponents(a: float, b: float = 0.0) -> Exponents:
    return Exponents(a, b, Alignment(1.0, 0.5, 1.0))


def test_a_hidden_site_hands_on_what_it_gets_and_is_wanted_not_to_grow() -> None:
    graph = chain([("e", "embedding", True), ("h", "hidden", True), ("r", "readout", True)])
    given = {"e": exponents(-0.75, 0.5), "h": exponents(0.0, 0.5), "r": exponents(0.5, 0.5)}
    s, wanted = init_slopes(graph, given, dict.fromkeys("ehr", 1.0))
    assert s == {"e": 0.25, "h": 0.25, "r": -0.25}
    assert wanted == {"e": 0.0, "h": 0.0, "r": -0.25}


def test_a_hidden_site_that_shrinks_its_input_is_not_as_wanted() -> None:
    graph = chain([("e", "embedding", True), ("h", "hidden", True)])
    given = {"e": exponents(-0.5, 0.5), "h": exponents(0.5, 0.5)}
    s, wanted = init_slopes(graph, given, dict.fromkeys("eh", 1.0))
    assert (s["h"], wanted["h"]) == (-0.5, 0.0)


def test_a_join_has_the_largest_slope_of_what_it_mixes() -> None:
    nodes: dict[str, Node] = {
        "big": SiteNode("big", "hidden", (None,)),
        "small": SiteNode("small", "hidden", (None,)),
        "join": JoinNode("join", ("big", "small")),
        "next": SiteNode("next", "hidden", ("join",)),
    }
    given = {"big": exponents(0.2), "small": exponents(0.4), "next": exponents(0.5)}
    s, _ = init_slopes(Graph(nodes), given, dict.fromkeys(given, 1.0))
    assert s["join"] == s["next"] == pytest.approx(0.3)


@pytest.mark.parametrize(("a", "slope"), [(0.0, 0.5), (0.5, 0.0), (1.0, -0.5)])
def test_a_site_without_a_weight_adds_up_at_random_and_may_start_small(
    a: float, slope: float
) -> None:
    graph = Graph({"qk": SiteNode("qk", "hidden", (None, None), has_weight=False)})
    s, wanted = init_slopes(graph, {"qk": exponents(a)}, {"qk": 1.0})
    assert s["qk"] == slope
    assert wanted["qk"] == min(slope, 0.0)


class Heads(nn.Module):
    """q k^T over a width that does not grow, beside one that does."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q = ParametrizedModule(nn.Linear(IN, width, bias=False), width, "embedding")
        self.fixed = ParametrizedModule(lambda q, k: q @ k.transpose(-1, -2), 8, a=0.5)
        self.grown = ParametrizedModule(lambda q, k: q @ k.transpose(-1, -2), width, a=1.0)
        nn.init.normal_(self.get_parameter("q.op.weight"), std=width**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q = self.q(x)
        keys = torch.randn(TOKENS, q.shape[1], generator=torch.Generator().manual_seed(0))
        return torch.stack([self.fixed(q[:, :8], keys[:, :8]), self.grown(q, keys)])


def test_a_contraction_over_a_fixed_width_is_derived_and_measured_as_flat() -> None:
    def make(width: int) -> Model:
        model = Heads(width)
        return model, [{"params": list(model.parameters()), "lr": 1e-2 * width**-0.5}]

    _, _, stats = check(make, WIDE, seeds=16)
    assert stats["fixed"].init.derived == pytest.approx(0.0)
    assert stats["fixed"].init.near(0.0)
    assert stats["fixed"].change.derived == pytest.approx(0.0)
    assert stats["fixed"].change.near(0.0)
    assert stats["grown"].init.derived == pytest.approx(-0.5)
    assert stats["grown"].init.near(-0.5)


# Of changes


def test_alignment_overrides_change_what_is_derived() -> None:
    def slope(**options: Any) -> float:
        stats = check(mup, [32, 64], seeds=2, steps=1, **options)[2]
        derived: float = stats["hidden.0"].change.derived
        return derived

    # c = 1; with align_dZ_w0 = 3/4 the term a + b + r_in - 3/4 is the least, -1/4.
    assert slope() == pytest.approx(0.0)
    assert slope(alignment_overrides={"hidden": (1.0, 0.75, 1.0)}) == pytest.approx(0.25)


def test_under_mup_with_sgd_changes_are_flat_and_derived_so() -> None:
    def make(width: int) -> Model:
        return mup(width, lr=0.1, optimizer_type="sgd")

    _, affected, stats = check(make, optimizer="sgd", seeds=16)
    assert affected == []
    assert [stats[name].change.derived for name in SITES] == pytest.approx([0.0] * 5)


def test_the_rule_of_sgd_is_taken_for_a_callable_that_builds_it() -> None:
    def derived(optimizer: Any) -> float:
        stats = check(mup, [32, 64], seeds=2, steps=1, optimizer=optimizer)[2]
        slope: float = stats["embedding"].change.derived
        return slope

    # muP's Adam c of 1/2 at the embedding, under SGD: g = min(1/2 + 1/2, 1 + 1/2), -r = 0 - 1/2.
    assert derived(lambda groups: torch.optim.SGD(groups, momentum=0.9)) == pytest.approx(-0.5)
    assert derived(lambda groups: torch.optim.AdamW(groups)) == pytest.approx(0.0)
