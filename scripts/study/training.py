"""The spiral with one learning rate for all sizes: what changes with width and with depth."""

from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import nn

from maxp.module import find_sites
from scripts.study.fits import geometric
from scripts.study.mlp import build
from scripts.study.plan import Training
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train

Row = dict[str, Any]


class Observer:
    """Records each layer's output scale, gradient and relative update every ``every`` steps.

    ``activation`` is the root mean square of the layer's output on the batch, ``gradient`` the
    Frobenius norm of the weight's gradient, ``update`` the Frobenius norm of the step divided by
    the weight's.
    """

    def __init__(self, model: nn.Module, every: int, last: int) -> None:
        self.rows: list[Row] = []
        self._sites, self._every, self._last = find_sites(model), every, last
        self._activations: dict[str, float] = {}
        self._weights: dict[str, torch.Tensor] = {}
        self._due = True
        for name, site in self._sites.items():
            assert isinstance(site, nn.Module)

            def note(_: Any, __: Any, out: torch.Tensor, name: str = name) -> None:
                if self._due:
                    self._activations[name] = float(out.detach().square().mean().sqrt())

            site.register_forward_hook(note)

    def before(self, step: int, loss: float) -> None:
        """Call just before the optimizer steps."""
        if not self._due:
            return
        for layer, (name, site) in enumerate(self._sites.items()):
            self._weights[name] = site.weight.detach().clone()
            self.rows.append(
                {
                    "step": step,
                    "layer": layer,
                    "loss": loss,
                    "activation": self._activations[name],
                    "gradient": float(site.weight.grad.norm()),
                }
            )

    def after(self, step: int) -> None:
        """Call just after the optimizer has stepped."""
        if self._due:
            latest = self.rows[-len(self._sites) :]
            for row, (name, site) in zip(latest, self._sites.items(), strict=True):
                old = self._weights[name]
                row["update"] = float((site.weight.detach() - old).norm() / old.norm())
        following = step + 1
        self._due = following % self._every == 0 or following == self._last


def measure(width: int, depth: int, seed: int, plan: Training) -> list[Row]:
    """Train one model; one row per observed step and layer."""
    model, p = build("standard", "adam", width, depth, INPUTS, OUTPUTS, plan.lr, seed)
    observer = Observer(model, plan.observe_every, plan.steps - 1)
    outcome = train(
        model, p, plan.steps, plan.batch, seed, before=observer.before, after=observer.after
    )
    size = {"width": width, "depth": depth, "seed": seed}
    end = {"late_loss": outcome.late_loss, "accuracy": outcome.accuracy}
    return [{**size, **row, **end} for row in observer.rows]


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
