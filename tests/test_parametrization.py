"""`Parametrization` at construction: initial weights, multipliers, c and param groups."""

import math
from typing import Any

import pytest
import torch
from models import FEATURES, MLP, VOCABULARY, Llama, ViT, batch, linear
from torch import nn

from maxp import (
    PARAMETRIZATIONS,
    Parametrization,
    ParametrizedModule,
)

WIDTH = 16
NAMES = ["embed", "layers.0", "layers.1", "readout"]


def lrs(p: Parametrization) -> dict[str, float]:
    return {group["name"]: group["lr"] for group in p.param_groups}


# Param groups


def test_a_group_a_site_named_and_at_its_own_lr() -> None:
    model = MLP(WIDTH, depth=2)
    p = Parametrization(model, lr_prefactor=0.3)
    assert [group["name"] for group in p.param_groups] == NAMES
    sites = [model.embed, *model.layers, model.readout]
    assert [g["params"] for g in p.param_groups] == [[site.weight] for site in sites]
    # muP under Adam: c = 1/2, 1, 1/2.
    assert list(lrs(p).values()) == pytest.approx([0.3 / 4, 0.3 / 16, 0.3 / 16, 0.3 / 4], rel=1e-9)


def test_what_is_no_site_goes_into_one_last_group_at_the_prefactor() -> None:
    model = ViT(WIDTH, depth=1)
    p = Parametrization(model, lr_prefactor=0.3)
    last = p.param_groups[-1]
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert last["lr"] == 0.3
    assert {id(q) for q in last["params"]} == {id(q) for m in norms for q in m.parameters()}


@pytest.mark.parametrize("model", [MLP(bias=True), ViT(), Llama()])
def test_every_parameter_is_in_exactly_one_group(model: nn.Module) -> None:
    grouped = [id(q) for group in Parametrization(model).param_groups for q in group["params"]]
    assert sorted(grouped) == sorted(id(q) for q in model.parameters())


def test_a_model_of_sites_alone_has_no_last_group() -> None:
    assert [g["name"] for g in Parametrization(nn.Sequential(linear(4, 4))).param_groups] == ["0"]


def test_a_site_without_a_weight_has_no_group_and_no_c() -> None:
    p = Parametrization(Llama(depth=1))
    assert "blocks.0.qk" in p.sites
    assert "blocks.0.qk" not in lrs(p)
    assert "blocks.0.qk" not in p.c


# Biases


def test_a_bias_behind_a_multiplier_has_an_lr_that_cancels_it() -> None:
    p = Parametrization(MLP(WIDTH, depth=1, bias=True), lr_prefactor=0.3)
    # The multiplier n^-a is 4 at the embedding, 1/4 at the readout.
    assert lrs(p)["embed.bias"] == pytest.approx(0.3 / 4)
    assert lrs(p)["readout.bias"] == pytest.approx(0.3 * 4)
    assert lrs(p)["rest"] == 0.3  # holds the hidden layer's, whose multiplier is 1


@pytest.mark.parametrize("width", [16, 64, 256])
@pytest.mark.parametrize("name", ["embed", "readout"])
def test_a_step_of_a_bias_moves_the_output_by_the_same_at_every_width(
    width: int, name: str
) -> None:
    model, (x, _) = MLP(width, depth=1, bias=True), batch(0)
    p = Parametrization(model, lr_prefactor=0.01, seed=0)
    (group,) = (g for g in p.param_groups if g["name"] == f"{name}.bias")
    site: Any = getattr(model, name)
    z = x if name == "embed" else torch.randn(5, width)
    before = site(z).detach()
    site(z).sum().backward()
    torch.optim.Adam([group]).step()  # its first step is lr * sign(gradient)
    torch.testing.assert_close(site(z).detach() - before, torch.full_like(before, -0.01))


@pytest.mark.parametrize("width", [16, 64, 256])
def test_an_sgd_step_of_the_readouts_bias_moves_it_by_the_gradient_at_every_width(
    width: int,
) -> None:
    model = MLP(width, depth=1, bias=True)
    p = Parametrization(model, lr_prefactor=0.01, optimizer_type="sgd")
    (group,) = (g for g in p.param_groups if g["name"] == "readout.bias")
    z = torch.randn(5, width)
    before = model.readout(z).detach()
    model.readout(z).sum().backward()
    torch.optim.SGD([group]).step()
    # The gradient of the sum of five outputs is 5 where the multiplier cancels out.
    torch.testing.assert_close(model.readout(z).detach() - before, torch.full_like(before, -0.05))


# Names that a site may have


class Named(nn.Module):
    """A site called ``rest``, one with a bias behind its multiplier, and a LayerNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = linear(256, 256)
        self.norm = nn.LayerNorm(256)
        self.out = ParametrizedModule(nn.Linear(256, 4), 256, "readout")
        self.out.bias = linear(256, 4)  # so its name is that of the bias's group


def test_a_site_called_rest_does_not_share_its_lr_with_what_is_no_site() -> None:
    model = Named()
    p = Parametrization(model, lr_prefactor=0.1)
    lr_of = {id(q): group["lr"] for group in p.param_groups for q in group["params"]}
    assert lr_of[id(model.norm.weight)] == lr_of[id(model.norm.bias)] == 0.1
    assert lr_of[id(model.rest.weight)] == pytest.approx(0.1 / 256)


def test_a_site_called_bias_does_not_share_its_lr_with_a_sites_bias() -> None:
    model = Named()
    p = Parametrization(model, lr_prefactor=0.1)
    lr_of = {id(q): group["lr"] for group in p.param_groups for q in group["params"]}
    assert lr_of[id(model.out.op.bias)] == pytest.approx(0.1 * 16)
    assert lr_of[id(model.out.bias.weight)] == pytest.approx(0.1 / 256)


def test_group_names_are_unique_whatever_the_sites_are_called() -> None:
    names = [group["name"] for group in Parametrization(Named()).param_groups]
    assert sorted(names) == [".out.bias", ".rest", "out", "out.bias", "rest"]


# Initial weights


@pytest.mark.parametrize("std_prefactor", [1.0, 0.5])
@pytest.mark.parametrize("ab", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
def test_initial_weights_have_std_prefactor_times_n_to_the_minus_b(
    ab: Any, std_prefactor: float
) -> None:
    p = Parametrization(
        MLP(256, depth=1), ab_overrides=ab, std_prefactor=std_prefactor, seed=1, alignment="no"
    )
    for name, layer_type in (
        ("embed", "embedding"),
        ("layers.0", "hidden"),
        ("readout", "readout"),
    ):
        w = p.weights[name].detach().double()
        std = std_prefactor * 256 ** -ab[layer_type][1]
        assert abs(float(w.std()) - std) < 4 * std / math.sqrt(2 * w.numel())
        assert abs(float(w.mean())) < 4 * std / math.sqrt(w.numel())


def test_the_width_of_the_std_is_width_dim_whichever_dimension_it_is() -> None:
    p = Parametrization(nn.Sequential(ParametrizedModule(nn.Linear(64, 400), 400)), seed=0)
    assert float(p.weights["0"].detach().std()) == pytest.approx(1 / 20, rel=0.03)


def test_biases_start_at_zero() -> None:
    model = MLP(bias=True)
    Parametrization(model)
    biases = [q for name, q in model.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4
    assert not any(bias.any() for bias in biases)


def test_one_seed_gives_one_model_and_another_seed_another() -> None:
    first, again, other = (Parametrization(MLP(), seed=seed).weights["embed"] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_torchs_own_seed_decides_where_none_is_given() -> None:
    drawn = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        drawn.append(Parametrization(MLP()).weights["embed"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_equal_layers_start_from_different_weights() -> None:
    p = Parametrization(MLP(), seed=0)
    assert not torch.equal(p.weights["layers.0"], p.weights["layers.1"])


def test_what_is_no_site_keeps_its_initial_value() -> None:
    plain = nn.Linear(4, 4)
    before = plain.weight.clone()
    Parametrization(nn.Sequential(plain, linear(4, 4)))
    assert torch.equal(plain.weight, before)


def test_a_model_on_meta_gets_its_groups_without_being_drawn() -> None:
    with torch.device("meta"):
        model = ViT(WIDTH, depth=1)
    p = Parametrization(model, sample_input=torch.zeros(1, 2, FEATURES))
    assert lrs(p) == lrs(Parametrization(ViT(WIDTH, depth=1)))
    assert p.weights["head"].is_meta


# What goes wrong loudly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment": "half"}, "alignment must be one of full, no, got 'half'"),
        ({"optimizer_type": "lion"}, "optimizer_type must be one of adam, sgd, muon, got 'lion'"),
        ({"ab_overrides": {"layers.0": (0.5, 0.5)}}, r"layers\.0: .*hidden needs a \+ b = 1/2"),
        ({"ab_overrides": [(0.0, 0.0)]}, "three"),
        ({"ab_overrides": {"fc": (0.0, 0.5)}}, "ab_overrides for fc matches no site"),
        ({"c_overrides": {"fc": 1.0}}, "c_overrides for fc matches no site"),
        ({"alignment_overrides": {"fc": (1, 1, 1)}}, "alignment_overrides for fc matches no site"),
        ({"lr_prefactor": 0.0}, "lr_prefactor must be positive"),
        ({"lr_prefactor": math.nan}, "lr_prefactor must be positive"),
        ({"std_prefactor": -1.0}, "std_prefactor must be positive"),
        ({"solve_interval": 0}, "solve_interval must be positive"),
        ({"sample_size": 0}, "sample_size must be positive"),
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"c_ema": 1.0}, r"c_ema must be in \[0, 1\)"),
        ({"alignment_ema": -0.1}, r"alignment_ema must be in \[0, 1\)"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "=".join(map(str, *value.items())),
)
def test_a_wrong_argument_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(MLP(), **arguments)


def test_a_model_without_sites_is_refused() -> None:
    with pytest.raises(ValueError, match="no site found"):
        Parametrization(nn.Linear(2, 2))


def test_sites_that_share_a_weight_are_refused() -> None:
    ops = nn.Linear(4, 4), nn.Linear(4, 4)
    ops[1].weight = ops[0].weight
    model = nn.Sequential(*(ParametrizedModule(op, 4) for op in ops))
    with pytest.raises(ValueError, match="share one weight"):
        Parametrization(model)


def test_a_c_for_an_operation_without_a_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="c_overrides for qk matches no site"):
        Parametrization(Llama(depth=1), c_overrides={"qk": 1.0})


def test_sgd_without_a_readout_is_refused() -> None:
    with pytest.raises(ValueError, match="readout"):
        Parametrization(nn.Sequential(linear(4, 4)), optimizer_type="sgd")


def test_an_embedding_table_is_drawn_like_any_other_weight() -> None:
    model = Llama(width=512, depth=1, head_dim=64)
    p = Parametrization(model, seed=0)
    w = p.weights["embed"].detach()
    assert w.shape == (VOCABULARY, 512)
    assert abs(float(w.std()) * math.sqrt(512) - 1) < 4 / math.sqrt(2 * w.numel())
    # Its multiplier brings the output to size 1.
    out = model.embed(torch.arange(VOCABULARY))
    assert float(out.square().mean()) == pytest.approx(1, rel=0.1)
