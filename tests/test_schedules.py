"""Schedulers of torch compose with n^-c: the optimizer steps with the product of the two."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from models import MLP, batch
from torch.optim import Optimizer, lr_scheduler

from maxp import Parametrization

STEPS = 12
X, Y = batch(0)


def one_cycle(optimizer: Optimizer) -> Any:
    peaks = [group["lr"] for group in optimizer.param_groups]
    return lr_scheduler.OneCycleLR(optimizer, max_lr=peaks, total_steps=STEPS + 2)


def sequential(optimizer: Optimizer) -> Any:
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4),
        lr_scheduler.CosineAnnealingLR(optimizer, STEPS - 4),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[4])


def plateau(optimizer: Optimizer) -> Any:
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    step, losses = scheduler.step, iter([3.0] + 4 * [2.0] + 7 * [1.0])
    scheduler.step = lambda: step(next(losses))  # type: ignore[assignment, method-assign]
    return scheduler


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: min(1.0, (t + 1) / 3) * 0.9**t),
    "lambda from zero": lambda o: lr_scheduler.LambdaLR(o, lambda t: t / STEPS),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS),
    "one cycle": one_cycle,
    "sequential": sequential,
    "plateau": plateau,
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 4),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.8),
}


def factors(make: Callable[[Optimizer], Any]) -> list[float]:
    """The schedule's factor at each step, on a group of lr 1 that nobody else changes."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler, seen = make(optimizer), []
    for _ in range(STEPS):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


class Run:
    """An MLP in training; c of its sites changes at each step by hand."""

    def __init__(self, make: Callable[[Optimizer], Any]) -> None:
        torch.manual_seed(0)
        self.model = MLP()
        self.p = Parametrization(self.model, lr_prefactor=0.01)
        self.optimizer = torch.optim.AdamW(self.p.param_groups)
        self.scheduler = make(self.optimizer)
        self.p.capture_initial(X)
        self.wanted: list[dict[str, float]] = []

    def step(self, first: str, factor: float) -> None:
        self.optimizer.zero_grad()
        torch.nn.functional.cross_entropy(self.model(X), Y).backward()
        self.wanted.append({name: factor * self.p.lrs()[name] for name in self.p.weights})
        before = [q.detach().clone() for g in self.optimizer.param_groups for q in g["params"]]
        self.optimizer.step()
        after = [q.detach() for g in self.optimizer.param_groups for q in g["params"]]
        self.moved = [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]
        order = [self.scheduler.step, lambda: self.p.step(X, self.optimizer)]
        for action in order if first == "scheduler" else reversed(order):
            action()


@pytest.mark.parametrize("first", ["scheduler", "maxp"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_the_optimizer_steps_with_the_product_of_schedule_and_exponents(
    kind: str, first: str
) -> None:
    run = Run(SCHEDULERS[kind])
    # After the library's own hook: what the step is about to use.
    run.p.apply(run.optimizer)
    used: list[dict[str, float]] = []
    run.optimizer.register_step_pre_hook(
        lambda o, *_: used.append({g["name"]: float(g["lr"]) for g in o.param_groups})
    )
    schedule = factors(SCHEDULERS[kind])
    for factor in schedule:
        run.step(first, factor)
    assert len({tuple(sorted(w.items())) for w in run.wanted}) == STEPS
    for t, (mine, wanted) in enumerate(zip(used, run.wanted, strict=True)):
        assert mine == pytest.approx(wanted, rel=1e-9, abs=1e-15), (t, kind)
    c = [run.p.c[name] for name in run.p.weights]
    assert c != pytest.approx([0.5, 1, 1, 0.5])


def test_after_the_schedulers_step_the_groups_show_the_product() -> None:
    run = Run(SCHEDULERS["cosine"])
    run.p.apply(run.optimizer)
    schedule = factors(SCHEDULERS["cosine"])
    for t, factor in enumerate(schedule[:-1]):
        run.step("scheduler", factor)
        shown = {g["name"]: g["lr"] for g in run.optimizer.param_groups}
        wanted = {name: schedule[t + 1] * run.p.lrs()[name] for name in run.p.weights}
        assert shown == pytest.approx(wanted)


def test_one_lr_for_all_groups_replaces_lr_prefactor() -> None:
    run = Run(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=STEPS))
    run.p.apply(run.optimizer)
    used: list[dict[str, float]] = []
    run.optimizer.register_step_pre_hook(
        lambda o, *_: used.append({g["name"]: float(g["lr"]) for g in o.param_groups})
    )
    schedule = factors(lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.5, total_steps=STEPS))
    for factor in schedule[:-1]:
        run.step("scheduler", factor / 0.01)
    for mine, wanted in zip(used, run.wanted, strict=True):
        assert mine == pytest.approx(wanted, rel=1e-9)


def test_a_factor_that_is_set_by_hand_is_kept() -> None:
    run = Run(lambda o: lr_scheduler.ReduceLROnPlateau(o))
    run.p.step(X, run.optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] *= 0.25
    run.p.step(X, run.optimizer)
    shown = {g["name"]: g["lr"] for g in run.optimizer.param_groups}
    assert shown == pytest.approx({name: 0.25 * run.p.lrs()[name] for name in run.p.weights})


@pytest.mark.parametrize("first", ["scheduler", "maxp"])
def test_a_resumed_run_follows_the_same_schedule(first: str) -> None:
    schedule, make = factors(SCHEDULERS["cosine"]), SCHEDULERS["cosine"]
    run = Run(make)
    for factor in schedule[:5]:
        run.step(first, factor)
    again = Run(make)
    again.model.load_state_dict(run.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    again.scheduler.load_state_dict(run.scheduler.state_dict())
    again.p.load_state_dict(run.p.state_dict())
    again.p.apply(again.optimizer)
    for factor in schedule[5:]:
        for each in (run, again):
            each.step(first, factor)
        assert again.moved == run.moved
        assert again.p.c == run.p.c


def test_a_pickled_optimizer_keeps_its_schedule() -> None:
    run = Run(SCHEDULERS["cosine"])
    run.step("maxp", 1.0)
    groups = pickle.loads(pickle.dumps(run.optimizer)).param_groups
    assert [g["lr"] for g in groups] == [g["lr"] for g in run.optimizer.param_groups]


def halved_by_hand(optimizer: Optimizer) -> Callable[[], None]:
    def halve() -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5

    return halve


def halved_on_plateau(optimizer: Optimizer) -> Callable[[], None]:
    scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler.step(0.0)
    return lambda: scheduler.step(1.0)


HALVED: dict[str, Callable[[Optimizer], Callable[[], None]]] = {
    "by hand": halved_by_hand,
    "on a plateau": halved_on_plateau,
    "by a scheduler that multiplies": lambda o: lr_scheduler.StepLR(o, 1, 0.5).step,
    "by one that computes": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch).step,
}


@pytest.mark.parametrize("how", HALVED)
def test_a_schedule_of_epochs_goes_on_from_a_warm_up_of_batches(how: str) -> None:
    """It finds the product, which the warm-up has made `Parametrization.step` show."""
    run = Run(lambda o: lr_scheduler.LinearLR(o, 0.5, total_iters=4))
    run.p.apply(run.optimizer)
    used: list[dict[str, float]] = []
    run.optimizer.register_step_pre_hook(
        lambda o, *_: used.append({g["name"]: float(g["lr"]) for g in o.param_groups})
    )
    for factor in (0.5, 0.625, 0.75, 0.875):
        run.step("scheduler", factor)
    halve, run.scheduler.step = HALVED[how](run.optimizer), lambda: None
    for epoch in range(4):
        run.step("scheduler", 0.5**epoch)
        assert used[-1] == pytest.approx(run.wanted[-1], rel=1e-9), epoch
        halve()
