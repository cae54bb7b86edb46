"""`Parametrization.lr_prefactor`: a schedule, and how it reaches the optimizer's groups."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from models import MLP, batch
from test_stepping import PROBE, build, lrs, updates
from torch import nn
from torch.optim import Optimizer

from maxp import Parametrization

# The schedule


def test_setting_the_prefactor_scales_every_group_of_the_optimizer_at_once() -> None:
    p, optimizer = build(MLP(bias=True))
    first = lrs(optimizer.param_groups)
    p.lr_prefactor = 0.05 / 4
    assert lrs(optimizer.param_groups) == pytest.approx([lr / 4 for lr in first], rel=1e-12)
    assert lrs(p.param_groups) == lrs(optimizer.param_groups)
    assert p.lr_prefactor == 0.05 / 4


def test_a_schedule_and_a_solve_compose() -> None:
    p, optimizer = build()
    for step in updates(p, optimizer, 3):
        p.lr_prefactor = 0.05 / step
        assert lrs(optimizer.param_groups) == pytest.approx(
            [0.05 / step * 16 ** -p.c[g["name"]] for g in optimizer.param_groups]
        )


def test_a_schedule_may_end_at_zero_but_not_below() -> None:
    p, optimizer = build()
    p.lr_prefactor = 0.0
    assert lrs(optimizer.param_groups) == [0.0] * 4
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="lr_prefactor must be finite and not negative"):
            p.lr_prefactor = bad
    assert p.lr_prefactor == 0.0


def test_a_schedule_reaches_groups_that_load_state_dict_replaced() -> None:
    p, optimizer = build()
    list(updates(p, optimizer, 1))
    optimizer.load_state_dict(optimizer.state_dict())
    p.lr_prefactor = 0.025
    assert lrs(optimizer.param_groups) == pytest.approx(lrs(p.param_groups), rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025 * 16 ** -p.c["embed"])


def test_a_schedule_reaches_replaced_groups_before_the_first_step_once_applied() -> None:
    p, optimizer = build()
    optimizer.load_state_dict(optimizer.state_dict())
    p.apply(optimizer)
    p.lr_prefactor = 0.0
    before = p.weights["embed"].detach().clone()
    F.cross_entropy(p.model(PROBE), batch(99)[1]).backward()
    optimizer.step()  # at lr 0
    assert torch.equal(p.weights["embed"], before)


@pytest.mark.parametrize("applied", [True, False])
def test_an_update_at_other_lrs_than_the_schedules_is_reported(
    applied: bool, caplog: pytest.LogCaptureFixture
) -> None:
    p, optimizer = build()
    optimizer.load_state_dict(optimizer.state_dict())
    if applied:
        p.apply(optimizer)
    p.lr_prefactor = 0.025
    list(updates(p, optimizer, 2))
    warnings = [r.getMessage() for r in caplog.records if "other learning rates" in r.getMessage()]
    assert len(warnings) == (0 if applied else 1)


def test_another_models_optimizer_is_not_scheduled() -> None:
    p, _ = build()
    other = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(other.parameters(), lr=1.0)
    p.lr_prefactor = 0.0
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_an_optimizer_without_the_groups_is_refused() -> None:
    p, _ = build()
    with pytest.raises(ValueError, match=r"build it on \.param_groups"):
        p.step(PROBE, torch.optim.Adam(p.model.parameters()))


def test_a_group_that_the_user_has_added_is_left_alone() -> None:
    p = Parametrization(MLP())
    extra = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([*p.param_groups, {"params": [extra], "lr": 7.0}])
    p.capture_initial(PROBE)
    p.step(PROBE, optimizer)
    p.lr_prefactor = 1.0
    assert optimizer.param_groups[-1]["lr"] == 7.0


# One lr that is assigned to all groups


def train_with(
    p: Parametrization, optimizer: Optimizer, change: Callable[[int], None], updates: int = 3
) -> None:
    """Updates, each after ``change``, as in a loop that has a schedule of its own."""
    for i in range(updates):
        change(i)
        F.cross_entropy(p.model(PROBE), batch(99)[1]).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(PROBE, optimizer)


def warnings_of_one_lr(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in caplog.messages if "one learning rate for all param groups" in m]


def test_one_lr_assigned_to_all_groups_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    p, optimizer = build()

    def assign(i: int) -> None:
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - i / 3)

    train_with(p, optimizer, assign)
    (message,) = warnings_of_one_lr(caplog)
    assert "set p.lr_prefactor = lr before each step" in message


def test_one_lr_is_reported_without_measuring_as_well(caplog: pytest.LogCaptureFixture) -> None:
    p = Parametrization(MLP(), seed=0)
    optimizer = torch.optim.Adam(p.param_groups)
    p.apply(optimizer)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    F.cross_entropy(p.model(PROBE), batch(99)[1]).backward()
    optimizer.step()
    assert len(warnings_of_one_lr(caplog)) == 1


@pytest.mark.parametrize("per_group", [False, True])
def test_one_lr_of_a_scheduler_is_reported_once(
    per_group: bool, caplog: pytest.LogCaptureFixture
) -> None:
    p, optimizer = build()
    own = [0.01 * p.lr_factors()[group["name"]] for group in optimizer.param_groups]
    swa_lr = own if per_group else 0.01
    scheduler = torch.optim.swa_utils.SWALR(optimizer, swa_lr=swa_lr, anneal_epochs=2)
    train_with(p, optimizer, lambda i: scheduler.step() if i else None, updates=6)
    reports = [m for m in caplog.messages if "the scheduler has led all param groups to one" in m]
    assert len(reports) == (not per_group)


# Learning rates of an earlier solution that are assigned again


def warnings_of_an_earlier_solution(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in caplog.messages if "earlier solution" in m]


def first_lrs_times_a_schedule(optimizer: Optimizer) -> Callable[[int], None]:
    first = lrs(optimizer.param_groups)

    def assign(i: int) -> None:
        for group, lr in zip(optimizer.param_groups, first, strict=True):
            group["lr"] = lr * (1 - i / 5)

    return assign


def test_lrs_of_an_earlier_solution_are_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    p, optimizer = build()
    train_with(p, optimizer, first_lrs_times_a_schedule(optimizer), updates=4)
    (message,) = warnings_of_an_earlier_solution(caplog)
    assert "set p.lr_prefactor = lr before each step" in message
    assert not warnings_of_one_lr(caplog)


def test_lrs_that_are_assigned_without_a_new_solution_are_not_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    p, optimizer = build(solve_interval=100)
    train_with(p, optimizer, first_lrs_times_a_schedule(optimizer), updates=4)
    assert not warnings_of_an_earlier_solution(caplog)


@pytest.mark.parametrize(
    "how", ["lr_prefactor", "multiply", "zero", "at the base", "CosineAnnealingLR", "OneCycleLR"]
)
def test_what_keeps_the_factors_of_the_width_is_not_reported(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    p, optimizer = build(base=MLP() if how == "at the base" else None)
    schedulers = {
        "CosineAnnealingLR": lambda: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4),
        "OneCycleLR": lambda: torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=4),
    }
    scheduler = schedulers[how]() if how in schedulers else None

    def change(i: int) -> None:
        if how == "lr_prefactor":
            p.lr_prefactor = 0.05 / (i + 1)
        elif scheduler is not None and i:
            scheduler.step()
        for group in optimizer.param_groups:
            if how == "multiply":
                group["lr"] *= 0.5
            elif how == "zero":
                group["lr"] = 0.0
            elif how == "at the base":
                group["lr"] = 0.05 / (i + 1)

    train_with(p, optimizer, change)
    assert not warnings_of_one_lr(caplog)
    assert not warnings_of_an_earlier_solution(caplog)
