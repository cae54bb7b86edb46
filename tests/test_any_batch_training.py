"""Measuring on the activations of training: those of its last batch, kept by its forward pass."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from any_batch_cases import backward, batch, build, by_twin, inputs
from models import CLASSES
from test_any_batch import assert_exact
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.utils.checkpoint import checkpoint

from maxp import Parametrization


@pytest.mark.parametrize("rerun", [None, "reentrant", "not reentrant", "wrapper", "whole"])
def test_activations_of_training_are_those_of_its_last_batch(rerun: str | None) -> None:
    model, p = build(rerun=rerun, sample_size=100, use_training_activations=True)
    model.drop.p = 0.0
    model.statistics.eval()  # so that training and evaluation compute the same
    if rerun in ("wrapper", "whole"):
        model.rerun = None
    if rerun == "wrapper":
        model.second, model.first = map(checkpoint_wrapper, (model.second, model.first))
        p = Parametrization(
            model, lr_prefactor=0.05, seed=3, sample_size=100, use_training_activations=True
        )
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in range(1, 4):
        for part in range(2):  # gradients are accumulated
            x = batch(10 * step + part)
            before = inputs(model, x)
            h = checkpoint(model, x, use_reentrant=False) if rerun == "whole" else model(x)
            F.cross_entropy(h.flatten(0, 1), x.flatten() % CLASSES).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(None, optimizer)
    # The inputs are those of before the update, the weights those of after it.
    assert_exact(p.measured, by_twin(model, twin, x, before))


def test_a_forward_pass_of_training_that_fails_is_not_measured_on(
    recwarn: pytest.WarningsRecorder,
) -> None:
    measured = []
    for fails in (False, True):
        model, p = build(use_training_activations=True)
        p.capture_initial(None)
        optimizer = torch.optim.Adam(p.param_groups)
        backward(model, batch(1))
        optimizer.step()
        backward(model, batch(2))
        if fails:
            hook = model.second.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(batch(3))
            hook.remove()
        p.step(None, optimizer)
        measured.append(p.measured)
    assert measured[0] == measured[1]
    assert not recwarn.list


def test_activations_of_training_follow_no_later_write_into_the_batch() -> None:
    measured = []
    for write in (False, True):
        model, p = build(use_training_activations=True)
        p.capture_initial(None)
        optimizer, x = torch.optim.Adam(p.param_groups), batch(1)
        for _ in range(2):
            backward(model, x)
            optimizer.step()
        if write:
            x.zero_()
        p.step(None, optimizer)
        measured.append(p.measured)
    assert measured[0] == measured[1]
