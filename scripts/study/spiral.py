"""The two-arm spiral, and how a model is trained on it."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from maxp import Parametrization
from scripts.study.mlp import MLP

POINTS = 1024
# Two coordinates and a constant 1: without biases, a ReLU network is linear along every ray.
INPUTS = 3
OUTPUTS = 1
# Hard enough that the learning rate matters, and without noise, which would put a floor under the
# loss. Otherwise a wide range of learning rates would do equally well.
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
    """How a training run ended.

    Attributes:
        loss, late_loss: mean loss of the batches, over all steps and over the last fifth. NaN if
            the run diverged.
        accuracy: on all points after the last step.
        hidden_alignment, readout_alignment: measured alignment of the update with its inputs, the
            larger of z0_dW and dZ_dW; the mean over measurements and over hidden layers. NaN if it
            was not measured.
    """

    loss: float
    late_loss: float
    accuracy: float
    hidden_alignment: float = math.nan
    readout_alignment: float = math.nan


def train(
    model: MLP,
    p: Parametrization,
    steps: int,
    batch: int,
    seed: int,
    *,
    measured: bool = False,
    measure_every: int = 0,
    observe: Callable[[int, torch.Tensor, torch.Tensor], AbstractContextManager[Any]] | None = None,
) -> Outcome:
    """Adam at a constant learning rate, on batches drawn with a seed.

    Args:
        measured: measure the alignment and solve for the learning rates during training (maxP).
        measure_every: without ``measured``, measure the alignment every ``measure_every`` steps,
            for `Outcome`; 0 does not measure. With ``measured``, every measurement counts.
        observe: called with the step, the batch's inputs and its loss; returns a context in which
            the optimizer then steps.
    """
    x, y = spiral()
    draws = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(p.param_groups, fused=True)
    if measured or measure_every:
        p.capture_initial(x)
    losses: list[torch.Tensor] = []
    alignments: list[tuple[float, float]] = []
    for step in range(steps):
        index = torch.randint(POINTS, (batch,), generator=draws)
        loss = F.binary_cross_entropy_with_logits(model(x[index]), y[index])
        losses.append(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        with observe(step, x[index], losses[-1]) if observe else nullcontext():
            optimizer.step()
        if measured:
            p.step(None, optimizer)
            if p.due(p.steps):
                alignments.append(update_alignment(p))
        elif measure_every and (step + 1) % measure_every == 0:
            p.measure()
            alignments.append(update_alignment(p))
    with torch.no_grad():
        accuracy = float(((model(x) > 0) == (y > 0)).float().mean())
    all_losses = torch.stack(losses)
    late = all_losses[int(0.8 * steps) :]
    hidden, readout = (
        torch.tensor(alignments or [(math.nan, math.nan)], dtype=torch.float64).mean(0).tolist()
    )
    return Outcome(float(all_losses.mean()), float(late.mean()), accuracy, hidden, readout)


def update_alignment(p: Parametrization) -> tuple[float, float]:
    """The last measured alignment of updates with their inputs, of hidden layers and readout.

    Of a site it is the larger of z0_dW and dZ_dW, which decides its c; of hidden layers the mean.
    NaN where nothing was measured.
    """
    values: dict[str, list[float]] = {"hidden": [], "readout": []}
    for name, (z0_dw, _, dz_dw) in p.measured.items():
        known = [value for value in (z0_dw, dz_dw) if value is not None]
        values[p.sites[name].layer_type].append(max(known, default=math.nan))
    hidden, readout = (math.fsum(of) / len(of) if of else math.nan for of in values.values())
    return hidden, readout
