"""The coordinate check's verdicts: a fault is found at its cause, and a correct model has none."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, MLP
from plain_models import GPT, VOCABULARY
from torch import nn

from maxp import PARAMETRIZATIONS, Parametrization, diagnose_axis, mark
from maxp.diagnose.report import explain
from maxp.diagnose.slopes import Slope, students_t

WIDTHS = [64, 128, 256]
LAYERS = ["layers.0", "layers.1"]
SITES = ["embed", *LAYERS, "readout"]

Model = tuple[nn.Module, Any]
Make = Callable[[int], Model]


def shifted(make_input: Callable[[], Any], shift: int) -> Callable[[int], Any]:
    """The same input, and with it the same model, from other seeds."""

    def make(width: int) -> Any:
        torch.manual_seed(1000 * shift + torch.initial_seed())
        return make_input()

    return make


def check(make: Make, make_input: Callable[[], Any], shift: int = 0, **options: Any) -> Any:
    options = {"seeds": 5, "progress": False, **options}
    return diagnose_axis(make, shifted(make_input, shift), WIDTHS, **options)[2]


def causes(stats: Any) -> dict[str, list[str]]:
    """The kinds of the faults, by site."""
    return {n: [fault.kind for fault in s.faults] for n, s in stats.items() if s.faults}


# A plain MLP


def points() -> torch.Tensor:
    return torch.randn(4, FEATURES)


def groups_of(model: nn.Module) -> Any:
    return Parametrization(
        model, lr_prefactor=1e-2, sample_input=torch.ones(1, FEATURES)
    ).param_groups


def correct(width: int) -> Model:
    model = MLP(width)
    return model, groups_of(model)


def unmarked_layer(width: int) -> Model:
    model = MLP(width)
    model.layers[1] = nn.Linear(width, width, bias=False)
    return model, groups_of(model)


def wrong_width_dim(width: int) -> Model:
    model = MLP(width)
    model.readout.width_dim = CLASSES
    return model, groups_of(model)


def head_marked_hidden(width: int) -> Model:
    model = MLP(width)
    model.readout.mark(width, "hidden")
    return model, groups_of(model)


def embedding_marked_hidden(width: int) -> Model:
    model = MLP(width)
    model.embed.mark(width, "hidden")
    return model, groups_of(model)


def missing_multiplier(width: int) -> Model:
    model, groups = correct(width)
    model.readout.set_a(0.0)
    return model, groups


def multiplier_twice(width: int) -> Model:
    model, groups = correct(width)
    model.readout.scale **= 2
    return model, groups


def left_out(width: int) -> Model:
    model, groups = correct(width)
    return model, [group for group in groups if group["name"] != "layers.0"]


def one_lr(width: int) -> Model:
    model, _ = correct(width)
    return model, model.parameters()


def drawn_again(width: int) -> Model:
    model, groups = correct(width)
    nn.init.normal_(model.layers[0].op.weight, std=0.02)
    return model, groups


def with_decay(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, weight_decay=0.1)


def with_large_eps(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, eps=1e-2)


FAULTS: dict[str, tuple[Make, Any, dict[str, list[str]]]] = {
    "an unmarked layer": (unmarked_layer, "adam", {"layers.1": ["not marked"]}),
    "a wrong width_dim": (wrong_width_dim, "adam", {"readout": ["width_dim"]}),
    "a head marked hidden": (head_marked_hidden, "adam", {"readout": ["layer type"]}),
    "an embedding marked hidden": (embedding_marked_hidden, "adam", {"embed": ["layer type"]}),
    "a missing multiplier": (missing_multiplier, "adam", {"readout": ["multiplier"]}),
    "a multiplier applied twice": (multiplier_twice, "adam", {"readout": ["multiplier"]}),
    "a group left out": (left_out, "adam", {"layers.0": ["not in the optimizer"]}),
    "one lr for all": (one_lr, "adam", {site: ["lr"] for site in SITES}),
    "weights drawn again": (drawn_again, "adam", {"layers.0": ["init"]}),
    "decay of the optimizer": (correct, with_decay, {site: ["decay"] for site in SITES}),
    "a large eps": (correct, with_large_eps, {site: ["eps"] for site in SITES}),
}


@pytest.mark.parametrize("shift", range(3))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_at_its_cause_and_nowhere_else(fault: str, shift: int) -> None:
    make, optimizer, expected = FAULTS[fault]
    assert causes(check(make, points, shift, optimizer=optimizer)) == expected


def test_a_bias_that_the_optimizer_does_not_hold_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def without_rest(width: int) -> Model:
        model = MLP(width, bias=True)
        return model, [group for group in groups_of(model) if group["name"] != "rest"]

    check(without_rest, points, seeds=2)
    (message,) = caplog.messages
    assert message.startswith("no param group holds layers.0.op.bias, ")


def test_a_model_that_ignores_the_width_is_refused() -> None:
    with pytest.raises(ValueError, match=r"make_model: the models of widths 64 and 128 have the s"):
        check(lambda width: correct(64), points)


def test_sites_after_a_cause_are_wrong_because_of_it() -> None:
    stats = check(unmarked_layer, points)
    assert stats["readout"].verdict == "wrong"
    assert stats["readout"].after == ("layers.1",)
    assert stats["layers.0"].after == ()
    lines = explain(SITES, stats)
    assert lines[0] == (
        "layers.1: not marked: its fan-in and fan-out grow, and its learning rate is n^0, expected "
        "n^-1; mark it as hidden"
    )
    assert "readout: wrong only after layers.1" in lines


def test_with_sgd_a_readout_without_its_multiplier_is_the_only_cause() -> None:
    def make(width: int) -> Model:
        model = MLP(width)
        p = Parametrization(model, lr_prefactor=0.1, optimizer_type="sgd")
        model.readout.set_a(0.0)
        return model, p.param_groups

    assert causes(check(make, points, optimizer="sgd")) == {"readout": ["multiplier"]}


def test_a_head_whose_initial_weights_pass_on_a_growing_change_lacks_a_multiplier() -> None:
    def make(width: int) -> Model:
        model = MLP(width)
        p = Parametrization(model, ab_overrides=PARAMETRIZATIONS["standard"], lr_prefactor=1e-2)
        return model, p.param_groups

    assert causes(check(make, points)) == {"readout": ["multiplier"]}


def test_a_factor_between_sites_is_unknown_at_the_site_after_it() -> None:
    class Scaled(MLP):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.embed(x) * self.embed.width_dim**0.5
            return self.readout(self.layers[1](self.layers[0](h).relu()).relu())

    def make(width: int) -> Model:
        model = Scaled(width)
        return model, groups_of(model)

    assert causes(check(make, points)) == {"layers.0": ["unknown"]}


def test_a_frozen_weight_is_no_fault() -> None:
    def make(width: int) -> Model:
        model = MLP(width)
        model.layers[0].op.weight.requires_grad_(False)
        return model, groups_of(model)

    assert causes(check(make, points, seeds=2)) == {}


def test_decay_and_eps_of_the_parametrization_are_no_faults() -> None:
    def make(width: int) -> Model:
        model = MLP(width)
        p = Parametrization(
            model, base=dict.fromkeys(SITES, 64), lr_prefactor=1e-2, weight_decay=0.1, eps=1e-6
        )
        return model, p.param_groups

    stats = check(make, points, optimizer=torch.optim.AdamW)
    assert causes(stats) == {}


# A GPT that is marked by comparison


def text() -> torch.Tensor:
    return torch.randint(VOCABULARY, (4, 8))


def next_token(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def gpt(rules: Any = None, *, tied: bool = False) -> Make:
    def make(width: int) -> Model:
        model = GPT(width, tied=tied)
        plan = mark(model, GPT(32, tied=tied), rules)
        p = Parametrization(model, base=plan, lr_prefactor=1e-3, sample_input=text())
        return model, p.param_groups

    return make


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"blocks.0.fc": None}, {"blocks.0.fc": ["not marked"]}),
        ({"head": "hidden"}, {"head": ["layer type"]}),
    ],
    ids=["an unmarked layer", "a head marked hidden"],
)
def test_a_fault_in_a_gpt_is_found_at_its_cause(rules: Any, expected: Any) -> None:
    assert causes(check(gpt(rules), text, loss_fn=next_token)) == expected


def test_an_unmarked_head_whose_weight_is_marked_as_the_embedding_is_found() -> None:
    stats = check(gpt({"head": None}, tied=True), text, loss_fn=next_token)
    assert causes(stats) == {"head": ["not marked"]}


def assert_nothing_is_wrong(stats: Any) -> None:
    wrong = {name: (s.text, s.faults) for name, s in stats.items() if s.verdict == "wrong"}
    assert wrong == {}
    for site in stats.values():
        assert (site.widths is None) == (site.verdict == "right")
        assert site.widths is None or site.widths[1] > WIDTHS[-1]


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_nothing_is_wrong_in_a_correct_gpt_whose_head_these_widths_cannot_tell(
    tied: bool,
) -> None:
    stats = check(gpt(tied=tied), text, loss_fn=next_token)
    assert_nothing_is_wrong(stats)
    assert stats["head"].verdict == "cannot tell at these widths"


@pytest.mark.parametrize("shift", range(5))
def test_nothing_is_wrong_in_a_correct_mlp(shift: int) -> None:
    assert_nothing_is_wrong(check(correct, points, shift))


@pytest.mark.slow
@pytest.mark.parametrize("shift", range(1, 5))
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_nothing_is_wrong_in_a_correct_gpt_of_other_seeds(tied: bool, shift: int) -> None:
    assert_nothing_is_wrong(check(gpt(tied=tied), text, shift, loss_fn=next_token))


@pytest.mark.slow
@pytest.mark.parametrize("shift", range(5))
def test_nothing_is_wrong_in_a_correct_llama_of_transformers(shift: int) -> None:
    real_models = pytest.importorskip("real_models")

    def make(width: int) -> Model:
        model, base = real_models.llama(width), real_models.llama(32)
        p = Parametrization(model, base=base, lr_prefactor=1e-3, sample_input=real_models.text())
        return model, p.param_groups

    def loss(out: Any, x: Any) -> torch.Tensor:
        return next_token(out.logits, x["input_ids"])

    assert_nothing_is_wrong(check(make, real_models.text, shift, loss_fn=loss))


# The interval


def slope(mean: float, error: float, **others: Any) -> Slope:
    given = {"derived": 0.0, "wanted": 0.0, "tolerance": 0.1, "reach": 2.0, "span": (64, 256)}
    return Slope(mean, error, **{**given, **others})


@pytest.mark.parametrize(
    ("mean", "error", "derived", "verdict"),
    [
        (0.05, 0.02, 0.0, "right"),  # 0.01 to 0.09
        (0.05, 0.04, 0.0, "cannot tell at these widths"),  # -0.03 to 0.13
        (0.20, 0.04, 0.0, "wrong"),  # 0.12 to 0.28
        (-0.20, 0.04, 0.0, "cannot tell at these widths"),  # a random part
        (-0.20, 0.04, -0.5, "wrong"),  # derived as falling
        (-0.80, 0.04, 0.0, "wrong"),  # steeper than a random part
    ],
)
def test_a_verdict_is_that_of_the_whole_interval(
    mean: float, error: float, derived: float, verdict: str
) -> None:
    assert slope(mean, error, derived=derived).verdict == verdict


def test_the_widths_that_would_tell_give_a_shorter_interval() -> None:
    # 4 standard errors are twice the tolerance: twice the logarithm of the range.
    assert slope(0.0, 0.05).needs == pytest.approx((64, 64 * 4**2))


def test_the_widths_that_would_tell_are_those_at_which_a_random_part_is_small() -> None:
    # rms^2 = 1 + k / n with k = 64: at the middle, n = 128, the slope is -64 / (2 * 192).
    first, last = slope(-1 / 6, 0.0).needs
    assert last / first == pytest.approx(256 / 64)
    middle = math.sqrt(first * last)
    assert -64 / (2 * (middle + 64)) == pytest.approx(-0.05)


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.706), (3, 4.303), (8, 2.365), (31, 2.042)])
def test_the_interval_is_that_of_students_t(seeds: int, quantile: float) -> None:
    assert students_t(seeds) == pytest.approx(quantile, abs=2e-3)
