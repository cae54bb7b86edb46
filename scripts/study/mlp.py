"""The study's model: a plain ReLU MLP of marked layers, the same code in every parametrization."""

from typing import Any

import torch
from torch import nn

from maxp import PARAMETRIZATIONS, Parametrization, ParametrizedModule
from scripts.study.plan import Optimizer

METHODS = ("standard", "mup", "maxP")


def ab(method: str) -> dict[str, tuple[float, float]]:
    """(a, b) of a method, by layer type."""
    return PARAMETRIZATIONS["standard" if method == "standard" else "mup"]


class MLP(nn.Module):
    """Linear layers without biases, ReLU between them: x (batch, inputs) to (batch, outputs).

    Args:
        width: of every layer between.
        depth: layers with a weight, at least 2: ``embedding``, ``hidden.0`` and on, ``readout``.
        inputs, outputs: dimensions that do not grow.
    """

    def __init__(self, width: int, depth: int, inputs: int, outputs: int) -> None:
        super().__init__()

        def linear(fan_in: int, fan_out: int, kind: Any) -> ParametrizedModule:
            layer = nn.Linear(fan_in, fan_out, bias=False, device="meta")  # drawn once, not twice
            return ParametrizedModule(layer, width, kind)

        self.embedding = linear(inputs, width, "embedding")
        self.hidden = nn.ModuleList(linear(width, width, "hidden") for _ in range(depth - 2))
        self.readout = linear(width, outputs, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.embedding(x).relu()
        for layer in self.hidden:
            z = layer(z).relu()
        out: torch.Tensor = self.readout(z)
        return out


def parametrize(
    model: MLP, method: str, optimizer: Optimizer, lr: float, seed: int, **more: Any
) -> Parametrization:
    """Draw the weights of a model and give each layer its multiplier and learning rate.

    ``standard`` is N(0, 1/fan_in) and one learning rate for all layers, c = 0, which is what a
    model has that nobody parametrized. ``mup`` and ``maxP`` have muP's (a, b), and c by full
    alignment until something is measured. In all of them the embedding's output is that of
    N(0, 1/fan_in): its fan-in does not grow, so this is a constant that n^-b multiplies.

    Args:
        model: on the meta device (then only exponents and learning rates mean anything), or not.
        lr: what n^-c multiplies.
        more: further arguments of `Parametrization`.
    """
    parametrization = Parametrization(
        model,
        optimizer_type=optimizer,
        lr_prefactor=lr,
        ab_overrides=ab(method),
        c_overrides=dict.fromkeys(ab(method), 0.0) if method == "standard" else None,
        seed=seed,
        **more,
    )
    with torch.no_grad():
        weight = model.embedding.weight
        assert weight is not None
        weight.mul_(weight.shape[1] ** -0.5)
    return parametrization


def build(
    method: str,
    optimizer: Optimizer,
    width: int,
    depth: int,
    inputs: int,
    outputs: int,
    lr: float,
    seed: int,
    **more: Any,
) -> tuple[MLP, Parametrization]:
    """A model with weights and its `Parametrization`; the same seed draws the same normals."""
    model = MLP(width, depth, inputs, outputs).to_empty(device="cpu")
    return model, parametrize(model, method, optimizer, lr, seed, **more)
