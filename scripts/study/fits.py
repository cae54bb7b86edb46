"""Means and slopes over widths: fitted with confidence intervals, and derived for finite widths."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from train.results.transfer import half_interval

Array = npt.NDArray[np.float64]


def geometric(rows: pd.DataFrame, keys: Sequence[str], value: str) -> pd.Series:
    """Geometric means of a column for each combination of the keys."""
    return np.exp(np.log(rows.set_index(list(keys))[value]).groupby(level=list(keys)).mean())


@dataclass(frozen=True)
class Fit:
    """Slope of log value against log width: mean over seeds, and half of its 95% interval."""

    slope: float
    half: float


def slope(widths: Array, values: Array) -> Fit:
    """Least squares for each seed, then Student's t over seeds.

    Args:
        widths: (widths,).
        values: positive, (seeds, widths). With one seed the interval is NaN.
    """
    return over_seeds(np.log(values) @ _weights(widths))


def over_seeds(values: Array) -> Fit:
    """Mean over seeds, and half of its 95% interval (Student's t); NaN with one seed."""
    half = half_interval(values) if len(values) > 1 else math.nan
    return Fit(float(values.mean()), half)


def slope_of_mean_squares(widths: Array, values: Array) -> Fit:
    """Least squares on the log of the mean square over seeds, with a jackknife over seeds.

    The mean of logs is lower by a constant over n for each random layer (`finite_slope`). The mean
    square is not, so its slope is that of the exponent.

    Args:
        widths: (widths,).
        values: positive, (seeds, widths). With one seed the interval is NaN.
    """
    squares, seeds = np.square(values), len(values)
    whole = float(0.5 * np.log(squares.mean(0)) @ _weights(widths))
    if seeds < 2:
        return Fit(whole, math.nan)
    without = (squares.sum(0) - squares) / (seeds - 1)
    # The slopes without one seed spread seeds - 1 times less than those of one seed.
    return Fit(whole, (seeds - 1) * half_interval(0.5 * np.log(without) @ _weights(widths)))


def _weights(widths: Array) -> Array:
    """The slope of ``y`` against log width is ``y @ weights``."""
    x = np.log(widths) - np.log(widths).mean()
    return x / (x @ x)


def finite_slope(
    widths: Array, exponent: float, quantity: str, kind: str, fluctuating: int, fixed: int
) -> float:
    """The slope that a derived exponent gives at finite widths, with two corrections.

    The spectral norm of a weight with one fixed dimension m is s (sqrt(n) + sqrt(m)), not s sqrt(n)
    (the edge of the Marchenko-Pastur law). And after a random ReLU layer, the mean of the log of a
    squared norm is lower by 5 / (2n) than the log of its mean, because
    E relu(g)^4 / (E relu(g)^2)^2 - 1 = 5. A gradient is a product of two vectors that passed
    ``fluctuating`` such layers together; the mean log of its norm is lower by 5/4 layers / n.

    Args:
        widths: the widths of the fit.
        exponent: the derived exponent.
        quantity: a key of `derived.QUANTITIES`.
        kind: the layer's type; only hidden layers have no fixed dimension.
        fluctuating: number of random layers in the quantity: depth - 1 if it contains the gradient.
        fixed: m.
    """
    logs = exponent * np.log(widths) - 1.25 * fluctuating / widths
    if kind != "hidden" and quantity in ("spectral", "weight_2"):
        sign = -1 if quantity == "spectral" else 1
        logs = logs + sign * np.log1p(np.sqrt(fixed / widths))
    return float(logs @ _weights(widths))
