"""The minimum of a parabola through three points of a curve."""

import numpy as np


def minimum(x: np.ndarray, y: np.ndarray) -> float:
    """The x at the minimum of a parabola through the smallest y and its two neighbours.

    At an end of the curve, or next to a y that is not finite, it is the x of the smallest y.
    """
    at = int(np.argmin(y))
    around = slice(at - 1, at + 2)
    if at in (0, len(x) - 1) or not np.isfinite(y[around]).all():
        return float(x[at])
    second, first, _ = np.polyfit(x[around] - x[at], y[around], 2)
    return float(x[at] - first / (2 * second))
