"""The coordinate check: what it measures, what it derives, and what it calls wrong."""

import json
import math
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from maxp import PARAMETRIZATIONS, Alignment, Graph, Parametrization, ParametrizedModule
from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.report import plot_axis, print_axis
from maxp.diagnose.slopes import SiteStats, Slope, init_slopes
from maxp.exponents import Exponents
from maxp.graph import JoinNode, Node, SiteNode, chain

WIDTHS = [128, 256, 512]
WIDE = [128, 256, 512, 1024, 2048]
# Outputs times tokens must be small against the widths: the part of an update's effect on the
# readout that is random falls. Measured from 128 to 512, the change's slope is -0.02 at 8 outputs
# and 8 tokens, -0.03 at 8 and 16, -0.2 at 64 and 64.
IN, OUT, HIDDEN, TOKENS = 8, 8, 3, 8
HIDDEN_SITES = [f"hidden.{i}" for i in range(HIDDEN)]
SITES = ["embedding", *HIDDEN_SITES, "readout"]

Checked = tuple[list[str], list[str], dict[str, SiteStats]]
Model = tuple[nn.Module, list[dict[str, Any]]]


class MLP(nn.Module):
    """ReLU, without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = ParametrizedModule(nn.Linear(IN, width, bias=False), width, "embedding")
        self.hidden = nn.ModuleList(
            ParametrizedModule(nn.Linear(width, width, bias=False), width) for _ in range(HIDDEN)
        )
        self.readout = ParametrizedModule(nn.Linear(width, OUT, bias=False), width, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embedding(x).relu()
        for layer in self.hidden:
            x = layer(x).relu()
        out: torch.Tensor = self.readout(x)
        return out


def mup(width: int, lr: float = 1e-2, **options: Any) -> Model:
    model = MLP(width)
    return model, Parametrization(model, lr_prefactor=lr, **options).param_groups


def standard_at_one_lr(lr: float) -> Callable[[int], Model]:
    def make(width: int) -> Model:
        model, groups = mup(width, ab_overrides=PARAMETRIZATIONS["standard"])
        return model, [{**group, "lr": lr} for group in groups]

    return make


def tokens(width: int) -> torch.Tensor:
    return torch.randn(TOKENS, IN)


def check(make_model: Callable[[int], Any], widths: Iterable[int] = WIDTHS, **options: Any) -> Any:
    return diagnose_axis(make_model, tokens, list(widths), **{"progress": False, **options})


@pytest.fixture(scope="module")
def mup_checked() -> Checked:
    return check(mup, seeds=16)


@pytest.fixture(scope="module")
def standard_checked() -> Checked:
    return check(standard_at_one_lr(1e-4))


def assert_like_mup(checked: Checked) -> None:
    names, _, stats = checked
    assert names == SITES
    expected = dict.fromkeys(SITES, 0.0) | {"readout": -0.5}
    for name in SITES:
        init = stats[name].init
        assert abs(init.mean - expected[name]) <= max(0.05, 3 * init.error), name
        assert 3 * init.error < 0.25, f"{name}: the error bars do not tell -1/2 from 0"
    for name in SITES[:-1]:
        assert abs(stats[name].change.mean) <= 0.05, name
    assert abs(stats["readout"].change.mean) <= 0.15


def assert_grows_at_one_lr(checked: Checked) -> None:
    _, affected, stats = checked
    change = {name: stats[name].change for name in SITES}
    for name in [*HIDDEN_SITES, "readout"]:
        assert change[name].mean > 0.5, name
        assert name in affected
        assert "GROWS" in stats[name].text
    assert max(slope.mean for slope in change.values()) > 1


def test_under_mup_activations_and_their_changes_do_not_depend_on_width(
    mup_checked: Checked,
) -> None:
    assert_like_mup(mup_checked)


def test_nothing_is_affected_under_mup_and_the_readout_that_starts_at_minus_half_is_not(
    mup_checked: Checked,
) -> None:
    _, affected, stats = mup_checked
    assert affected == []
    assert stats["readout"].init.derived == pytest.approx(-0.5)


def test_under_mup_every_change_is_derived_as_flat(mup_checked: Checked) -> None:
    assert [mup_checked[2][name].change.derived for name in SITES] == pytest.approx([0.0] * 5)


@pytest.mark.slow
def test_under_mup_activations_and_their_changes_do_not_depend_on_width_up_to_2048() -> None:
    checked = check(mup, WIDE)
    assert_like_mup(checked)
    assert checked[1] == []


def test_in_the_standard_parametrization_at_one_lr_changes_grow(standard_checked: Checked) -> None:
    assert_grows_at_one_lr(standard_checked)


@pytest.mark.slow
def test_in_the_standard_parametrization_at_one_lr_changes_grow_up_to_2048() -> None:
    assert_grows_at_one_lr(check(standard_at_one_lr(1e-4), WIDE))


def test_a_large_step_at_one_lr_grows_by_one_power_more_with_every_layer() -> None:
    # Each layer's update grows as n, and multiplies with the one before it: n, n^2, n^3, n^4.
    _, affected, stats = check(standard_at_one_lr(0.1), steps=1, seeds=16)
    for power, name in enumerate(SITES):
        change = stats[name].change
        assert change.derived == pytest.approx(power)
        assert abs(change.mean - power) <= max(0.05, 3 * change.error), name
    assert affected == SITES[1:]


def test_a_hidden_lr_that_does_not_fall_with_width_is_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        return model, [
            {**g, "lr": g["lr"] * (width if g["name"] in HIDDEN_SITES else 1)} for g in groups
        ]

    _, affected, stats = check(make, steps=1)
    assert set(HIDDEN_SITES) <= set(affected)
    assert "embedding" not in affected
    assert stats["hidden.0"].change.derived == pytest.approx(1.0)


def test_an_lr_that_falls_too_fast_is_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        return model, [
            {**g, "lr": g["lr"] / (width**0.5 if g["name"] == "embedding" else 1)} for g in groups
        ]

    _, affected, stats = check(make)
    assert "embedding" in affected
    assert stats["embedding"].change.derived == pytest.approx(-0.5)
    assert stats["embedding"].text.startswith("falls n^-0.")


def test_a_readout_without_its_multiplier_is_affected_and_it_alone() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        assert isinstance(model, MLP)
        model.readout.set_a(0.0)
        return model, groups

    _, affected, stats = check(make, seeds=16)
    assert affected == ["readout"]
    assert stats["readout"].init.derived == pytest.approx(0.0)
    assert stats["readout"].change.derived == pytest.approx(0.5)
    assert abs(stats["readout"].change.mean - 0.5) <= 0.15


def test_a_hidden_weight_that_is_drawn_too_large_is_affected_at_init() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        with torch.no_grad():
            model.get_parameter("hidden.0.op.weight").mul_(width**0.5)
        return model, groups

    _, affected, stats = check(make)
    assert set(HIDDEN_SITES) <= set(affected)
    assert stats["hidden.0"].init.derived == pytest.approx(0.5)
    assert stats["hidden.0"].init.near(0.5)
    assert stats["hidden.0"].text.startswith("init GROWS n^0.")


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


# A model of which all is known: one weight of entries n^-0.3 behind a multiplier n^0.5, on x = 1.


class Known(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.site = ParametrizedModule(nn.Linear(1, width, bias=False), width, "embedding")
        with torch.no_grad():
            self.get_parameter("site.op.weight").fill_(width**-0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.site(x)
        return out


def known(width: int, lr: float | None = None) -> Model:
    model = Known(width)
    lr = 0.01 * width**-0.7 if lr is None else lr
    return model, [{"params": list(model.parameters()), "lr": lr}]


def check_known(make_model: Callable[[int], Any] = known, **options: Any) -> SiteStats:
    stats = diagnose_axis(
        make_model,
        lambda width: torch.ones(2, 1),
        [16, 64, 128],
        seeds=2,
        progress=False,
        **{"loss_fn": lambda out, x: out.sum(), "steps": 1, **options},
    )[2]
    return stats["site"]


def broken() -> SiteStats:
    """A model whose weight is NaN after a step."""
    return check_known(loss_fn=lambda out, x: out.sum() * math.inf)


def test_rms_is_that_of_the_output_and_of_its_change() -> None:
    stats = check_known()
    for i, width in enumerate([16, 64, 128]):
        assert stats.init_rms[:, i] == pytest.approx([width**0.2] * 2, rel=1e-5)
        # Adam's first update is the lr.
        assert stats.change_rms[:, i] == pytest.approx([0.01 * width**-0.2] * 2, rel=1e-3)


def test_the_change_is_that_of_all_steps() -> None:
    # As long as the gradient is the same, Adam's updates are the lr.
    one, three = check_known(steps=1), check_known(steps=3)
    assert three.change_rms == pytest.approx(3 * one.change_rms, rel=1e-3)


def test_what_a_model_writes_into_an_output_is_not_measured() -> None:
    class InPlace(Known):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).mul_(3.0)

    def make(width: int) -> Model:
        model = InPlace(width).double()
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    def ones(width: int) -> torch.Tensor:
        return torch.ones(2, 1, dtype=torch.float64)

    _, _, stats = diagnose_axis(make, ones, [16, 64], seeds=2, progress=False)
    assert stats["site"].init_rms[0, 0] == pytest.approx(16**0.2, rel=1e-5)


def test_measured_is_the_model_in_evaluation_and_trained_it_as_it_was() -> None:
    modes = []

    class Dropped(Known):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    def make(width: int) -> Model:
        model = Dropped(width)
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    stats = check_known(make)
    assert stats.init_rms[0, 0] == pytest.approx(16**0.2, rel=1e-5)
    assert modes[-3:] == [(False, False), (True, True), (False, False)]


def test_slopes_are_those_of_a_known_power_law() -> None:
    stats = check_known()
    assert stats.init.mean == pytest.approx(0.2, abs=1e-4)
    assert stats.change.mean == pytest.approx(-0.2, abs=1e-3)


def test_exponents_are_read_off_multiplier_weight_and_lr() -> None:
    stats = check_known()
    assert stats.init.derived == pytest.approx(0.2, abs=1e-4)  # -(a + b) = 0.5 - 0.3
    assert stats.change.derived == pytest.approx(-0.2, abs=1e-4)  # -(a + c) = 0.5 - 0.7


def test_the_mean_and_error_of_a_slope_are_over_seeds() -> None:
    def make(width: int) -> Model:
        model, groups = known(width)
        # Seeds 0 and 1 are told apart by what they draw.
        slope = 0.1 if torch.initial_seed() == 0 else 0.3
        with torch.no_grad():
            model.get_parameter("site.op.weight").fill_(width ** (slope - 0.5))
        return model, groups

    stats = check_known(make)
    assert stats.init.mean == pytest.approx(0.2, abs=1e-4)
    assert stats.init.error == pytest.approx(0.1, abs=1e-4)  # |0.3 - 0.1| / sqrt(2) / sqrt(2)


@pytest.mark.parametrize("frozen", [[], [{"lr": 0.0}]], ids=["in no group", "at an lr of 0"])
def test_a_frozen_site_is_zero_as_derived_and_not_affected(frozen: list[dict[str, float]]) -> None:
    def make(width: int) -> Model:
        model = Known(width)
        other = nn.Parameter(torch.zeros(1))
        groups = [{**group, "params": list(model.parameters())} for group in frozen]
        return model, [*groups, {"params": [other], "lr": 1.0}]

    change = check_known(make).change
    assert change.mean == change.derived == -math.inf
    assert change.near(change.wanted)


def test_a_readout_that_starts_at_zero_is_not_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        with torch.no_grad():
            model.get_parameter("readout.op.weight").zero_()
        return model, groups

    _, affected, stats = check(make)
    assert affected == []
    assert stats["readout"].init.mean == stats["readout"].init.derived == -math.inf
    assert stats["readout"].text.startswith("init zero, ")


def test_what_is_not_finite_is_affected() -> None:
    stats = broken()
    assert stats.affected
    assert "NOT FINITE" in stats.text


def test_an_lr_of_zero_at_one_width_only_is_an_error_that_names_the_site() -> None:
    with pytest.raises(ValueError, match="the lr of site"):
        check_known(lambda width: known(width, lr=0.0 if width == 64 else 0.1))


# The derived slopes at init.


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


def test_alignment_overrides_change_what_is_derived() -> None:
    def slope(**options: Any) -> float:
        stats = check(mup, [32, 64], seeds=2, steps=1, **options)[2]
        derived: float = stats["hidden.0"].change.derived
        return derived

    # c = 1; with align_dZ_w0 = 3/4 the term a + b + r_in - 3/4 is the least, -1/4.
    assert slope() == pytest.approx(0.0)
    assert slope(alignment_overrides={"hidden": (1.0, 0.75, 1.0)}) == pytest.approx(0.25)


# How it is run.


def test_a_seed_gives_the_same_probe_at_every_width_and_another_seed_another() -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def make_input(width: int) -> torch.Tensor:
        x = torch.randn(2, 1)
        seen.setdefault(width, []).append(x)
        return x

    diagnose_axis(known, make_input, [4, 8], seeds=2, progress=False)
    for one, other in zip(seen[4], seen[8], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*seen[4])


def test_the_callers_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    check_known()
    assert torch.equal(torch.get_rng_state(), before)


def test_the_probe_may_be_a_dict_of_arguments() -> None:
    stats = diagnose_axis(
        known, lambda width: {"x": torch.ones(2, 1)}, [4, 8], seeds=2, progress=False
    )[2]
    assert stats["site"].init.mean == pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of adam, sgd.*'lion'"),
        ({"widths": [64]}, "widths: give at least two"),
        ({"widths": [64, 64]}, "widths: give at least two"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"alignment_overrides": {"nowhere": (1, 1, 1)}}, "alignment_overrides for nowhere"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(mup, **{"widths": [16, 32], **options})


def test_models_whose_sites_differ_between_widths_are_an_error() -> None:
    def make(width: int) -> Model:
        return mup(width) if width == 16 else known(width)

    with pytest.raises(ValueError, match="other sites at width 32"):
        check(make, [16, 32])


def test_a_model_that_returns_no_tensor_asks_for_a_loss() -> None:
    class Pair(Known):
        def forward(self, x: torch.Tensor) -> Any:
            return self.site(x), None

    def make(width: int) -> Model:
        model = Pair(width)
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    with pytest.raises(TypeError, match="loss_fn: needed for a model that returns tuple"):
        check_known(make, loss_fn=None)


# What is shown.


@pytest.mark.parametrize(
    ("mean", "error", "wanted", "words"),
    [
        (0.01, 0.02, 0.0, "flat"),
        (0.10, 0.04, 0.0, "flat, but noisy"),
        (0.98, 0.04, 0.0, "GROWS n^0.98"),
        (-0.20, 0.01, 0.0, "falls n^-0.20"),
        (-0.52, 0.01, -0.5, "n^-0.52"),
        (-0.20, 0.01, -0.5, "GROWS n^-0.20"),
        (-math.inf, 0.0, 0.0, "zero"),
        (math.nan, math.nan, 0.0, "NOT FINITE, or zero at times"),
    ],
)
def test_a_slope_in_words(mean: float, error: float, wanted: float, words: str) -> None:
    assert str(Slope(mean, error, derived=0.0, wanted=wanted, tolerance=0.05)) == words


def test_the_table_shows_derived_slopes_and_what_grows(
    standard_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("standard", *standard_checked, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(SITES)]}
    for power, name in enumerate(SITES):
        assert f"{power:+.2f}" in rows[name], rows[name]
    assert "GROWS n^" in rows["hidden.0"]
    assert "4 of 5 sites are wrong" in lines[-1]
    assert "hidden.0 (GROWS" in lines[-1]


def test_the_table_of_a_right_parametrization_says_so(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("muP", SITES[:-1], *mup_checked[1:], WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "muP: all 4 sites are right over widths 128 to 512"


def test_the_table_names_the_width_that_would_tell(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("muP", *mup_checked, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert "-0.50" in lines[1 + len(SITES)]
    first, last = mup_checked[2]["readout"].widths or (0, 0)
    need = f"widths {first} to {last} would, or more seeds"
    assert lines[-2] == f"readout: cannot tell at these widths; {need}"
    assert lines[-1] == "muP: no site is wrong, 4 of 5 are right over widths 128 to 512"


def test_the_table_asks_for_seeds_alone_where_the_width_that_would_tell_is_out_of_reach(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    names, wrong, stats = mup_checked
    noisy = replace(stats["readout"], init=replace(stats["readout"].init, error=0.5))
    assert noisy.widths is not None
    assert noisy.widths[1] > 16 * WIDTHS[-1]
    print_axis("muP", names, wrong, {**stats, "readout": noisy}, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "readout: cannot tell at these widths; raise seeds"


def test_statistics_are_json_even_where_nothing_is_finite() -> None:
    stats = broken()
    read = json.loads(json.dumps(stats.as_dict(), allow_nan=False))
    assert read["init"]["mean"] == stats.init.mean
    assert read["init_rms"] == stats.init_rms.tolist()
    assert read["change"]["mean"] is None


def test_the_plot_is_written_and_nothing_beside_it(
    standard_checked: Checked, tmp_path: Path
) -> None:
    plot_axis("standard", *standard_checked, WIDTHS, filename=tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["check.png"]


def test_a_plot_of_an_unknown_format_is_an_error_and_leaves_nothing(
    standard_checked: Checked, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="docx"):
        plot_axis("standard", *standard_checked, WIDTHS, filename=tmp_path / "check.docx")
    assert list(tmp_path.iterdir()) == []


def test_the_plot_draws_sites_that_are_zero_or_not_finite_only_in_the_legend(
    tmp_path: Path,
) -> None:
    stats = {"site": broken()}
    plot_axis("broken", ["site"], ["site"], stats, [16, 64, 128], filename=tmp_path / "check.svg")
    assert (tmp_path / "check.svg").stat().st_size > 0


def test_the_module_is_imported_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from maxp import diagnose_axis"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_module_is_in_its_own_mode_afterwards() -> None:
    models = []

    class Frozen(nn.Module):
        """An MLP that trains behind a Dropout that does not."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.drop, self.mlp = nn.Dropout().eval(), MLP(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(self.drop(x))

    def make_model(width: int) -> Any:
        models.append(Frozen(width))
        return models[-1], Parametrization(models[-1]).param_groups

    check(make_model, [8, 16], steps=1, seeds=2)
    assert [(m.drop.training, m.mlp.training) for m in models] == [(False, True)] * 4
