"""One optimizer for the groups of two Parametrizations, and for groups of other parameters."""

from typing import Any

import pytest
import torch
from models import MLP, batch
from torch.optim import lr_scheduler

from maxp import Parametrization

X, Y = batch(0)


class Two:
    """Two models whose sites have the same names, trained by one optimizer."""

    def __init__(self, *others: dict[str, Any]) -> None:
        torch.manual_seed(0)
        self.models = MLP(16), MLP(32)
        self.ps = [
            Parametrization(model, lr_prefactor=lr)
            for model, lr in zip(self.models, (0.01, 0.002), strict=True)
        ]
        groups = [*self.ps[0].param_groups, *self.ps[1].param_groups, *others]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4)
        for p in self.ps:
            p.capture_initial(X)

    def step(self) -> None:
        self.optimizer.zero_grad()
        for model in self.models:
            torch.nn.functional.cross_entropy(model(X), Y).backward()
        self.optimizer.step()
        for p in self.ps:
            p.step(X, self.optimizer)

    def own(self) -> list[float]:
        """The learning rates that belong into the groups of the two, without a schedule."""
        return [p.lrs()[group["name"]] for p in self.ps for group in p.param_groups]


def lrs(optimizer: torch.optim.Optimizer) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups]


@pytest.mark.parametrize("loaded", [False, True])
def test_groups_of_one_name_keep_the_learning_rates_of_their_own_models(loaded: bool) -> None:
    two = Two()
    if loaded:
        two.optimizer.load_state_dict(two.optimizer.state_dict())
    for _ in range(3):
        two.step()
        assert lrs(two.optimizer) == pytest.approx(two.own())
    assert two.ps[0].c != pytest.approx(two.ps[1].c)
    two.ps[0].lr_prefactor = 0.02
    assert lrs(two.optimizer) == pytest.approx(two.own())


def test_each_prefactor_is_replaced_by_one_lr_of_a_scheduler() -> None:
    two = Two()
    lr_scheduler.OneCycleLR(two.optimizer, max_lr=0.5, total_steps=9)
    for p in two.ps:
        p.apply(two.optimizer)
    used: list[float] = []
    two.optimizer.register_step_pre_hook(lambda o, *_: used.extend(lrs(o)))
    first = [p.lr_factors()[group["name"]] for p in two.ps for group in p.param_groups]
    two.step()
    assert used == pytest.approx([0.5 / 25 * factor for factor in first])


def test_a_group_without_a_name_follows_its_scheduler_alone() -> None:
    two = Two({"params": [torch.nn.Parameter(torch.zeros(1))]})
    scheduler = lr_scheduler.ExponentialLR(two.optimizer, 0.5)
    for steps in range(1, 4):
        two.step()
        scheduler.step()
        assert lrs(two.optimizer)[-1] == 1e-4 * 0.5**steps
