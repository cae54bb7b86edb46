"""Folding multipliers into weights: an ordinary model with the same outputs."""

import copy
from typing import Any

import pytest
import torch
from plain_models import GPT, ConvNet, Encoder, tokens
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from maxp import PARAMETRIZATIONS, Parametrization, ParametrizedModule, mark
from maxp.module import find_sites

MODELS: dict[str, tuple[Any, Any]] = {
    "gpt": (GPT, tokens),
    "tied": (lambda width: GPT(width, tied=True), tokens),
    "convolutions": (ConvNet, lambda: torch.randn(4, 3, 8, 8)),
    "torch's encoder": (Encoder, lambda: torch.randn(4, 5, 6)),
}


@pytest.mark.parametrize("ab", PARAMETRIZATIONS)
@pytest.mark.parametrize("kind", MODELS)
def test_a_folded_model_is_an_ordinary_one_with_the_same_outputs(kind: str, ab: str) -> None:
    torch.manual_seed(0)
    make, sample = MODELS[kind]
    model, x = make(64), sample()
    classes = {name: type(module) for name, module in model.named_modules()}
    p = Parametrization(model, base=make(16), ab_overrides=PARAMETRIZATIONS[ab])
    out = model(x)
    p.fold()
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)
    assert {name: type(module) for name, module in model.named_modules()} == classes
    assert not find_sites(model)
    again = make(64) if kind != "tied" else GPT(64)
    again.load_state_dict(model.state_dict())
    torch.testing.assert_close(again(x), out, rtol=1e-5, atol=1e-6)


def test_a_tied_weight_whose_roles_have_other_multipliers_is_untied() -> None:
    model = GPT(64, tied=True)
    p = Parametrization(model, base=GPT(16, tied=True))
    assert (model.embed.scale, model.head.scale) == pytest.approx((2.0, 0.5))
    shared = model.embed.weight.detach().clone()
    p.fold()
    torch.testing.assert_close(model.embed.weight, 2 * shared)
    torch.testing.assert_close(model.head.weight, shared / 2)


def test_at_the_bases_width_a_tied_weight_stays_tied() -> None:
    model = GPT(16, tied=True)
    plan = mark(model, GPT(16, tied=True), delta=GPT(32, tied=True))
    Parametrization(model, base=plan).fold()
    assert model.head.weight is model.embed.weight


def test_a_tied_weight_whose_roles_have_one_multiplier_is_multiplied_once() -> None:
    model = GPT(64, tied=True)
    p = Parametrization(model, base=GPT(16, tied=True))
    for site in (model.embed, model.head):
        site.scale = 2.0
    out = model(tokens())
    p.fold()
    assert model.head.weight is model.embed.weight
    torch.testing.assert_close(model(tokens()), out)


def test_a_wrapped_module_keeps_its_wrapper_and_loses_its_multiplier() -> None:
    site = ParametrizedModule(nn.Linear(16, 3), 16, "readout")
    model, x = nn.Sequential(site), torch.randn(5, 16)
    p = Parametrization(model)
    out = model(x)
    p.fold()
    assert site.scale == 1.0
    torch.testing.assert_close(model(x), out)
    torch.testing.assert_close(site.op(x), out)


def test_a_folded_model_can_be_marked_again_with_the_same_multipliers() -> None:
    model = GPT(64)
    p = Parametrization(model, base=GPT(16))
    p.fold()
    plain = copy.deepcopy(model)
    again = Parametrization(model, base=GPT(16))
    assert again.c == pytest.approx(p.c)
    assert type(plain.head) is nn.Linear


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        (lambda head: prune.l1_unstructured(head, "weight", 0.5),
         lambda head: prune.remove(head, "weight")),
        (parametrizations.weight_norm,
         lambda head: nn.utils.parametrize.remove_parametrizations(head, "weight")),
    ],
)  # fmt: skip
def test_a_weight_that_is_computed_from_others_is_refused(change: Any, undo: Any) -> None:
    model, x = GPT(64), tokens()
    p = Parametrization(model, base=GPT(16))
    change(model.head)
    out = model(x)
    with pytest.raises(ValueError, match="head: its weight is computed from other tensors"):
        p.fold()
    torch.testing.assert_close(model(x), out)
    undo(model.head)
    p.fold()
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)


def test_a_table_whose_rows_are_bounded_is_refused() -> None:
    model, x = GPT(64), tokens()
    model.embed.max_norm = 1.0
    p = Parametrization(model, base=GPT(16))
    out = model(x)
    with pytest.raises(ValueError, match="embed: its max_norm would bound the weight"):
        p.fold()
    model.embed.max_norm = None
    p.fold()
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)


class CosineHead(nn.Linear):
    """Its weight counts by its direction alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1), self.bias)


class StandardizedStem(nn.Conv2d):
    """As timm's StdConv2d: the filters are standardized in each call."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class ScaledTable(nn.Embedding):
    """As Gemma's: a factor of its own, and proportional to the weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 3


@pytest.mark.parametrize(("name", "cls"), [("head", CosineHead), ("stem", StandardizedStem)])
def test_a_layer_that_normalizes_its_weight_is_refused(name: str, cls: type) -> None:
    def make(width: int) -> nn.Module:
        model = ConvNet(width)
        own = getattr(model, name)
        if cls is CosineHead:
            setattr(model, name, CosineHead(own.in_features, own.out_features))
        else:
            model.stem = StandardizedStem(own.in_channels, own.out_channels, 3, padding=1)
        return model

    model, x = make(64), torch.randn(4, 3, 8, 8)
    p = Parametrization(model, base=make(16))
    assert getattr(model, name).scale != 1.0
    out, state = model(x), torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{name}: {cls.__name__} is not proportional to its"):
        p.fold()
    torch.testing.assert_close(model(x), out, rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_layer_with_a_forward_of_its_own_is_folded() -> None:
    def make(width: int) -> nn.Module:
        model = GPT(width)
        model.embed = ScaledTable(*model.embed.weight.shape)
        return model

    model, x = make(64), tokens()
    p = Parametrization(model, base=make(16))
    assert model.embed.scale != 1.0
    out = model(x)
    p.fold()
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)


class GatedHead(nn.Linear):
    """Needs a second argument."""

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * gate


def test_a_layer_that_cannot_be_tried_is_folded_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Gated(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(6, width), GatedHead(width, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.embed(x)
            return self.head(x, torch.ones(4))

    model, x = Gated(64), torch.randn(5, 6)
    p = Parametrization(model, base=Gated(16))
    assert model.head.scale != 1.0
    out = model(x)
    p.fold()
    torch.testing.assert_close(model(x), out, rtol=1e-5, atol=1e-6)
    assert "GatedHead: cannot try whether its output is proportional to its weight" in caplog.text


def test_training_does_not_go_on_after_fold() -> None:
    model = GPT(64)
    p = Parametrization(model, base=GPT(16))
    optimizer = torch.optim.AdamW(p.param_groups)
    p.fold()
    with pytest.raises(RuntimeError, match="fold has written the multipliers into the weights"):
        p.capture_initial(tokens())
    with pytest.raises(RuntimeError, match="training is over"):
        p.step(tokens(), optimizer)
