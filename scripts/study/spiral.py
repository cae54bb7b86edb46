"""The two-arm spiral, and how a model is trained on it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from maxp import Parametrization
from scripts.study.mlp import MLP

POINTS = 1024
# The two coordinates and a 1, since without biases a ReLU network is linear along every ray.
INPUTS = 3
OUTPUTS = 1
# Enough, and no noise: of an easy task, or one with a floor, any learning rate in a wide range is
# best.
_TURNS = 2.0


def spiral() -> tuple[torch.Tensor, torch.Tensor]:
    """All points: inputs (points, 3) with entries of order 1, and arms (points, 1), 0 or 1."""
    generator = torch.Generator().manual_seed(7)
    along = torch.rand(POINTS, generator=generator).sqrt()
    arm = (torch.arange(POINTS) % 2).float()
    angle = 2 * math.pi * _TURNS * along + math.pi * arm
    xy = 2 * along[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return torch.cat([xy, torch.ones(POINTS, 1)], 1), arm[:, None]


@dataclass(frozen=True)
class Outcome:
    """What training came to.

    Attributes:
        mean, late: mean loss of the batches, of all steps and of the last fifth. The loss of one
            moment says little.
        loss, accuracy: over all points at the end. A loss that is not finite stays.
    """

    mean: float
    late: float
    loss: float
    accuracy: float


def train(
    model: MLP,
    p: Parametrization,
    steps: int,
    batch: int,
    seed: int,
    *,
    measured: bool = False,
    before: Callable[[int, float], None] | None = None,
    after: Callable[[int], None] | None = None,
) -> Outcome:
    """Adam at a constant learning rate, on batches drawn with a seed.

    Args:
        measured: follow the alignment (maxP).
        before, after: called at each step with its number (and the batch's loss), before and after
            the optimizer has stepped.
    """
    x, y = spiral()
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(p.param_groups, fused=True)
    if measured:
        p.capture_initial(x)
    losses: list[torch.Tensor] = []
    for step in range(steps):
        index = torch.randint(POINTS, (batch,), generator=draws)
        loss = F.binary_cross_entropy_with_logits(model(x[index]), y[index])
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        if before is not None:
            before(step, float(loss.detach()))
        optimizer.step()
        if measured:
            p.step(None, optimizer)
        if after is not None:
            after(step)
    with torch.no_grad():
        out = model(x)
        final = float(F.binary_cross_entropy_with_logits(out, y))
        accuracy = float(((out > 0) == (y > 0)).float().mean())
        seen = torch.stack(losses)
        late = seen[int(0.8 * steps) :]
        return Outcome(float(seen.mean()), float(late.mean()), final, accuracy)
