"""Bounds on the measured alignments that enter the program.

W0 is random, so its operator norm is at most a constant times its typical size, whatever the width
is: align_dZ_w0 is at most 1/2, and what is measured above is log(constant) / log(n). Without the
bound this excess adds up along the residual stream (docs/theory.md, "Bounds").
"""

from typing import NamedTuple

from maxp.exponents import Alignment

Bound = tuple[float, float]


class AlignmentBounds(NamedTuple):
    """The allowed range, (low, high), of each alignment that enters the program.

    The default keeps a measured site between the presets ``"no"`` and ``"full"``.
    """

    z0_dW: Bound = (0.5, 1.0)
    dZ_w0: Bound = (0.0, 0.5)
    dZ_dW: Bound = (0.5, 1.0)


BOUNDS = AlignmentBounds()
"""The default bounds: z0_dW and dZ_dW in [1/2, 1], dZ_w0 in [0, 1/2]."""


POSSIBLE = AlignmentBounds((0.0, 1.0), (0.0, 1.0), (0.0, 1.0))
"""What an alignment of data can be. Estimates of it, and measurements, may lie outside."""


def check_bounds(bounds: AlignmentBounds | None) -> None:
    """Check the argument ``alignment_bounds`` of `maxp.Parametrization`.

    Raises:
        ValueError: a lower bound is not below or at its upper bound; the message names the term.
    """
    for term, (low, high) in {} if bounds is None else bounds._asdict().items():
        if not low <= high:
            raise ValueError(f"alignment_bounds: {term} must be (low, high), got ({low}, {high})")


def bounded(
    alignment: tuple[float, float, float], bounds: AlignmentBounds | None = BOUNDS
) -> Alignment:
    """An alignment with each term moved to the nearest value that its bound allows.

    Args:
        alignment: (z0_dW, dZ_w0, dZ_dW) of a site with a weight, measured or from a table.
        bounds: None changes nothing.
    """
    if bounds is None:
        return Alignment(*alignment)
    pairs = zip(alignment, bounds, strict=True)
    return Alignment(*(min(max(value, low), high) for value, (low, high) in pairs))
