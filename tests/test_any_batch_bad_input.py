"""Batches that cannot be measured on, and what the error says."""

from __future__ import annotations

import pytest
import torch
from any_batch_cases import batch, build
from models import FEATURES, MLP, linear
from torch import nn

from maxp import Parametrization


def test_without_a_probe_a_batch_must_be_passed() -> None:
    _, p = build()
    p.capture_initial(None)
    with pytest.raises(RuntimeError, match=r"no fixed probe.*pass a batch"):
        p.step(None, torch.optim.Adam(p.param_groups))


def test_an_empty_batch_is_refused() -> None:
    _, p = build()
    p.capture_initial(None)
    with pytest.raises(ValueError, match="x is empty"):
        p.step(batch(1)[:0], torch.optim.Adam(p.param_groups))


@pytest.mark.parametrize("where", ["batch", "probe"])
def test_a_batch_with_nan_is_refused(where: str) -> None:
    p = Parametrization(MLP())
    x = torch.randn(4, FEATURES)
    x[1, 2] = torch.nan
    p.capture_initial(None)
    optimizer = torch.optim.Adam(p.param_groups)
    use = p.capture_initial if where == "probe" else lambda x: p.step(x, optimizer)
    with pytest.raises(ValueError, match="x contains NaN"):
        use(x)


def test_an_input_without_a_dimension_of_tokens_is_refused() -> None:
    model = nn.Sequential(linear(8, 8))
    model[0].op.forward = lambda x: x  # type: ignore[method-assign]
    p = Parametrization(model)
    with pytest.raises(ValueError, match="0: its input has no dimension"):
        p.capture_initial(torch.tensor(1.0))
