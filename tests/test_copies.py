"""Copies of a `Parametrization`, and the optimizers that it knows."""

import copy
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from plain_models import GPT, tokens
from torch import nn

from maxp import Parametrization


def pickled(p: Parametrization) -> Parametrization:
    return pickle.loads(pickle.dumps(p))


def train(p: Parametrization, steps: int, *, first: bool = True) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(p.param_groups)
    if first:
        p.capture_initial(tokens())
    for seed in range(steps):
        optimizer.zero_grad()
        logits = p.model(tokens(seed))
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens(seed).flatten()).backward()
        optimizer.step()
        p.step(tokens(seed), optimizer)
    return optimizer


@pytest.mark.parametrize("from_training", [False, True])
@pytest.mark.parametrize("through", [copy.deepcopy, pickled])
def test_a_copy_continues_as_the_original_does(
    through: Callable[[Any], Any], from_training: bool
) -> None:
    torch.manual_seed(0)
    p = Parametrization(
        GPT(64, 1), base=GPT(16, 1), sample_input=tokens(), lr_prefactor=1e-2,
        use_training_activations=from_training,
    )  # fmt: skip
    train(p, 2)
    again = through(p)
    assert again.model is not p.model
    assert again.weights["head"] is again.model.head.weight
    for each in (p, again):
        train(each, 2, first=False)
    assert again.c == p.c
    assert again.measured == p.measured
    torch.testing.assert_close(again.model.state_dict(), p.model.state_dict(), rtol=0, atol=0)


def test_a_copy_changes_nothing_of_the_original() -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1), lr_prefactor=1e-2)
    train(p, 1)
    c, weights = dict(p.c), copy.deepcopy(p.model.state_dict())
    train(copy.deepcopy(p), 2, first=False)
    assert p.c == c
    torch.testing.assert_close(p.model.state_dict(), weights, rtol=0, atol=0)


class Lion(torch.optim.Adam):
    pass


class Unknown(torch.optim.Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pass


@pytest.mark.parametrize(
    ("build", "optimizer_type", "message"),
    [
        (torch.optim.AdamW, "adam", None),
        (torch.optim.Adafactor, "adam", None),
        (Lion, "adam", None),
        (torch.optim.SGD, "sgd", None),
        (torch.optim.SGD, "adam", "SGD is an optimizer of type 'sgd': the learning rates assume"),
        (torch.optim.AdamW, "sgd", "an update that grows in proportion to the gradient's scale"),
        (Unknown, "adam", "Unknown is not known: the learning rates assume optimizer_type='adam'"),
    ],
)
def test_an_optimizer_that_is_not_known_is_warned_of_once(
    build: Any, optimizer_type: Any, message: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1), optimizer_type=optimizer_type)
    optimizer = build(p.param_groups)
    with caplog.at_level(logging.WARNING):
        p.apply(optimizer)
        p.apply(optimizer)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (message is not None)
    assert all(message in text for text in messages if message)
