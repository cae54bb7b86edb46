"""Slopes of log rms against log width: fitted, derived and judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from maxp.exponents import Exponents
from maxp.graph import Graph, JoinNode

Array = npt.NDArray[np.float64]

# Represents an infinite b (zero weight) or c (frozen weight), since 0 * inf would be NaN.
NEVER = 1e9


@dataclass(frozen=True)
class Slope:
    """A slope of log rms against log width.

    Attributes:
        mean: over seeds. It is -inf if the rms is always zero, and NaN if the rms is zero or not
            finite at some widths or seeds only.
        error: the standard error of the mean.
        derived: the slope that follows from the model's exponents, at large widths.
        wanted: the slope in a parametrization that transfers across width.
        tolerance: the allowed distance of the mean from these; three standard errors are allowed
            if they are larger.
    """

    mean: float
    error: float
    derived: float
    wanted: float
    tolerance: float

    def near(self, value: float) -> bool:
        """Whether the mean is ``value`` within tolerance; always true if the rms is always zero."""
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
        # Otherwise only the standard error lets it pass.
        return shape if abs(self.mean - self.wanted) <= self.tolerance else f"{shape}, but noisy"


@dataclass(frozen=True)
class SiteStats:
    """The measurements of a site; ``init_rms`` and ``change_rms`` have shape (seeds, widths)."""

    init_rms: Array
    change_rms: Array
    init: Slope
    change: Slope

    @property
    def affected(self) -> bool:
        """Whether the output at init or its change has a slope other than the wanted one."""
        return not (self.init.near(self.init.wanted) and self.change.near(self.change.wanted))

    @property
    def verdict(self) -> str:
        """Describes the change, and before it the output at init if that is wrong or zero."""
        right = self.init.near(self.init.wanted) and self.init.mean != -math.inf
        return str(self.change) if right else f"init {self.init}, {self.change}"

    def as_dict(self) -> dict[str, Any]:
        """Lists and numbers for JSON; numbers that are not finite become None."""
        slopes = {"init": vars(self.init), "change": vars(self.change)}
        rms = {"init_rms": self.init_rms.tolist(), "change_rms": self.change_rms.tolist()}
        return {"verdict": self.verdict, **_for_json(slopes), **_for_json(rms)}


def init_slopes(
    graph: Graph, exponents: Mapping[str, Exponents], contracted: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The derived and the wanted slopes s of the rms at init, by site.

        embedding    s = s_in - a - b
        other        s = s_in - a - b + n / 2          (a random sum; n is 1 if its terms are width)
        no weight    s = s_q + s_k - a + n / 2

    with s = 0 for data, and the largest s of its parents for a join. Products of values of
    different sizes, and normalisation between sites, are not modelled. The wanted slope is at most
    0, and at an embedding or hidden site at least s_in.

    Args:
        graph: of the sites.
        exponents: a and b of each site.
        contracted: n of each site: the number of entries that it contracts is width^n.
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
    """Least-squares slope of log values (seeds, widths) against log width: its mean over seeds and
    standard error; NaN if a value has no logarithm."""
    if not (np.isfinite(values) & (values > 0)).all():
        return math.nan, math.nan
    x = np.log(np.asarray(widths, dtype=np.float64))
    x -= x.mean()
    slopes = np.log(values) @ x / (x @ x)
    return float(slopes.mean()), float(slopes.std(ddof=1) / math.sqrt(len(slopes)))


def fit_exponent(name: str, what: str, widths: Sequence[int], values: Array) -> float:
    """The slope of a property of the model; -NEVER if it is always zero."""
    if not values.any():
        return -NEVER
    mean, error = fit(widths, values)
    if math.isnan(mean):
        raise ValueError(
            f"make_model: the {what} of {name} must be positive and finite at every width and "
            "seed, or zero at all of them"
        )
    # Random weights have an error: take the nearest quarter if it is within three of them.
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
