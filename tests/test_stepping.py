"""`Parametrization.step`: when it measures and solves, what it averages, refuses and schedules."""

import logging
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, MLP, ViT, batch
from torch import nn
from torch.optim import Optimizer

from maxp import Alignment, Parametrization, solve
from maxp.exponents import Exponents

PROBE = batch(99)[0]


def build(model: nn.Module | None = None, **arguments: Any) -> tuple[Parametrization, Optimizer]:
    p = Parametrization(model or MLP(), **{"lr_prefactor": 0.05, "seed": 0, **arguments})
    p.capture_initial(PROBE)
    return p, torch.optim.Adam(p.param_groups)


def updates(p: Parametrization, optimizer: Optimizer, steps: int) -> Iterator[int]:
    """Train; after each update and `step`, its number."""
    for step in range(1, steps + 1):
        x, y = batch(step)
        F.cross_entropy(p.model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(PROBE, optimizer)
        yield step


def lrs(groups: list[dict[str, Any]]) -> list[float]:
    return [group["lr"] for group in groups]


# When


@pytest.mark.parametrize(
    ("warmup_steps", "solve_interval", "due"),
    [
        (0, 1, [1, 2, 3, 4, 5, 6, 7]),
        (3, 1, [4, 5, 6, 7]),
        (0, 3, [3, 6]),
        (2, 2, [4, 6]),
        (1, 3, [4, 7]),
    ],
)
def test_it_measures_every_interval_once_warmup_is_over(
    monkeypatch: pytest.MonkeyPatch, warmup_steps: int, solve_interval: int, due: list[int]
) -> None:
    p, optimizer = build(warmup_steps=warmup_steps, solve_interval=solve_interval)
    calls: list[tuple[str, int]] = []

    def spy(name: str) -> None:
        called = getattr(p, name)

        def noted(*arguments: Any) -> None:
            calls.append((name, p.steps))
            called(*arguments)

        monkeypatch.setattr(p, name, noted)

    spy("measure")
    spy("solve")
    list(updates(p, optimizer, 7))
    assert calls == [(name, step) for step in due for name in ("measure", "solve")]


def test_until_then_c_and_lr_stay_those_of_the_preset() -> None:
    p, optimizer = build(warmup_steps=3)
    c, lr = dict(p.c), lrs(optimizer.param_groups)
    for step in updates(p, optimizer, 4):
        assert (p.c == c) == (step <= 3)
        assert (lrs(optimizer.param_groups) == lr) == (step <= 3)


def test_step_before_capture_initial_is_refused_even_in_warmup() -> None:
    p = Parametrization(MLP(), warmup_steps=5)
    with pytest.raises(RuntimeError, match="capture_initial"):
        p.step(PROBE, torch.optim.Adam(p.param_groups))
    with pytest.raises(RuntimeError, match="capture_initial"):
        p.measure()


# What


def test_after_a_step_c_is_the_programs_answer_to_what_was_measured() -> None:
    p, optimizer = build(alignment_bounds=None)
    list(updates(p, optimizer, 3))
    given = {
        name: Exponents(*ab, Alignment(*p.measured.get(name, (1.0, 0.5, 1.0))))  # type: ignore[arg-type]
        for name, ab in {
            "embed": (-0.5, 0.5),
            "layers.0": (0.0, 0.5),
            "layers.1": (0.0, 0.5),
            "readout": (0.5, 0.5),
        }.items()
    }
    expected = solve(p.graph, given)
    assert p.c == expected.c
    assert p.r == expected.r
    assert set(p.c.values()).isdisjoint({0.0, 1.0})


def test_the_optimizer_gets_the_prefactor_times_n_to_the_minus_c() -> None:
    p, optimizer = build()
    list(updates(p, optimizer, 2))
    for group in optimizer.param_groups:
        assert group["lr"] == pytest.approx(0.05 * 16 ** -p.c[group["name"]], rel=1e-12)


def test_training_lowers_the_loss_and_moves_c_off_the_presets_with_every_r_kept() -> None:
    x, y = batch(0, size=64)
    model = MLP(32)
    p = Parametrization(model, lr_prefactor=0.05, seed=0, sample_input=x)
    p.capture_initial(PROBE)
    optimizer = torch.optim.Adam(p.param_groups)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(PROBE, optimizer)
        losses.append(loss.item())
        assert min(p.r.values()) >= -1e-9
    assert losses[-1] < 0.2 * losses[0]
    for preset in ("full", "no"):
        fixed = Parametrization(MLP(32), alignment=preset).c
        assert all(abs(p.c[n] - fixed[n]) > 0.01 for n in ("layers.0", "layers.1", "readout"))
    assert not p.refused
    assert not p.infeasible


@pytest.mark.parametrize("optimizer_type", ["adam", "sgd"])
def test_sgd_and_adam_solve_their_own_programs(optimizer_type: Any) -> None:
    p, optimizer = build(optimizer_type=optimizer_type)
    list(updates(p, optimizer, 2))
    exponents = {
        name: Exponents(a, 0.5, p.alignment.get(name, Alignment(1.0, 0.5, 1.0)))
        for name, a in (("embed", -0.5), ("layers.0", 0.0), ("layers.1", 0.0), ("readout", 0.5))
    }
    assert p.c == solve(p.graph, exponents, optimizer_type).c


@pytest.mark.parametrize("key", ["layers.0", "0", "hidden"])
def test_a_site_with_an_alignment_override_is_never_measured(key: str) -> None:
    p, optimizer = build(alignment_overrides={key: (0.9, 0.45, 0.8)})
    for _ in updates(p, optimizer, 3):
        held = {"layers.0", "layers.1"} if key == "hidden" else {"layers.0"}
        assert set(p.measured) == {"layers.0", "layers.1", "readout"} - held
        assert {n for n, e in p.alignment.items() if e == (0.9, 0.45, 0.8)} == held


def test_scores_without_a_weight_are_measured_but_solved_with_only_by_a_flag() -> None:
    x = torch.randn(2, 4, FEATURES)
    results = {}
    for flag in (False, True):
        model = ViT(depth=1)
        p = Parametrization(model, lr_prefactor=0.05, seed=0, sample_input=x, measure_bilinear=flag)
        p.capture_initial(x)
        with torch.no_grad():
            for weight in p.weights.values():
                weight.mul_(1.5)
        results[flag] = (p.measure()["blocks.0.qk"], p.alignment["blocks.0.qk"])
    measured, given = results[True]
    assert measured[0] is not None
    assert given == measured
    assert results[False] == (measured, (0.5, 0.5, 0.5))


# Averages


@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_c_is_the_exponential_average_of_the_programs_answers(keep: float) -> None:
    p, optimizer = build(c_ema=keep)
    expected, seen = dict(p.c), set()
    for _ in updates(p, optimizer, 4):
        expected = {n: keep * expected[n] + (1 - keep) * p.targets[n] for n in expected}
        assert p.c == pytest.approx(expected, abs=1e-12)
        seen.add(p.targets["layers.0"])
    assert len(seen) == 4


@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_the_alignment_is_the_average_of_measurements_without_the_preset(keep: float) -> None:
    p, optimizer = build(alignment_ema=keep, alignment_bounds=None)
    average: dict[str, list[float]] = {}
    for _ in updates(p, optimizer, 4):
        for name, values in p.measured.items():
            new = [float(v) for v in values if v is not None]
            assert len(new) == 3
            old = average.get(name, new)
            average[name] = [keep * a + (1 - keep) * b for a, b in zip(old, new, strict=True)]
            assert p.alignment[name] == pytest.approx(average[name], abs=1e-12)


# What is refused and counted


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_exponent_that_is_not_finite_is_refused_counted_and_the_last_one_kept(
    bad: float, caplog: pytest.LogCaptureFixture
) -> None:
    p, optimizer = build()
    list(updates(p, optimizer, 2))
    alignment, c = p.alignment, dict(p.c)
    with torch.no_grad():
        p.weights["readout"][0, 0] = bad
    p.step(PROBE, optimizer)
    assert p.alignment["readout"].z0_dW == alignment["readout"].z0_dW
    assert p.alignment["readout"].dZ_dW == alignment["readout"].dZ_dW
    assert p.refused == {"readout": 2}
    assert "readout: refused a measured alignment" in caplog.text
    # The others, whose inputs are sound, are measured as before, from the same weights.
    assert p.alignment["layers.0"] == alignment["layers.0"]
    assert p.c == c
    assert all(map(math.isfinite, lrs(optimizer.param_groups)))


def test_an_infinite_exponent_is_refused_too() -> None:
    p = Parametrization(MLP(), seed=0)
    with torch.no_grad():
        p.weights["readout"].zero_()
        p.capture_initial(PROBE)
        p.weights["readout"].fill_(1e-30)  # its square is 0 in float32
    assert p.measure()["readout"][0] == math.inf
    assert p.refused == {"readout": 1}
    assert p.alignment["readout"] == (1.0, 0.5, 1.0)


def test_a_term_that_is_zero_is_counted_and_its_last_value_kept() -> None:
    p, optimizer = build()
    p.step(PROBE, optimizer)  # no update yet
    assert p.alignment == dict.fromkeys(("layers.0", "layers.1", "readout"), (1.0, 0.5, 1.0))
    assert p.zero_terms == {"layers.0": 3, "layers.1": 3, "readout": 3}
    assert p.measured["readout"] == (None, None, None)
    assert p.c == Parametrization(MLP()).c


def test_an_infeasible_program_keeps_c_is_counted_and_names_what_binds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # c = 1/2 is enough at align 1/2; what is measured in training is more coherent.
    p, optimizer = build(alignment="no", c_overrides={"layers.0": 0.5})
    c, lr = dict(p.c), lrs(optimizer.param_groups)
    with caplog.at_level(logging.WARNING, logger="maxp"):
        list(updates(p, optimizer, 2))
    assert p.measured["layers.0"][0] is not None
    assert p.measured["layers.0"][0] > 0.5
    assert p.infeasible == 2
    assert p.c == c
    assert lrs(optimizer.param_groups) == lr
    messages = [r.getMessage() for r in caplog.records]
    assert len(messages) == 2
    assert all("layers.0: a + c - align_z0_dW" in message for message in messages)
    # r tells the truth: this c does not keep the site's output stable.
    assert p.r["layers.0"] == pytest.approx(0.5 - p.measured["layers.0"][0])


def test_after_an_infeasible_program_a_feasible_one_is_followed_again() -> None:
    p, optimizer = build(alignment="no", c_overrides={"layers.0": 0.5})
    list(updates(p, optimizer, 1))
    p._exponents["layers.0"] = Exponents(0.0, 0.5, Alignment(0.4, 0.5, 0.4), 0.5)
    before = dict(p.c)
    p.solve()
    assert p.infeasible == 1
    assert p.c != before
