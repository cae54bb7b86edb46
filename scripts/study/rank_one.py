"""One step on one input, in closed form: every update is an outer product, dW = u v^T.

The gradient of W in y = s W z is g = s delta z^T. SGD's step is -lr g. Adam's first step is
-lr g / (|g| + eps); for eps to 0 this is -lr sign(g), and the sign of an outer product is the outer
product of the signs. So norms and products need only vectors, and following a change through the
model takes one matrix product per layer.
"""

import math
from dataclasses import dataclass

import torch

from maxp.exponents import PRESETS
from scripts.study.plan import Optimizer


@dataclass(frozen=True)
class Site:
    """The tensors of one forward and backward pass at a layer y = scale W z.

    Attributes:
        z, y, delta: input (in,), output (out,) and the gradient of the loss at y (out,).
        weight: (out, in).
        norm_f, norm_2: Frobenius and spectral norm of the weight.
        width: n.
    """

    z: torch.Tensor
    y: torch.Tensor
    delta: torch.Tensor
    weight: torch.Tensor
    scale: float
    norm_f: float
    norm_2: float
    width: int


@dataclass(frozen=True)
class Update:
    """dW = u v^T."""

    u: torch.Tensor
    v: torch.Tensor

    def norm(self) -> float:
        """The Frobenius norm, which is also the spectral norm: the rank is one."""
        return norm(self.u) * norm(self.v)

    def times(self, z: torch.Tensor) -> torch.Tensor:
        """dW z.

        The sum is in float64: with equal steps up and down it is exactly zero or clearly not, on
        any CPU. In float32, rounding would decide.
        """
        return self.u * float(self.v.double() @ z.double())


def norm(x: torch.Tensor) -> float:
    return float(x.double().square().sum().sqrt())


def first_step(site: Site, optimizer: Optimizer, lr: float) -> Update:
    """The first step of a new optimizer; for Adam, the limit of eps to 0."""
    if optimizer == "sgd":
        return Update(-lr * site.scale * site.delta, site.z)
    return Update(-lr * site.delta.sign(), site.z.sign())


def kept_with_eps(site: Site, eps: float, rows: int = 64) -> float:
    """||dW z|| of Adam's first step with this eps, divided by that of eps to 0.

    With eps the update is not an outer product. To save time, only the first ``rows`` outputs with
    a gradient are used.
    """
    z = site.z.double().abs()
    live = site.delta.double().abs()
    g = site.scale * live[live > 0][:rows, None] * z
    return float(((g / (g + eps)) @ z).square().mean().sqrt() / z.sum())


def measured(site: Site, update: Update) -> dict[str, float]:
    """The quantities of one layer, with the keys of `derived.RATIOS` and `derived.NORMS`."""
    grad = site.scale * norm(site.delta) * norm(site.z)
    return {
        "gradient": grad / site.norm_f,
        "frobenius": update.norm() / site.norm_f,
        "spectral": update.norm() / site.norm_2,
        "output": site.scale * norm(update.times(site.z)) / norm(site.y),
        "z": norm(site.z),
        "delta": norm(site.delta),
        "grad": grad,
        "weight_f": site.norm_f,
        "weight_2": site.norm_2,
    }


@dataclass(frozen=True)
class Spread:
    """How a small step of all layers changes one of them.

    Attributes:
        total: ||dy|| / ||y||, from the layer's own update and from the change of its input.
        alignment: (z0_dW, dZ_w0, dZ_dW), equal to `maxp.compute_alignment` for small steps. A term
            that is exactly zero has the value of full alignment, (1, 1/2, 1). With Adam this
            happens in dZ dW, by chance: equal steps up and down can cancel.
    """

    total: float
    alignment: tuple[float, float, float]


def spread(sites: list[Site], updates: list[Update]) -> list[Spread]:
    """Follow a step through a ReLU MLP to first order in the learning rate.

    Args:
        sites: all layers, from the embedding to the readout.
        updates: one per site.
    """
    spreads = []
    dz = torch.zeros_like(sites[0].z)
    for site, update in zip(sites, updates, strict=True):
        own, inherited = update.times(site.z), site.weight @ dz
        dy = site.scale * (own + inherited)
        full = PRESETS["full"]
        alignment = (
            _align(own, site.z, update.norm(), site.width, full.z0_dW),
            _align(inherited, dz, site.norm_f, site.width, full.dZ_w0),
            _align(update.times(dz), dz, update.norm(), site.width, full.dZ_dW),
        )
        spreads.append(Spread(norm(dy) / norm(site.y), alignment))
        dz = dy * (site.y > 0)
    return spreads


def _align(y: torch.Tensor, x: torch.Tensor, norm_f: float, n: int, default: float) -> float:
    """log_n of rms(y) / (rms(x) rms(M)) for y = M x, or the default if y is zero."""
    if not y.any():
        return default
    return math.log(len(x) * norm(y) / (norm(x) * norm_f)) / math.log(n)


def largest_singular_value(matrix: torch.Tensor, steps: int = 24) -> float:
    """The spectral norm by Golub-Kahan bidiagonalisation (1965) from a fixed start vector.

    For random weights the result is up to 1% too small. The spectrum of a random matrix has no gap
    at its edge, so power iteration would need far more matrix products.
    """
    rows, columns = matrix.shape
    v = torch.randn(columns, generator=torch.Generator().manual_seed(0)).to(matrix)
    v /= v.norm()
    u, beta = torch.zeros(rows).to(matrix), 0.0
    steps = min(steps, rows, columns)
    bidiagonal = torch.zeros(steps, steps, dtype=torch.float64)
    for i in range(steps):
        u = matrix @ v - beta * u
        alpha = norm(u)
        u /= alpha
        bidiagonal[i, i] = alpha
        v = matrix.T @ u - alpha * v
        beta = norm(v)
        v /= beta
        if i + 1 < steps:
            bidiagonal[i, i + 1] = beta
    return float(torch.linalg.matrix_norm(bidiagonal, 2))
