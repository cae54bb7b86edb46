"""The lr basin: over how many decades of lr a method stays close to its best loss.

The mean loss L is taken as piecewise linear in x = log10 lr between the lrs that were run. The
basin is the connected interval around the best lr on which L <= L_best + tolerance: going outwards
from the best, it ends where a segment crosses that level, at

    x = x_in + (L_best + tolerance - L_in) / (L_out - L_in) * (x_out - x_in)

with "in" the last lr inside and "out" the first outside. Decided for what the formula leaves open:

- An lr at which any seed diverged counts as infinite: the crossing is then at x_in itself, the last
  lr that is known to train. That end is marked "diverged".
- Where the grid ends inside, or the next lr has runs of which none has finished, the basin may go
  on: that end is "open", and the width a lower bound (written >=).
- An lr that this method was not run at is not part of its grid, and is interpolated across.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOLERANCE = 0.05
"""Nats a token above the best loss."""

End = Literal["crossed", "diverged", "open"]


@dataclass(frozen=True)
class Basin:
    """The interval [low, high] of learning rates, and how each of its ends is known."""

    low: float
    high: float
    low_end: End
    high_end: End

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)

    @property
    def lower_bound(self) -> bool:
        """Whether the width is a lower bound only."""
        return "open" in (self.low_end, self.high_end)


def basin(
    lrs: Sequence[float], losses: Sequence[float], best: int, tolerance: float = TOLERANCE
) -> Basin:
    """The basin around ``lrs[best]``.

    Args:
        lrs: ascending and positive, those that this method was run at.
        losses: mean loss at each, nats a token; inf where a seed diverged, NaN where none finished.
        best: index of the best, whose loss is finite.
        tolerance: nats a token.
    """
    low, low_end = _edge(lrs, losses, range(best, -1, -1), tolerance)
    high, high_end = _edge(lrs, losses, range(best, len(lrs)), tolerance)
    return Basin(low, high, low_end, high_end)


def _edge(
    lrs: Sequence[float], losses: Sequence[float], outwards: Sequence[int], tolerance: float
) -> tuple[float, End]:
    """Where the basin ends on one side; ``outwards`` are the indices from the best on."""
    inside = outwards[0]
    level = losses[inside] + tolerance
    for outside in outwards[1:]:
        loss = losses[outside]
        if math.isnan(loss):
            return lrs[inside], "open"
        if math.isinf(loss):
            return lrs[inside], "diverged"
        if loss > level:
            part = (level - losses[inside]) / (loss - losses[inside])
            return lrs[inside] * (lrs[outside] / lrs[inside]) ** part, "crossed"
        inside = outside
    return lrs[inside], "open"
