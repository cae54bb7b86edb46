"""Ways of keeping W0 and of solving that change nothing in what is measured and solved."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import MLP, VOCABULARY, Llama, batch

from maxp import Parametrization


def trajectory(steps: int = 4, **arguments: Any) -> list[Any]:
    tokens = torch.randint(VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(1))
    model = Llama(depth=1)
    p = Parametrization(model, lr_prefactor=0.05, seed=3, sample_input=tokens, **arguments)
    p.capture_initial(tokens)
    optimizer = torch.optim.Adam(p.param_groups)
    outcomes = []
    for _ in range(steps):
        logits = model(tokens[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(None, optimizer)
        outcomes.append((p.measured, p.c, [w.detach().clone() for w in p.weights.values()]))
    return outcomes


def test_resampled_initial_weights_give_the_same_exponents_as_stored_ones_exactly() -> None:
    for one, other in zip(trajectory(), trajectory(resample_w0=True), strict=True):
        assert one[0] == other[0]
        assert one[1] == other[1]
        assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))
        assert all(value is not None for value in one[0]["blocks.0.w2"])


def test_a_warm_start_gives_the_same_c() -> None:
    for one, other in zip(trajectory(), trajectory(warm_start=True), strict=True):
        assert one[1] == other[1]


def test_resampling_refuses_weights_that_it_did_not_draw() -> None:
    p = Parametrization(MLP(), resample_w0=True)
    with torch.no_grad():
        p.weights["layers.1"][0, 0] += 1
    with pytest.raises(
        ValueError, match=r"layers\.1: resample_w0 needs the weights as they were drawn"
    ):
        p.capture_initial(batch(0)[0])
