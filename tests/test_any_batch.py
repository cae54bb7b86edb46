"""`Parametrization.step` on any batch, against a second model that kept its initial weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from any_batch_cases import RESAMPLE, backward, batch, build, by_twin, train
from models import linear
from test_alignment import by_definition
from torch import nn

from maxp import Parametrization


def assert_exact(measured: Any, expected: Any) -> None:
    assert measured.keys() == expected.keys()
    for name, values in expected.items():
        assert None not in values
        assert measured[name] == pytest.approx(values, abs=1e-6), name


def snapshot(model: nn.Module) -> list[Any]:
    """All that measuring must leave alone."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *(t.detach().clone() for t in tensors),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        torch.get_rng_state(),
        torch.tensor([m.training for m in model.modules()]),
        torch.tensor([id(t) for t in tensors]),
        torch.tensor([t.data_ptr() for t in tensors]),
    ]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    after = snapshot(model)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


# Exact


@RESAMPLE
@pytest.mark.parametrize("probe", [None, 50], ids=["no probe", "a probe"])
def test_a_batch_is_measured_against_a_model_that_kept_its_initial_weights(
    resample_w0: bool, probe: int | None
) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None if probe is None else batch(probe))
    twin = copy.deepcopy(model)
    train(model, p, range(1, 4))
    for x in (batch(3), batch(77)[:2]):
        assert_exact(p.measure(x), by_twin(model, twin, x))


@RESAMPLE
def test_gradient_accumulation_is_measured_on_the_batch_that_is_passed(resample_w0: bool) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in range(1, 4):
        for part in range(2):
            backward(model, batch(10 * step + part))
        optimizer.step()
        optimizer.zero_grad()
        p.step(batch(10 * step + 1), optimizer)
    assert_exact(p.measured, by_twin(model, twin, batch(31)))


def test_a_compiled_model_is_measured_with_its_initial_weights() -> None:
    model, _ = build()
    compiled = torch.compile(model, backend="eager")
    p = Parametrization(compiled, lr_prefactor=0.05, seed=3, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(compiled, p, range(1, 4))
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_several_batches_in_turn_do_not_wear_the_initial_weights_out() -> None:
    model, p = build(sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 9))
    assert_exact(p.measure(batch(5)), by_twin(model, twin, batch(5)))


@RESAMPLE
def test_weights_that_are_tied_or_frozen_or_not_of_sites_are_initial_too(resample_w0: bool) -> None:
    model, p = build(
        resample_w0=resample_w0, sample_size=100, alignment_overrides={"second": (1, 0.5, 1)}
    )
    model.again = model.plain
    model.view = nn.Parameter(model.plain.weight.detach(), requires_grad=False)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    with torch.no_grad():
        model.frozen.mul_(2)
    expected = by_twin(model, twin, batch(9))
    del expected["second"]
    before = snapshot(model)
    assert_exact(p.measure(batch(9)), expected)
    assert_untouched(model, before)


def test_an_embedding_that_was_not_drawn_is_kept_although_w0_is_drawn_again() -> None:
    model, p = build(resample_w0=True, sample_size=100)
    with torch.no_grad():
        model.embed.weight[0] = 0.0
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_the_probe_is_still_measured_on_if_no_batch_is_passed() -> None:
    probe, histories = batch(50), []
    for passed in (None, probe, probe.clone()):
        model, p = build()
        p.capture_initial(probe)
        optimizer = torch.optim.Adam(p.param_groups)
        calls: list[None] = []
        backward(model, batch(1))
        optimizer.step()
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        p.step(passed, optimizer)
        assert len(calls) == 1  # its initial activations are known
        histories.append((p.measured, p.c))
    assert histories[0] == histories[1] == histories[2]


class Gated(nn.Module):
    """Its second site reads only the rows that its first one lets pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.rest = linear(8, 8), linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(x[self.gate(x)[:, 0] > 0])


def test_a_site_that_reads_other_tokens_than_before_is_measured_at_those_of_both() -> None:
    model = Gated()
    p = Parametrization(model, seed=0)
    p.capture_initial(None)
    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(p.param_groups)
    w0 = model.rest.weight.detach().clone()
    with torch.no_grad():
        before = x[model.gate(x)[:, 0] > 0]
        model.gate.weight[0] = 1.0  # now all rows pass
        model.rest.weight.add_(torch.rand(8, 8), alpha=0.1)
    assert 0 < len(before) < 20
    p.step(x, optimizer)
    w = model.rest.weight.detach()
    assert p.measured["rest"] == pytest.approx(by_definition(before, w0, before, w, 8), abs=1e-5)


# Untouched


def draw_and_write(model: nn.Module) -> None:
    torch.rand(3)
    model.written.add_(1)


@RESAMPLE
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_touched_even_if_the_pass_raises(resample_w0: bool, fails: bool) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    model.norm.eval()  # a layer that the user has frozen
    backward(model, batch(8))
    # A layer that draws in evaluation too, and writes a buffer.
    noisy = model.statistics.register_forward_hook(lambda *_: draw_and_write(model))
    hook = model.readout.register_forward_pre_hook(lambda *_: 1 / 0) if fails else None
    before = snapshot(model)
    if hook:
        with pytest.raises(ZeroDivisionError):
            p.measure(batch(9))
        assert_untouched(model, before)
        hook.remove()
    p.measure(batch(9))
    assert_untouched(model, before)
    noisy.remove()
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_a_graph_that_awaits_its_backward_pass_is_left_whole() -> None:
    model, p = build()
    p.capture_initial(None)
    loss = model(batch(1)).square().sum()
    p.measure(batch(2))
    loss.backward()
