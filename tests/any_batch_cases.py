"""A net for the tests of `Parametrization.step` on any batch, and its twin with initial weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, linear
from test_alignment import by_definition
from torch import nn
from torch.utils.checkpoint import checkpoint

from maxp import Parametrization, ParametrizedModule

WIDTH, TOKENS, ROWS, LENGTH = 16, 9, 3, 5

RESAMPLE = pytest.mark.parametrize("resample_w0", [False, True], ids=["kept", "drawn again"])


class Net(nn.Module):
    """Everything that a forward pass depends on, and that training changes."""

    def __init__(self, *, rerun: str | None = None) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Embedding(TOKENS, WIDTH), WIDTH, "embedding")
        self.norm = nn.LayerNorm(WIDTH)
        self.first = linear(WIDTH, WIDTH, bias=True)
        self.statistics = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.plain = nn.Linear(WIDTH, WIDTH)  # no site
        self.frozen = nn.Parameter(torch.full((WIDTH,), 1.5), requires_grad=False)
        self.second = linear(WIDTH, WIDTH)
        self.readout = ParametrizedModule(nn.Linear(WIDTH, CLASSES, bias=False), WIDTH, "readout")
        self.register_buffer("written", torch.zeros(2))  # nothing writes it, but for one test
        self.rerun = rerun

    def body(self, h: torch.Tensor) -> torch.Tensor:
        shape = h.shape[:2]
        h = self.first(self.norm(h)).relu()
        h = self.statistics(h.flatten(0, 1)).unflatten(0, shape)
        # The second site's weight is also used by an operation that is no site.
        h = h + F.linear(self.plain(self.drop(h)) * self.frozen, self.second.op.weight)
        return self.second(h).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rerun is None:
            return self.readout(self.body(self.embed(x)))
        reentrant = self.rerun == "reentrant"
        return self.readout(checkpoint(self.body, self.embed(x), use_reentrant=reentrant))


def batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENS, (ROWS, LENGTH), generator=generator)


def build(*, rerun: str | None = None, **settings: Any) -> tuple[Net, Parametrization]:
    torch.manual_seed(0)
    model = Net(rerun=rerun).double()
    return model, Parametrization(model, lr_prefactor=0.05, seed=3, **settings)


def backward(model: nn.Module, x: torch.Tensor) -> None:
    F.cross_entropy(model(x).flatten(0, 1), x.flatten() % CLASSES).backward()


def train(model: nn.Module, p: Parametrization, steps: range, measure_on: Any = None) -> None:
    optimizer = torch.optim.Adam(p.param_groups)
    for step in steps:
        backward(model, batch(step))
        optimizer.step()
        optimizer.zero_grad()
        p.step(batch(measure_on) if measure_on is not None else batch(step), optimizer)


def inputs(model: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of the sites on x, in evaluation mode, by hooks of the test's own."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach().flatten(0, -2)})
        )
        for name in ("first", "second", "readout")
    ]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        model(x)
    for module, mode in modes:
        module.training = mode
    for hook in hooks:
        hook.remove()
    return seen


def by_twin(
    model: Net, twin: Net, x: torch.Tensor, z: dict[str, torch.Tensor] | None = None
) -> dict[str, tuple[float | None, ...]]:
    """The definition, from a model with the initial weights and one with the current ones."""
    z0, z = inputs(twin, x), z or inputs(model, x)
    return {
        name: by_definition(
            z0[name],
            getattr(twin, name).weight.detach(),
            z[name],
            getattr(model, name).weight.detach(),
            WIDTH,
        )
        for name in z
    }
