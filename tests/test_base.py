"""The base model: exponents act on n / n_base, so nothing changes at the base's own width."""

import logging
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, MLP, VOCABULARY, Llama, ViT, batch, linear
from torch import nn

from maxp import PARAMETRIZATIONS, Parametrization, ParametrizedModule, diagnose_axis

WIDTHS = {"embedding": 16, "hidden": 16, "readout": 16}
ONE_LR = dict.fromkeys(WIDTHS, 0.0)

# sp, mup-full and mup-no, and the others of the usual parametrizations.
METHODS: dict[str, dict[str, Any]] = {
    "sp": {"ab_overrides": PARAMETRIZATIONS["standard"], "c_overrides": ONE_LR},
    **{
        f"{name}-{alignment}": {"ab_overrides": ab, "alignment": alignment}
        for name, ab in PARAMETRIZATIONS.items()
        for alignment in ("full", "no")
    },
}


def on_meta(kind: type[nn.Module] = MLP, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return kind(**arguments)


# At the base


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer_type", ["adam", "sgd"])
def test_at_the_base_every_scale_is_1_and_every_lr_is_the_prefactor(
    method: str, optimizer_type: Any
) -> None:
    model = MLP(bias=True)
    p = Parametrization(
        model, base=on_meta(), optimizer_type=optimizer_type, lr_prefactor=0.3, **METHODS[method]
    )
    assert [site.scale for site in p.sites.values()] == [1.0] * 4
    assert {group["lr"] for group in p.param_groups} == {0.3}
    assert set(p.lr_factors().values()) == {1.0}


def losses(steps: int, **arguments: Any) -> list[float]:
    model = MLP(16, bias=True)
    p = Parametrization(model, base=on_meta(), lr_prefactor=0.01, seed=0, **arguments)
    optimizer = torch.optim.AdamW(p.param_groups)
    values = []
    for step in range(steps):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        values.append(loss.item())
    return values


def test_at_the_base_every_method_is_the_same_run() -> None:
    runs = [losses(50, **arguments) for arguments in METHODS.values()]
    assert all(run == runs[0] for run in runs)
    assert runs[0][-1] < runs[0][0]


def test_at_the_base_measured_exponents_change_no_lr() -> None:
    p = Parametrization(MLP(), base=on_meta(), lr_prefactor=0.3)
    p.set_measured(dict.fromkeys(p.measured, (0.7, 0.5, 0.9)))
    p.solve()
    p.apply()
    assert p.c["layers.0"] == pytest.approx(0.9)
    assert {group["lr"] for group in p.param_groups} == {0.3}


def test_scores_without_a_weight_keep_their_scale_with_every_base() -> None:
    for base_head_dim in (4, 8):
        base = on_meta(Llama, width=16, depth=1, head_dim=base_head_dim)
        p = Parametrization(Llama(32, 1, head_dim=8), base=base)
        assert p.sites["blocks.0.qk"].scale == 8**-0.5


# At other widths


@pytest.mark.parametrize("ab", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def test_scale_std_and_lr_are_powers_of_the_ratio(ab: Any) -> None:
    p = Parametrization(
        MLP(512, depth=1, bias=True), base=WIDTHS, ab_overrides=ab, seed=0, lr_prefactor=0.3
    )
    stds = {"embed": FEATURES**-0.5, "layers.0": 1 / 4, "readout": 1 / 4}
    m = 32
    for name, kind in (("embed", "embedding"), ("layers.0", "hidden"), ("readout", "readout")):
        a, b = ab[kind]
        assert p.sites[name].scale == pytest.approx(m**-a)
        w = p.weights[name].detach()
        assert rms(w) == pytest.approx(stds[name] * m**-b, rel=4 / math.sqrt(2 * w.numel()))
        assert lr(p, name) == pytest.approx(0.3 * m ** -p.c[name])
        if a:
            assert lr(p, f"{name}.bias") == pytest.approx(0.3 * m**a)
    # The exponents are those without a base.
    assert p.c == Parametrization(MLP(512, depth=1), ab_overrides=ab).c


def lr(p: Parametrization, name: str) -> float:
    (group,) = (g for g in p.param_groups if g["name"] == name)
    return float(group["lr"])


def rms(w: torch.Tensor) -> float:
    return float(w.detach().double().square().mean().sqrt())


def test_a_base_of_width_1_is_the_definition_without_a_base() -> None:
    ones = dict.fromkeys(WIDTHS, 1)
    p = Parametrization(MLP(), base=ones, base_std=dict.fromkeys(WIDTHS, 1.0), seed=0)
    without = Parametrization(MLP(), seed=0)
    assert p.lrs() == without.lrs()
    for name, weight in p.weights.items():
        assert torch.equal(weight, without.weights[name])


def test_each_site_has_its_own_ratio() -> None:
    base = {**WIDTHS, "layers.1": 4}
    p = Parametrization(MLP(64), base=base, lr_prefactor=1.0)
    assert lr(p, "layers.0") == pytest.approx(16 / 64)
    assert lr(p, "layers.1") == pytest.approx(4 / 64)


@pytest.mark.parametrize("ab", ["mup", "mean-field"])
def test_the_coordinate_check_is_right_with_a_base(ab: str) -> None:
    def make_model(width: int) -> tuple[nn.Module, list[dict[str, Any]]]:
        model = MLP(width, depth=1)
        p = Parametrization(
            model, base=WIDTHS, ab_overrides=PARAMETRIZATIONS[ab], lr_prefactor=1e-3
        )
        return model, p.param_groups

    _, affected, _ = diagnose_axis(
        make_model, lambda width: batch(0, 4)[0], (64, 128, 256, 512), seeds=4, progress=False
    )
    assert affected == []


# Sigma and s of the base


def test_a_base_with_weights_gives_their_rms() -> None:
    base = MLP(16)
    with torch.no_grad():
        for i, weight in enumerate(base.parameters()):
            weight.normal_(0, 0.1 * (i + 1))
    p = Parametrization(MLP(64), base=base, seed=0)
    for i, (name, w) in enumerate(base.named_parameters()):
        site = name.removesuffix(".op.weight")
        assert p._stds[site] == pytest.approx(rms(w) / 2)  # m^-1/2, and m is 4
        assert rms(w) == pytest.approx(0.1 * (i + 1), rel=0.25)


def test_a_base_on_meta_and_widths_give_the_usual_stds() -> None:
    for base in (on_meta(), WIDTHS):
        p = Parametrization(MLP(16), base=base)
        assert p._stds == pytest.approx({
            "embed": FEATURES**-0.5, "layers.0": 1 / 4, "layers.1": 1 / 4, "readout": 1 / 4
        })  # fmt: skip


def test_an_embedding_that_is_looked_up_has_std_1() -> None:
    p = Parametrization(ViT(16, 1), base=on_meta(ViT, width=16, depth=1))
    assert p._stds["position"] == 1.0
    assert p._stds["patch"] == pytest.approx(FEATURES**-0.5)
    assert Parametrization(Llama(16, 1), base=WIDTHS | {"w2": 32})._stds["embed"] == 1.0


@pytest.mark.parametrize(("scale", "expected"), [(None, 1.0), (3.0, 3.0)])
def test_the_scale_of_the_base_is_the_one_that_its_user_set(
    scale: float | None, expected: float
) -> None:
    base = MLP(16)
    if scale is not None:
        base.readout.scale = scale
    assert Parametrization(MLP(64), base=base).sites["readout"].scale == expected / 2
    assert Parametrization(MLP(16), base=base).sites["readout"].scale == expected


def test_std_prefactor_and_base_std_set_sigma() -> None:
    p = Parametrization(MLP(16), base=WIDTHS, std_prefactor=0.5, base_std={"readout": 0.1})
    assert p._stds["layers.0"] == 0.5 / 4
    assert p._stds["readout"] == 0.5 * 0.1


# Constants


def test_multipliers_are_factors_of_lr_and_std_by_name_suffix_or_layer_type() -> None:
    gammas = {"hidden": 2.0, "1": 3.0, "embed": 5.0, "rest": 7.0}
    p = Parametrization(
        MLP(16, bias=True), base=WIDTHS, lr_multipliers=gammas, lr_prefactor=1.0,
        std_multipliers={"hidden": 2.0, "1": 3.0},
    )  # fmt: skip
    assert {n: f for n, f in p.lr_factors().items() if n in p.weights} == {
        "embed": 5.0, "layers.0": 2.0, "layers.1": 3.0, "readout": 1.0
    }  # fmt: skip
    # Every bias has the rest's, whether or not it has a group of its own.
    assert lr(p, "rest") == lr(p, "embed.bias") == lr(p, "readout.bias") == 7.0
    assert p._stds["layers.0"] == 2 / 4
    assert p._stds["layers.1"] == 3 / 4


def test_multipliers_need_no_base() -> None:
    plain, p = (Parametrization(MLP(16), lr_multipliers=g) for g in (None, {"readout": 0.5}))
    assert lr(p, "readout") == 0.5 * lr(plain, "readout")
    assert lr(p, "embed") == lr(plain, "embed")


# Bad input


class OtherType(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Linear(FEATURES, 8), 8, "embedding")
        self.layers = nn.ModuleList([linear(8, 8), linear(8, 8)])
        self.readout = ParametrizedModule(nn.Linear(8, CLASSES), 8, "hidden")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": MLP(depth=3)}, r"base: its sites are not the model's: layers\.2"),
        ({"base": OtherType()}, "base: readout is hidden, but readout in the model"),
        ({"base": {**WIDTHS, "fc": 8}}, "base for fc matches no site"),
        ({"base": {**WIDTHS, "hidden": 0}}, "base: the width of hidden must be at least 1, got 0"),
        ({"base": {"hidden": 8}}, "base: no width for embed, readout"),
        ({"base_std": {"hidden": 0.1}}, "base_std needs a base"),
        ({"base": WIDTHS, "base_std": {"hidden": -1.0}}, "base_std: hidden must be finite"),
        ({"base": WIDTHS, "base_std": {"fc": 1.0}}, "base_std for fc matches no site"),
        ({"lr_multipliers": {"hidden": 0.0}}, "lr_multipliers: hidden must be positive"),
        ({"lr_multipliers": {"rest": -1.0}}, "lr_multipliers: rest must be positive"),
        ({"lr_multipliers": {"hidden": math.inf}}, "lr_multipliers: hidden must be positive"),
        ({"lr_multipliers": {"fc": 1.0}}, "lr_multipliers for fc matches no site"),
        ({"std_multipliers": {"hidden": math.nan}}, "std_multipliers: hidden must be positive"),
        ({"std_multipliers": {"rest": 1.0}}, "std_multipliers for rest matches no site"),
    ],
)
def test_a_wrong_base_or_constant_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(MLP(), **arguments)


def test_a_base_wider_than_the_model_is_allowed_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="maxp"):
        p = Parametrization(MLP(16), base=on_meta(width=64), lr_prefactor=1.0)
    assert "the base is wider than the model at embed, layers.0" in caplog.text
    assert lr(p, "layers.0") == 4.0


def test_with_a_base_initial_weights_are_drawn_again_from_seeds() -> None:
    tokens = torch.arange(VOCABULARY)[None]
    p = Parametrization(
        Llama(32, 1), base=on_meta(Llama, depth=1), std_multipliers={"hidden": 0.5},
        resample_w0=True, sample_input=tokens,
    )  # fmt: skip
    p.capture_initial(tokens)  # refuses weights that it cannot draw again
