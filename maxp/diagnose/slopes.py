"""Slopes of log rms against log width: fitted, derived, and judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maxp.exponents import Exponents
from maxp.graph import Graph, JoinNode

Array = npt.NDArray[np.float64]

# An infinite b (zero weight) or c (frozen weight), in sums where 0 * inf would be NaN.
NEVER = 1e9


@dataclass(frozen=True)
class Slope:
    """A slope of log rms against log width.

    Attributes:
        mean, error: over seeds, and its standard error. The mean is -inf where the rms is zero
            throughout, and NaN where it is zero or not finite at some widths or seeds only.
        derived: what the method expects of the model's exponents, at large widths.
        wanted: what a parametrization that transfers across width has here.
        tolerance: how far from these the mean may lie, where three standard errors are less.
    """

    mean: float
    error: float
    derived: float
    wanted: float
    tolerance: float

    def near(self, value: float) -> bool:
        """Whether the mean is ``value``, within tolerance; nothing is said of what is zero."""
        bound = max(self.tolerance, 3 * self.error)
        return self.mean == -math.inf or abs(self.mean - value) <= bound

    def __str__(self) -> str:
        if self.mean == -math.inf:
            return "zero"
        if math.isnan(self.mean):
            return "NOT FINITE, or zero at times"
        if not self.near(self.wanted):
            return f"{'GROWS' if self.mean > self.wanted else 'falls'} n^{self.mean:.2f}"
        shape = "flat" if self.wanted == 0 else f"n^{self.mean:.2f}"
        # Else it is the error alone that lets it pass.
        return shape if abs(self.mean - self.wanted) <= self.tolerance else f"{shape}, but noisy"


@dataclass(frozen=True)
class SiteStats:
    """What was measured at a site; ``init_rms`` and ``change_rms`` have shape (seeds, widths)."""

    init_rms: Array
    change_rms: Array
    init: Slope
    change: Slope

    @property
    def affected(self) -> bool:
        """Whether the output at init, or its change, has another slope than it should have."""
        return not (self.init.near(self.init.wanted) and self.change.near(self.change.wanted))

    @property
    def verdict(self) -> str:
        """What became of the change, after what is wrong or zero at init."""
        right = self.init.near(self.init.wanted) and self.init.mean != -math.inf
        return str(self.change) if right else f"init {self.init}, {self.change}"

    def as_dict(self) -> dict[str, Any]:
        """Lists and numbers for JSON; None for a number that is not finite."""
        slopes = {"init": vars(self.init), "change": vars(self.change)}
        rms = {"init_rms": self.init_rms.tolist(), "change_rms": self.change_rms.tolist()}
        return {"verdict": self.verdict, **_for_json(slopes), **_for_json(rms)}


def init_slopes(
    graph: Graph, exponents: Mapping[str, Exponents], contracted: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The slopes s of the nodes' rms at init, as derived and as wanted.

        embedding    s = s_in - a - b
        other        s = s_in - a - b + n / 2          (a random sum; n is 1 if its terms are width)
        no weight    s = s_q + s_k - a + n / 2

    with s = 0 for data, and the largest s of what a join mixes (a product of values of different
    sizes, and a normalisation between sites, are not seen). No more than 0 is wanted; at an
    embedding or hidden site also no less than s_in.

    Args:
        graph: the sites.
        exponents: a and b of each site.
        contracted: n of each site, the exponent of how many entries it contracts.
    """
    s: dict[str, float] = {}
    wanted: dict[str, float] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, JoinNode):
            s[name] = max(s[parent] for parent in node.parents)
            continue
        e = exponents[name]
        s_in = sum(s[operand] for operand in node.operands if operand is not None)
        random_sum = 0.0 if node.layer_type == "embedding" and node.has_weight else 0.5
        s[name] = s_in - e.a - (e.b if node.has_weight else 0.0) + random_sum * contracted[name]
        may_shrink = node.layer_type == "readout" or not node.has_weight
        wanted[name] = min(0.0, s[name] if may_shrink else s_in)
    return s, wanted


def fit(widths: Sequence[int], values: Array) -> tuple[float, float]:
    """Least-squares slope of log values (seeds, widths) against log width: mean over seeds, and
    its standard error; NaN where there is no logarithm."""
    if not (np.isfinite(values) & (values > 0)).all():
        return math.nan, math.nan
    x = np.log(np.asarray(widths, dtype=np.float64))
    x -= x.mean()
    slopes = np.log(values) @ x / (x @ x)
    return float(slopes.mean()), float(slopes.std(ddof=1) / math.sqrt(len(slopes)))


def fit_exponent(name: str, what: str, widths: Sequence[int], values: Array) -> float:
    """The slope of what a model is made with; -NEVER where that is zero."""
    if not values.any():
        return -NEVER
    mean, error = fit(widths, values)
    if math.isnan(mean):
        raise ValueError(
            f"make_model: the {what} of {name} must be positive and finite at every width and "
            "seed, or else zero at all"
        )
    # What is read off random weights has an error: the nearest quarter is taken if it lies in it.
    quarter = round(4 * mean) / 4
    return quarter if abs(mean - quarter) <= 3 * error else mean


def fit_slope(
    widths: Sequence[int], rms: Array, derived: float, wanted: float, tolerance: float
) -> Slope:
    mean, error = fit(widths, rms) if rms.any() else (-math.inf, 0.0)
    derived, wanted = (
        s if abs(s) < NEVER / 2 else math.copysign(math.inf, s) for s in (derived, wanted)
    )
    return Slope(mean, error, derived, wanted, tolerance)


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_for_json(v) for v in value]
    return value if math.isfinite(value) else None
