"""One step on one input, in closed form: every update is an outer product, dW = u v^T.

The gradient of W in y = s W z is s delta z^T. SGD's step is that times -lr; Adam's first step is
-lr g / (|g| + eps), for eps to 0 the sign of g, and the sign of an outer product is the outer
product of the signs. So norms and products need no matrix, and a change spreads with one product a
layer.
"""

import math
from dataclasses import dataclass

import torch

from maxp.exponents import PRESETS
from scripts.study.plan import Optimizer


@dataclass(frozen=True)
class Site:
    """What one forward and backward pass leaves at a layer y = scale W z.

    Attributes:
        z, y, delta: input (in,), output (out,) and the loss's gradient at y.
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
        """Frobenius, and spectral: there is one singular value."""
        return norm(self.u) * norm(self.v)

    def times(self, z: torch.Tensor) -> torch.Tensor:
        """dW z."""
        return self.u * (self.v @ z)


def norm(x: torch.Tensor) -> float:
    return float(x.double().square().sum().sqrt())


def first_step(site: Site, optimizer: Optimizer, lr: float) -> Update:
    """The optimizer's first step from zero state; Adam's for eps to 0."""
    if optimizer == "sgd":
        return Update(-lr * site.scale * site.delta, site.z)
    return Update(-lr * site.delta.sign(), site.z.sign())


def kept_with_eps(site: Site, eps: float, rows: int = 64) -> float:
    """How much of Adam's change of the output, dW z, is left with an eps that is not 0.

    The update is then no outer product, so this is taken over the first ``rows`` live outputs.
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
        total: ||dy|| / ||y||, its own update's part and what it inherits.
        alignment: (z0_dW, dZ_w0, dZ_dW), as `maxp.compute_alignment` has them for small steps;
            of (1, 1/2, 1), the preset, where a term is exactly zero: Adam's dZ dW adds up as many
            equal steps up as down by chance.
    """

    total: float
    alignment: tuple[float, float, float]


def spread(sites: list[Site], updates: list[Update]) -> list[Spread]:
    """Follow a step through a ReLU MLP to first order in the learning rate.

    Args:
        sites: in order.
        updates: of each.
    """
    found = []
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
        found.append(Spread(norm(dy) / norm(site.y), alignment))
        dz = dy * (site.y > 0)
    return found


def _align(y: torch.Tensor, x: torch.Tensor, matrix: float, n: int, otherwise: float) -> float:
    """log_n of rms(y) / (rms(x) rms(M)); a term that is zero has none, and the preset holds."""
    product = norm(y)
    if product == 0:
        return otherwise
    return math.log(len(x) * product / (norm(x) * matrix)) / math.log(n)


def largest_singular_value(matrix: torch.Tensor, steps: int = 24) -> float:
    """By Golub-Kahan bidiagonalisation from a fixed start: from below, 1% off for random weights.

    Where the spectrum has no gap at its edge, as a random matrix's has none, this needs far fewer
    products than power iteration. Golub and Kahan 1965.
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
