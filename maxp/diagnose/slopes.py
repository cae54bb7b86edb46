"""Slopes of log rms against log width: fitted, derived and judged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from maxp.diagnose.faults import Fault
from maxp.exponents import Exponents
from maxp.graph import Graph, JoinNode

Array = npt.NDArray[np.float64]

# Represents an infinite b (zero weight) or c (frozen weight), since 0 * inf would be NaN.
NEVER = 1e9


Verdict = Literal["right", "wrong", "cannot tell at these widths"]
RIGHT, WRONG, CANNOT_TELL = get_args(Verdict)

# The probability that the true slope lies in the interval, at every number of seeds.
_LEVEL = 0.95


@dataclass(frozen=True)
class Slope:
    """A slope of log rms against log width.

    The slope is between ``low`` and ``high`` with a confidence of 95%. It is right if this interval
    is within ``tolerance`` of ``wanted``, and wrong if it is outside.

    A slope below the wanted one may be due to small widths: a sum of ``width`` terms has a coherent
    part and a random part, whose rms is width^-1/2 times smaller. Where the exponents of the model
    give the wanted slope, and it is not more than 1/2 lower, it is therefore not called wrong. The
    opposite cannot happen, since the steepest part of a sum is the largest at large widths.

    Attributes:
        mean: over seeds. It is -inf if the rms is always zero, and NaN if the rms is zero or not
            finite at some widths or seeds only.
        error: the standard error of the mean.
        derived: the slope that follows from the model's exponents, at large widths.
        wanted: the slope in a parametrization that transfers across width.
        tolerance: the allowed distance of the slope from ``wanted``.
        reach: half the length of the interval, in standard errors.
        span: the smallest and the largest width.
    """

    mean: float
    error: float
    derived: float
    wanted: float
    tolerance: float
    reach: float = 3.0
    span: tuple[int, int] = (1, 1)

    @property
    def low(self) -> float:
        return self.mean - self.reach * self.error

    @property
    def high(self) -> float:
        return self.mean + self.reach * self.error

    @property
    def grows(self) -> bool:
        """Whether the slope is above the wanted one, beyond the tolerance."""
        return self.low > self.wanted + self.tolerance

    @property
    def verdict(self) -> Verdict:
        if self.mean == -math.inf:
            return RIGHT
        least, most = self.wanted - self.tolerance, self.wanted + self.tolerance
        if least <= self.low and self.high <= most:
            return RIGHT
        may_rise = abs(self.derived - self.wanted) <= self.tolerance and self.high + 0.5 >= least
        if math.isnan(self.mean) or self.grows or (self.high < least and not may_rise):
            return WRONG
        return CANNOT_TELL

    @property
    def needs(self) -> tuple[float, float]:
        """The smallest and the largest width of a check that would tell, if this one cannot.

        The interval must become at most as long as the tolerance: standard errors fall as one over
        the logarithm of the range of widths. If the slope falls by more than its interval, the
        random part of a sum must become small as well. With rms^2 ~ 1 + k / width, the slope is
        -k / (2 (width + k)), which must be half the tolerance at the middle of the widths. The
        mean, at the middle of these widths, gives k.
        """
        first, last = self.span
        falls = min(self.wanted - self.mean, 0.45) if self.high < self.wanted else 0.0
        k = math.sqrt(first * last) * 2 * falls / (1 - 2 * falls)
        start = max(first, k * (1 / self.tolerance - 1) / math.sqrt(last / first))
        longer = min(max(self.noise, 1.0), 100.0)
        return start, max(start * (last / first) ** longer, 2.0 * last)

    @property
    def noise(self) -> float:
        """The length of the interval, as a multiple of the tolerance."""
        return 2 * self.reach * self.error / self.tolerance

    def near(self, value: float) -> bool:
        """Whether the mean is ``value`` within the tolerance, or three standard errors if these are
        larger; always true if the rms is always zero."""
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
    """The measurements of a site; ``init_rms`` and ``change_rms`` have shape (seeds, widths).

    Attributes:
        init: the slope of the output's rms at init.
        change: the slope of the rms of the output's change.
        faults: what is wrong at this site itself.
        after: the sites with faults that feed this one.
    """

    init_rms: Array
    change_rms: Array
    init: Slope
    change: Slope
    faults: tuple[Fault, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worse one of both slopes; wrong if the site has a fault."""
        verdicts = {self.init.verdict, self.change.verdict}
        if self.faults or WRONG in verdicts:
            return WRONG
        return CANNOT_TELL if CANNOT_TELL in verdicts else RIGHT

    @property
    def affected(self) -> bool:
        """Whether the verdict is wrong."""
        return self.verdict == WRONG

    @property
    def widths(self) -> tuple[int, int] | None:
        """The smallest and the largest width of a check that would tell, if this one cannot."""
        if self.verdict != CANNOT_TELL:
            return None
        needed = [s.needs for s in (self.init, self.change) if s.verdict == CANNOT_TELL]
        first, last = (2 ** math.ceil(math.log2(max(ends))) for ends in zip(*needed, strict=True))
        return first, last

    @property
    def text(self) -> str:
        """Describes the change, and before it the output at init unless that is right."""
        if not self.init_rms.any() and not self.change_rms.any():
            return "not measured"
        plain = self.init.verdict == RIGHT and self.init.mean != -math.inf
        return str(self.change) if plain else f"init {self.init}, {self.change}"

    def as_dict(self) -> dict[str, Any]:
        """Lists and numbers for JSON; numbers that are not finite become None."""
        slopes = {"init": vars(self.init), "change": vars(self.change)}
        rms = {"init_rms": self.init_rms.tolist(), "change_rms": self.change_rms.tolist()}
        told = {"verdict": self.verdict, "text": self.text, "widths": self.widths}
        causes = {"faults": [fault._asdict() for fault in self.faults], "after": list(self.after)}
        return {**told, **causes, **_for_json(slopes), **_for_json(rms)}


def init_slopes(
    graph: Graph, exponents: Mapping[str, Exponents], contracted: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """The derived and the wanted slopes s of the rms at init, by site.

        embedding    s = s_in - a - b
        other        s = s_in - a - b + n / 2          (a random sum; n is 1 if its terms are width)
        tied         s = s_in - a - b + n               (a token's row meets itself)
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
        e = exponents[node.site]
        s_in = sum(s[operand] for operand in node.operands if operand is not None)
        adds_up = 0.5 if node.owner == node.site else 1.0
        if node.layer_type == "embedding" and node.has_weight:
            adds_up = 0.0
        s[name] = s_in - e.a - (e.b if node.has_weight else 0.0) + adds_up * contracted[node.site]
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
    span = (min(widths), max(widths))
    return Slope(mean, error, derived, wanted, tolerance, students_t(len(rms)), span)


@cache
def students_t(seeds: int) -> float:
    """Half the length of the interval of a mean over seeds, in standard errors: Student's t."""
    # With t = tan(x) sqrt(freedom), the density of x is cos(x)^(freedom - 1).
    freedom = seeds - 1
    x = np.linspace(0, math.pi / 2, 10_001)
    density = np.cos((x[1:] + x[:-1]) / 2) ** (freedom - 1)
    mass = np.concatenate([[0.0], np.cumsum(density)])
    return float(np.tan(np.interp(_LEVEL * mass[-1], mass, x)) * math.sqrt(freedom))


def _for_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _for_json(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(v) for v in value]
    return value if math.isfinite(value) else None
