"""The study's model: a plain ReLU MLP, with the same code for every parametrization."""

from typing import Any

import torch
from torch import nn

from maxp import PARAMETRIZATIONS, Depth, Parametrization, ParametrizedModule
from scripts.study.plan import Optimizer

# The name in rows and files -> the name in tables and figures.
METHODS = {"standard": "standard", "mup": "muP", "maxP": "maxP"}


def ab(method: str) -> dict[str, tuple[float, float]]:
    """(a, b) of a method, by layer type."""
    return PARAMETRIZATIONS["standard" if method == "standard" else "mup"]


class MLP(nn.Module):
    """Linear layers without biases and ReLU between them: (batch, inputs) to (batch, outputs).

    The weights are on the meta device: `build` draws them.

    Args:
        width: outputs of every layer but the last.
        depth: number of layers, at least 2: ``embedding``, ``hidden.0``, ..., ``readout``.
        inputs, outputs: dimensions that do not grow.
        residual: each hidden layer adds to its input: ``x + W relu(x)`` instead of ``W relu(x)``.
    """

    def __init__(
        self, width: int, depth: int, inputs: int, outputs: int, residual: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual

        def linear(fan_in: int, fan_out: int, kind: Any) -> ParametrizedModule:
            layer = nn.Linear(fan_in, fan_out, bias=False, device="meta")
            return ParametrizedModule(layer, width, kind)

        self.embedding = linear(inputs, width, "embedding")
        self.hidden = nn.ModuleList(linear(width, width, "hidden") for _ in range(depth - 2))
        self.readout = linear(width, outputs, "readout")

    @property
    def layers(self) -> list[Any]:
        return [self.embedding, *self.hidden, self.readout]

    def outputs(self, x: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of all layers, before ReLU."""
        outputs: list[torch.Tensor] = []
        for i, layer in enumerate(self.layers):
            out = layer(outputs[-1].relu() if outputs else x)
            inside = self.residual and 0 < i < len(self.layers) - 1
            outputs.append(outputs[-1] + out if inside else out)
        return outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.outputs(x)[-1]


def build(
    method: str,
    optimizer: Optimizer,
    width: int,
    depth: int,
    inputs: int,
    outputs: int,
    lr: float,
    seed: int,
    device: str = "cpu",
    *,
    base_width: int | None = None,
    residual: bool = False,
    rule: Depth | None = None,
    **more: Any,
) -> tuple[MLP, Parametrization]:
    """A model with its weights drawn, and its multipliers and learning rates.

    ``standard`` initialises with N(0, 1/fan_in) and has one learning rate for all layers (c = 0).
    ``mup`` and ``maxP`` have muP's (a, b), and c for full alignment until an alignment is measured.
    In all of them the embedding's output is that of N(0, 1/fan_in) weights: its fan-in does not
    grow, so this is a constant that n^-b multiplies. All methods draw the same normals from a seed.

    Args:
        lr: the factor of n^-c.
        base_width: the width at which all methods are the same model. None: the width 1.
        residual: see `MLP`.
        rule: the argument ``depth`` of `Parametrization`.
        device: "meta" gives only the exponents and learning rates, without memory for weights.
        more: further arguments of `Parametrization`.
    """
    model = MLP(width, depth, inputs, outputs, residual).to_empty(device=device)
    if base_width is not None:
        more["base"] = dict.fromkeys(ab(method), base_width)
    parametrization = Parametrization(
        model,
        optimizer_type=optimizer,
        lr_prefactor=lr,
        ab_overrides=ab(method),
        c_overrides=dict.fromkeys(ab(method), 0.0) if method == "standard" else None,
        seed=seed,
        depth=rule,
        **more,
    )
    if base_width is not None:
        return model, parametrization  # a base's embedding has N(0, 1/fan_in) weights already
    with torch.no_grad():
        weight = model.embedding.weight
        assert weight is not None
        weight.mul_(weight.shape[1] ** -0.5)
    return model, parametrization
