"""The spiral at one learning rate for all: what changes with the width, and what with the depth."""

from itertools import product
from typing import Any

import pandas as pd
import torch
from torch import nn

from maxp.module import find_sites
from scripts.study.mlp import build
from scripts.study.plan import Training
from scripts.study.pool import run_all
from scripts.study.spiral import INPUTS, OUTPUTS, train

Row = dict[str, Any]


class Observer:
    """Notes, every so many steps, each layer's output scale, gradient and relative update.

    ``activation`` is the root mean square of the layer's output on the batch, ``gradient`` the
    Frobenius norm of the weight's gradient, ``update`` the norm of a step over the weight's.
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
        """Just before the optimizer steps."""
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
        """Just after."""
        if self._due:
            latest = self.rows[-len(self._sites) :]
            for row, (name, site) in zip(latest, self._sites.items(), strict=True):
                old = self._weights[name]
                row["update"] = float((site.weight.detach() - old).norm() / old.norm())
        following = step + 1
        self._due = following % self._every == 0 or following == self._last


def measure(width: int, depth: int, seed: int, plan: Training) -> list[Row]:
    """Train one model; a row for each observed step and layer."""
    model, p = build("standard", "adam", width, depth, INPUTS, OUTPUTS, plan.lr, seed)
    observer = Observer(model, plan.observe_every, plan.steps - 1)
    end = train(
        model, p, plan.steps, plan.batch, seed, before=observer.before, after=observer.after
    )
    about = {"width": width, "depth": depth, "seed": seed}
    about_end = {"late_loss": end.late, "accuracy": end.accuracy}
    return [{**about, **row, **about_end} for row in observer.rows]


def cost(width: int, depth: int, seed: int, plan: Training) -> float:
    """About how long `measure` takes, in no unit."""
    return plan.steps * depth * (width * width + 4e4)


def run(plan: Training, workers: int) -> pd.DataFrame:
    """A row for each width, depth, seed, observed step and layer."""
    tasks = [(*size, plan) for size in product(plan.widths, plan.depths, range(plan.seeds))]
    return pd.DataFrame.from_records(
        run_all(measure, tasks, cost, workers=workers, label="training")
    )
