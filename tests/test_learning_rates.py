"""The lr that the optimizer really steps with: n^-c, under a schedule, through re-solving."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import DECAY, STEPS, WARMUP, Run
from torch.optim.lr_scheduler import LambdaLR

from maxp.factors import Factors
from train.method.learning_rates import SiteGroups

LR = 1e-2  # the default of --lr


def factor(step: int) -> float:
    """Warm-up, stable, decay: up to 1 at step WARMUP, then down over the last DECAY steps so that
    the step after the last one would be at 0."""
    return min(1.0, step / WARMUP, (STEPS + 1 - step) / DECAY)


M = 4
"""n / n_base of every site: the debug scale is four times as wide as its base."""


def test_the_optimizer_steps_with_lr_times_factor_times_n_to_the_minus_c(maxp_run: Run) -> None:
    assert len(maxp_run.lrs) == STEPS
    for step, (lrs, c) in enumerate(zip(maxp_run.lrs, maxp_run.c, strict=True), start=1):
        expected = {site: LR * factor(step) * M ** -c[site] for site in c}
        expected["rest"] = LR * factor(step)
        assert lrs == pytest.approx(expected, rel=1e-12), f"step {step}"


def test_the_run_solved_again_in_warm_up_in_the_stable_part_and_in_decay(maxp_run: Run) -> None:
    # What the test above rests on: measurements at 4, 7, 10, ... change c for the step after.
    changed = {
        step + 1
        for step, (before, after) in enumerate(zip(maxp_run.c, maxp_run.c[1:], strict=False), 1)
        if before != after
    }
    assert changed == set(range(5, STEPS + 1, 3))
    assert min(changed) <= WARMUP < 14 < STEPS + 2 - DECAY < max(changed)


def test_a_static_method_keeps_its_exponents_under_the_same_schedule(mup_no_run: Run) -> None:
    for step, lrs in enumerate(mup_no_run.lrs, start=1):
        c = {site: {"tok_embeddings": 0.5, "lm_head": 0.0}.get(site, 0.5) for site in lrs}
        expected = {site: LR * factor(step) * M ** -c[site] for site in c}
        assert lrs == pytest.approx({**expected, "rest": LR * factor(step)}, rel=1e-12)


def test_every_parameter_is_in_the_group_of_its_site(maxp_run: Run) -> None:
    (optimizer,) = maxp_run.trainer.optimizers
    *sites, rest = optimizer.param_groups
    for group in sites:
        (parameter,) = group["params"]
        assert parameter is maxp_run.trainer.parametrization.weights[group["name"]]
        assert group["param_names"] == [f"{group['name']}.weight"]
    assert len(sites) == 2 * 7 + 2
    norms = {f"layers.{i}.{name}.weight" for i in (0, 1) for name in ("attention_norm", "ffn_norm")}
    assert (rest["name"], set(rest["param_names"])) == ("rest", norms | {"norm.weight"})


# The groups by themselves


def by_name(lrs: dict[str, float]) -> dict[str, Factors]:
    """Factors of which only those on the lr are not 1."""
    return {name: Factors(lr, 1.0, 1.0) for name, lr in lrs.items()}


class Toy:
    """Two sites and a gain under AdamW, halving every step."""

    def __init__(self, independent_decay: float = 0.0, **settings: Any) -> None:
        self.parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("a", "gain", "b")}
        group = {"params": list(self.parameters.values()), "param_names": list(self.parameters)}
        self.optimizer = torch.optim.AdamW([group], **{"lr": 0.1, "weight_decay": 0.3, **settings})
        weights = {"site a": self.parameters["a"], "site b": self.parameters["b"]}
        self.groups = SiteGroups(
            [self.optimizer], weights, rest="rest", independent_decay=independent_decay
        )
        self.groups.set_factors(by_name({"site a": 0.5, "site b": 0.25, "rest": 1.0}))
        self.scheduler = LambdaLR(self.optimizer, lambda step: 0.5**step)

    def step(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = torch.ones(2)
        self.optimizer.step()
        self.scheduler.step()

    @property
    def decays(self) -> dict[str, float]:
        """By how much each group's parameters shrink in the next step."""
        return {g["name"]: g["lr"] * g["weight_decay"] for g in self.optimizer.param_groups}


def test_a_group_is_split_one_a_site_and_keeps_its_settings() -> None:
    toy = Toy(betas=(0.8, 0.9))
    groups = toy.optimizer.param_groups
    assert [(g["name"], g["param_names"]) for g in groups] == [
        ("site a", ["a"]),
        ("site b", ["b"]),
        ("rest", ["gain"]),
    ]
    assert {(g["betas"], g["weight_decay"]) for g in groups} == {((0.8, 0.9), 0.3)}
    assert toy.groups.lrs() == {"site a": 0.05, "site b": 0.025, "rest": 0.1}


def test_new_factors_take_effect_at_once_and_stay_through_the_schedule() -> None:
    toy = Toy()
    toy.step()
    toy.groups.set_factors(by_name({"site a": 2.0, "site b": 0.25, "rest": 1.0}), [toy.scheduler])
    assert toy.groups.lrs() == {"site a": 0.1, "site b": 0.0125, "rest": 0.05}
    toy.step()
    assert toy.groups.lrs() == {"site a": 0.05, "site b": 0.00625, "rest": 0.025}


def test_new_factors_reach_an_optimizer_that_has_loaded_a_state() -> None:
    toy = Toy()
    toy.step()
    toy.optimizer.load_state_dict(toy.optimizer.state_dict())  # replaces the groups
    toy.groups.set_factors(by_name({"site a": 2.0, "site b": 0.25, "rest": 1.0}), [toy.scheduler])
    assert {g["name"]: g["lr"] for g in toy.optimizer.param_groups}["site a"] == 0.1


def test_the_scheduler_reports_the_lr_that_is_used() -> None:
    toy = Toy()
    toy.step()
    toy.groups.set_factors(by_name({"site a": 2.0, "site b": 0.25, "rest": 1.0}), [toy.scheduler])
    assert toy.scheduler.get_last_lr() == [0.1, 0.0125, 0.05]


@pytest.mark.filterwarnings("error")
def test_setting_factors_between_steps_gives_no_warning() -> None:
    toy = Toy()
    toy.step()
    ones = by_name(dict.fromkeys(("site a", "site b", "rest"), 1.0))
    toy.groups.set_factors(ones, [toy.scheduler])


def test_adamws_own_decay_is_multiplied_by_each_sites_lr() -> None:
    assert Toy().decays == pytest.approx({"site a": 0.015, "site b": 0.0075, "rest": 0.03})


def test_an_independent_decay_is_the_same_for_every_site_and_follows_the_schedule() -> None:
    toy = Toy(independent_decay=0.01)
    assert toy.decays == pytest.approx(dict.fromkeys(("site a", "site b", "rest"), 0.01))
    toy.step()
    toy.groups.set_factors(by_name({"site a": 2.0, "site b": 1.0, "rest": 1.0}), [toy.scheduler])
    assert toy.decays == pytest.approx(dict.fromkeys(("site a", "site b", "rest"), 0.005))


def test_an_independent_decay_leaves_a_group_without_decay_alone() -> None:
    site, gain = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    decayed = {"params": [site], "param_names": ["site"], "weight_decay": 0.3}
    plain = {"params": [gain], "param_names": ["gain"], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([decayed, plain], lr=0.1)
    groups = SiteGroups([optimizer], {"site": site}, rest="rest", independent_decay=0.01)
    for _ in range(2):  # the second time on what the first has set
        groups.set_factors(by_name({"site": 0.5, "rest": 1.0}))
    decays = {g["name"]: g["lr"] * g["weight_decay"] for g in optimizer.param_groups}
    assert decays == pytest.approx({"site": 0.01, "rest": 0.0})


def test_what_follows_is_multiplied_by_its_factor_and_the_rest_kept() -> None:
    site, gain = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    group = {"params": [site, gain], "param_names": ["site", "gain"]}
    optimizer = torch.optim.AdamW([group], lr=0.1, weight_decay=0.3, eps=1e-8)
    groups = SiteGroups([optimizer], {"site": site}, rest="rest", follow=["weight_decay"])
    for lr in (0.5, 0.25):  # the second time on what the first has set
        groups.set_factors({"site": Factors(lr, 1 / lr, 0.1), "rest": Factors(1.0, 0.0, 1.0)})
    settings = {g["name"]: (g["lr"], g["weight_decay"], g["eps"]) for g in optimizer.param_groups}
    assert settings == {"site": (0.025, 1.2, 1e-8), "rest": (0.1, 0.0, 1e-8)}
