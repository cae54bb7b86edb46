"""The lr basin: over how many decades of lr a method stays close to its best loss.

The mean loss L is interpolated linearly in x = log10 lr between the lrs that were run. The basin
is the connected interval around the best lr on which L <= L_best + tolerance. On each side it ends
where a segment crosses that level, at

    x = x_in + (L_best + tolerance - L_in) / (L_out - L_in) * (x_out - x_in)

where "in" is the last lr inside and "out" the first outside. Special cases:

- The loss is infinite at an lr at which any seed diverged. The basin then ends at x_in, the last
  lr that is known to train, and that end is "diverged".
- The basin may continue beyond the end of the grid, and beyond an lr that has no finished run.
  That end is "open", and the width is a lower bound (written >=).
- The interpolation skips lrs that this method was not run at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOLERANCE = 0.05
"""Nats per token above the best loss."""

End = Literal["crossed", "diverged", "open"]


@dataclass(frozen=True)
class Basin:
    """The interval [low, high] of learning rates, and why each side ends there."""

    low: float
    high: float
    low_end: End
    high_end: End

    @property
    def decades(self) -> float:
        return math.log10(self.high / self.low)

    @property
    def lower_bound(self) -> bool:
        """Whether the width is only a lower bound."""
        return "open" in (self.low_end, self.high_end)


def basin(
    lrs: Sequence[float], losses: Sequence[float], best: int, tolerance: float = TOLERANCE
) -> Basin:
    """The basin around ``lrs[best]``.

    Args:
        lrs: the learning rates that the method was run at, positive and ascending.
        losses: the mean loss at each, nats per token; inf if a seed diverged, NaN if no run has
            finished.
        best: index of the best lr; its loss is finite.
        tolerance: nats per token.
    """
    low, low_end = _edge(lrs, losses, range(best, -1, -1), tolerance)
    high, high_end = _edge(lrs, losses, range(best, len(lrs)), tolerance)
    return Basin(low, high, low_end, high_end)


def _edge(
    lrs: Sequence[float], losses: Sequence[float], outwards: Sequence[int], tolerance: float
) -> tuple[float, End]:
    """Where the basin ends on one side; ``outwards`` are the indices, starting at the best."""
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
