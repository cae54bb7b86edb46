"""What the check calls wrong in a model in which one thing was changed, and what it does not."""

import math

import pytest
import torch
from diagnose_cases import (
    HIDDEN_SITES,
    MLP,
    SITES,
    Known,
    Model,
    broken,
    check,
    check_known,
    mup,
    standard_at_one_lr,
)
from torch import nn


def test_a_large_step_at_one_lr_grows_by_one_power_more_with_every_layer() -> None:
    # Each layer's update grows as n, and multiplies with the one before it: n, n^2, n^3, n^4.
    _, affected, stats = check(standard_at_one_lr(0.1), steps=1, seeds=16)
    for power, name in enumerate(SITES):
        change = stats[name].change
        assert change.derived == pytest.approx(power)
        assert abs(change.mean - power) <= max(0.05, 3 * change.error), name
    assert affected == SITES[1:]


def test_a_hidden_lr_that_does_not_fall_with_width_is_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        return model, [
            {**g, "lr": g["lr"] * (width if g["name"] in HIDDEN_SITES else 1)} for g in groups
        ]

    _, affected, stats = check(make, steps=1)
    assert set(HIDDEN_SITES) <= set(affected)
    assert "embedding" not in affected
    assert stats["hidden.0"].change.derived == pytest.approx(1.0)


def test_an_lr_that_falls_too_fast_is_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        return model, [
            {**g, "lr": g["lr"] / (width**0.5 if g["name"] == "embedding" else 1)} for g in groups
        ]

    _, affected, stats = check(make)
    assert "embedding" in affected
    assert stats["embedding"].change.derived == pytest.approx(-0.5)
    assert stats["embedding"].text.startswith("falls n^-0.")


def test_a_readout_without_its_multiplier_is_affected_and_it_alone() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        assert isinstance(model, MLP)
        model.readout.set_a(0.0)
        return model, groups

    _, affected, stats = check(make, seeds=16)
    assert affected == ["readout"]
    assert stats["readout"].init.derived == pytest.approx(0.0)
    assert stats["readout"].change.derived == pytest.approx(0.5)
    assert abs(stats["readout"].change.mean - 0.5) <= 0.15


def test_a_hidden_weight_that_is_drawn_too_large_is_affected_at_init() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        with torch.no_grad():
            model.get_parameter("hidden.0.op.weight").mul_(width**0.5)
        return model, groups

    _, affected, stats = check(make)
    assert set(HIDDEN_SITES) <= set(affected)
    assert stats["hidden.0"].init.derived == pytest.approx(0.5)
    assert stats["hidden.0"].init.near(0.5)
    assert stats["hidden.0"].text.startswith("init GROWS n^0.")


@pytest.mark.parametrize("frozen", [[], [{"lr": 0.0}]], ids=["in no group", "at an lr of 0"])
def test_a_frozen_site_is_zero_as_derived_and_not_affected(frozen: list[dict[str, float]]) -> None:
    def make(width: int) -> Model:
        model = Known(width)
        other = nn.Parameter(torch.zeros(1))
        groups = [{**group, "params": list(model.parameters())} for group in frozen]
        return model, [*groups, {"params": [other], "lr": 1.0}]

    change = check_known(make).change
    assert change.mean == change.derived == -math.inf
    assert change.near(change.wanted)


def test_a_readout_that_starts_at_zero_is_not_affected() -> None:
    def make(width: int) -> Model:
        model, groups = mup(width)
        with torch.no_grad():
            model.get_parameter("readout.op.weight").zero_()
        return model, groups

    _, affected, stats = check(make)
    assert affected == []
    assert stats["readout"].init.mean == stats["readout"].init.derived == -math.inf
    assert stats["readout"].text.startswith("init zero, ")


def test_what_is_not_finite_is_affected() -> None:
    stats = broken()
    assert stats.affected
    assert "NOT FINITE" in stats.text
