"""Slopes on log width: fitted, with confidence intervals, and derived at finite widths."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Fit:
    """A slope of log value on log width: the mean over seeds, and half its 95% interval."""

    slope: float
    half: float


def slope(widths: Array, values: Array) -> Fit:
    """Least squares for each seed, then Student's t over seeds.

    Args:
        widths: (widths,).
        values: positive, (seeds, widths); with one seed there is no interval, it is NaN.
    """
    x = np.log(widths)
    x = x - x.mean()
    slopes = np.log(values) @ x / (x @ x)
    if len(slopes) < 2:
        return Fit(float(slopes.mean()), math.nan)
    error = slopes.std(ddof=1) / math.sqrt(len(slopes))
    return Fit(float(slopes.mean()), float(t_quantile(len(slopes) - 1) * error))


@cache
def t_quantile(degrees: int, probability: float = 0.975) -> float:
    """Of Student's t, by inverting its integral numerically, to about 1e-4."""
    angle = np.linspace(0, math.pi / 2, 200_001)[:-1]
    # With t = sqrt(degrees) tan(angle) the density is proportional to cos(angle)^(degrees - 1).
    integral = np.cumsum(np.cos(angle) ** (degrees - 1))
    integral = 0.5 + 0.5 * integral / integral[-1]
    return float(math.sqrt(degrees) * np.tan(angle[np.searchsorted(integral, probability)]))


def finite_slope(
    widths: Array, exponent: float, quantity: str, kind: str, fluctuating: int, fixed: int
) -> float:
    """The slope that a derived exponent gives at finite widths, two corrections included.

    The spectral norm of a weight with one fixed dimension m is s (sqrt(n) + sqrt(m)), not s sqrt(n)
    (the edge of the Marchenko-Pastur law). And the logarithm of a squared norm behind a random
    ReLU layer is by 5 / (2n) lower than that of its mean: E relu(g)^4 / (E relu(g)^2)^2 - 1 = 5.
    Each of the layers through which a gradient's two factors have come adds that, in all
    -5/4 layers / n for the logarithm of its norm.

    Args:
        widths: those that are fitted.
        exponent: the derived one.
        quantity: by the names of `derived.QUANTITIES`.
        kind: the layer's type; only hidden layers have no fixed dimension.
        fluctuating: random layers in the quantity: depth - 1 in what contains the gradient, or 0.
        fixed: m.
    """
    logs = exponent * np.log(widths) - 1.25 * fluctuating / widths
    if kind != "hidden" and quantity in ("spectral", "weight_2"):
        sign = -1 if quantity == "spectral" else 1
        logs = logs + sign * np.log1p(np.sqrt(fixed / widths))
    x = np.log(widths)
    x = x - x.mean()
    return float(logs @ x / (x @ x))
