"""`Parametrization.lr_prefactor`: a schedule, and how it reaches the optimizer's groups."""

import math

import pytest
import torch
import torch.nn.functional as F
from models import MLP, batch
from test_stepping import PROBE, build, lrs, updates
from torch import nn

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
