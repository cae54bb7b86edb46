"""Models for the tests of the coordinate check: an MLP by width, and one of which all is known."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from maxp import PARAMETRIZATIONS, Parametrization, ParametrizedModule
from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.slopes import SiteStats

WIDTHS = [128, 256, 512]
WIDE = [128, 256, 512, 1024, 2048]
# Outputs times tokens must be small against the widths: the part of an update's effect on the
# readout that is random falls. Measured from 128 to 512, the change's slope is -0.02 at 8 outputs
# and 8 tokens, -0.03 at 8 and 16, -0.2 at 64 and 64.
IN, OUT, HIDDEN, TOKENS = 8, 8, 3, 8
HIDDEN_SITES = [f"hidden.{i}" for i in range(HIDDEN)]
SITES = ["embedding", *HIDDEN_SITES, "readout"]

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


class Known(nn.Module):
    """One weight of entries n^-0.3 behind a multiplier n^0.5; on x = 1 all is known."""

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
