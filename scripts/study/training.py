"""The spiral with one learning rate for all sizes: what changes with width and with depth."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import pandas as pd
import torch

from scripts.study.fits import geometric
from scripts.study.mlp import build
from scripts.study.plan import Training
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train

Row = dict[str, Any]


def measure(width: int, depth: int, seed: int, plan: Training) -> list[Row]:
    """Train one model; one row per observed step and layer.

    ``activation`` is the root mean square of the layer's output on the batch, ``gradient`` the
    Frobenius norm of the weight's gradient, ``update`` the Frobenius norm of the step divided by
    the weight's.
    """
    model, p = build("standard", "adam", width, depth, INPUTS, OUTPUTS, plan.lr, seed)
    rows: list[Row] = []

    @contextmanager
    def observe(step: int, x: torch.Tensor, loss: torch.Tensor) -> Iterator[None]:
        if step % plan.observe_every and step != plan.steps - 1:
            yield
            return
        weights = [layer.weight.detach().clone() for layer in model.layers]
        with torch.no_grad():
            outputs = model.outputs(x)
        yield
        for i, (layer, old, out) in enumerate(zip(model.layers, weights, outputs, strict=True)):
            rows.append(
                {
                    "step": step,
                    "layer": i,
                    "loss": float(loss),
                    "activation": float(out.square().mean().sqrt()),
                    "gradient": float(layer.weight.grad.norm()),
                    "update": float((layer.weight.detach() - old).norm() / old.norm()),
                }
            )

    outcome = train(model, p, plan.steps, plan.batch, seed, observe=observe)
    size = {"width": width, "depth": depth, "seed": seed}
    end = {"late_loss": outcome.late_loss, "accuracy": outcome.accuracy}
    return [{**size, **row, **end} for row in rows]


def run(plan: Training, workers: int) -> pd.DataFrame:
    """One row per width, depth, seed, observed step and layer."""
    tasks = product(plan.widths[::-1], plan.depths[::-1], range(plan.seeds), [plan])
    return run_all(measure, tasks, workers=workers, label="training")


def cells(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds for each (depth, width), the index.

    ``activation`` is that of the last layer before the readout. ``gradient`` and ``update`` are
    geometric means over the hidden layers, ``spread`` is the largest gradient of a hidden layer
    divided by the smallest; all four at the first step.
    """
    first = rows[rows.step == 0]
    hidden = first[(first.layer > 0) & (first.layer < first.depth - 1)]
    keys = ["depth", "width"]
    gradients = hidden.groupby([*keys, "seed"]).gradient
    return pd.DataFrame(
        {
            "late_loss": rows.groupby(keys).late_loss.mean(),
            "accuracy": rows.groupby(keys).accuracy.mean(),
            "activation": geometric(first[first.layer == first.depth - 2], keys, "activation"),
            "gradient": geometric(hidden, keys, "gradient"),
            "update": geometric(hidden, keys, "update"),
            "spread": (gradients.max() / gradients.min()).groupby(keys).mean(),
        }
    )
