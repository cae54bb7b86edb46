"""With muP's exponents, a base gives what microsoft/mup gives with the same base shapes.

mup's readout has a multiplier 1/m and weights whose size does not change, and its embedding has
neither: (a, b) = (0, 0), (0, 1/2), (1, 0). They are equivalent to the default (-1/2, 1/2),
(0, 1/2), (1/2, 1/2) if eps is negligible, so losses are compared for both.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from mup import MuAdam, MuReadout, set_base_shapes
from torch import nn

from maxp import Parametrization, ParametrizedModule

BASE, WIDTH, CLASSES, TOKENS, HEADS = 16, 64, 5, 11, 2
MUP = {"embedding": (0.0, 0.0), "hidden": (0.0, 0.5), "readout": (1.0, 0.0)}
# 1/head_dim, as muP's attention has it.
ATTENTION = {
    "ab_overrides": {"qk": (1.0, 0.0)},
    "alignment_overrides": {"qk": (1.0, 1.0, 1.0)},
}
Wrap = Callable[..., Any]


def marked(layer: Any, width: int, kind: Any) -> nn.Module:
    return ParametrizedModule(layer, width, kind)


def unmarked(layer: Any, width: int, kind: Any) -> Any:
    """The same for mup: a plain layer, `MuReadout` for a readout."""
    if kind == "readout" and isinstance(layer, nn.Linear):
        return MuReadout(layer.in_features, layer.out_features, bias=layer.bias is not None)
    return layer if isinstance(layer, nn.Module) else lambda q, k: layer(q, k) / width


class Perceptron(nn.Module):
    def __init__(self, width: int, wrap: Wrap) -> None:
        super().__init__()
        self.embed = wrap(nn.Linear(TOKENS, width), width, "embedding")
        self.fc1 = wrap(nn.Linear(width, 2 * width), width, "hidden")
        self.fc2 = wrap(nn.Linear(2 * width, width), 2 * width, "hidden")
        self.out = wrap(nn.Linear(width, CLASSES), width, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = F.one_hot(x, TOKENS).to(torch.float64).mean(1)
        return self.out(self.fc2(self.fc1(self.embed(h).tanh()).tanh()).tanh())


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class GPT(nn.Module):
    """One block; the number of heads is fixed, so that head_dim grows with the width."""

    def __init__(self, width: int, wrap: Wrap) -> None:
        super().__init__()
        self.embed = wrap(nn.Embedding(TOKENS, width), width, "embedding")
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.proj = (
            wrap(nn.Linear(width, width), width, "hidden") for _ in range(4)
        )
        self.qk = wrap(lambda q, k: q @ k.transpose(-2, -1), width // HEADS, "readout")
        self.fc1 = wrap(nn.Linear(width, 4 * width), width, "hidden")
        self.fc2 = wrap(nn.Linear(4 * width, width), 4 * width, "hidden")
        self.out = wrap(nn.Linear(width, CLASSES), width, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        z = self.norm1(h)
        q, k, v = (heads(w(z)) for w in (self.q, self.k, self.v))
        h = h + self.proj((self.qk(q, k).softmax(-1) @ v).transpose(1, 2).flatten(2))
        h = h + self.fc2(F.gelu(self.fc1(self.norm2(h))))
        return self.out(self.norm3(h).mean(1))


def mup_model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    base, delta = kind(BASE, unmarked), kind(2 * BASE, unmarked)
    return set_base_shapes(kind(WIDTH, unmarked).double(), base, delta=delta)


def ours(kind: type[nn.Module], width: int = WIDTH, **arguments: Any) -> Parametrization:
    torch.manual_seed(1)
    settings: dict[str, Any] = {"ab_overrides": MUP}
    if kind is GPT:
        settings = {**ATTENTION, "ab_overrides": {**MUP, **ATTENTION["ab_overrides"]}}
    settings |= {"base": kind(BASE, marked), "lr_prefactor": 0.01, "seed": 0}
    return Parametrization(kind(width, marked).double(), **{**settings, **arguments})


def by_layer(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters by name, the same for both libraries."""
    return {name.replace(".op.", "."): p for name, p in model.named_parameters()}


KINDS = pytest.mark.parametrize("kind", [Perceptron, GPT])


@KINDS
def test_learning_rates_of_layers_are_those_of_mu_adam(kind: type[nn.Module]) -> None:
    theirs, p = mup_model(kind), ours(kind)
    groups = MuAdam(theirs.parameters(), lr=0.01).param_groups
    expected = {id(q): g["lr"] for g in groups for q in g["params"]}
    got = {id(q): g["lr"] for g in p.param_groups for q in g["params"]}
    lrs = by_layer(p.model)
    for name, parameter in by_layer(theirs).items():
        # Our multiplier applies to the readout's bias too, and its lr cancels it.
        factor = WIDTH / BASE if name == "out.bias" else 1.0
        assert got[id(lrs[name])] == expected[id(parameter)] * factor


@KINDS
def test_the_readouts_multiplier_is_that_of_mu_readout(kind: type[nn.Module]) -> None:
    theirs, p = mup_model(kind), ours(kind)
    assert isinstance(theirs.out, MuReadout)
    assert p.sites["out"].scale == 1 / theirs.out.width_mult()
    assert all(s.scale == 1 for n, s in p.sites.items() if n not in ("out", "qk"))


@KINDS
def test_the_init_scales_with_width_as_mups_does(kind: type[nn.Module]) -> None:
    torch.manual_seed(1)
    base, wide = by_layer(kind(BASE, unmarked)), by_layer(mup_model(kind))
    p = ours(kind)
    for name, site in p.sites.items():
        if site.weight is None:
            continue
        ratio = rms(wide[f"{name}.weight"]) / rms(base[f"{name}.weight"])
        expected = p._stds[name] / rms(kind_base(kind)[f"{name}.weight"])
        assert ratio == pytest.approx(expected, rel=0.1)  # weights of 80 entries and more


def kind_base(kind: type[nn.Module]) -> dict[str, torch.Tensor]:
    """The base that `ours` draws."""
    torch.manual_seed(1)
    return by_layer(kind(BASE, marked))


def rms(w: torch.Tensor) -> float:
    return float(w.detach().double().square().mean().sqrt())


def losses(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[float]:
    x = torch.randint(TOKENS, (16, 6), generator=torch.Generator().manual_seed(5))
    values = []
    for _ in range(20):
        loss = F.cross_entropy(model(x), x[:, 0] % CLASSES)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return values


@KINDS
@pytest.mark.parametrize("ab", [MUP, {}], ids=["mup's (a, b)", "default (a, b)"])
def test_losses_of_20_steps_are_mups(kind: type[nn.Module], ab: dict[str, Any]) -> None:
    theirs, p = mup_model(kind), ours(kind)
    names = by_layer(p.model)
    with torch.no_grad():
        for name, parameter in by_layer(theirs).items():
            parameter.copy_(names[name])
    if kind is GPT:
        ab = {**ab, **ATTENTION["ab_overrides"]}
    # The seed gives the same normals, so that scale * weight is the same at init.
    p = ours(kind, ab_overrides=ab)
    expected = losses(theirs, MuAdam(theirs.parameters(), lr=0.01, eps=1e-60))
    assert losses(p.model, torch.optim.Adam(p.param_groups, eps=1e-60)) == pytest.approx(
        expected, rel=1e-9
    )
    assert expected[-1] < 0.9 * expected[0]
