"""Style of the plots: colours for colour-blind readers, and SVG that fits into a page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, GRID = "#1f2329", "#d5d9de"

# Okabe and Ito, "Color Universal Design" (2008); the markers differ for print without colour.
_FIXED = {
    "maxP": ("#0072b2", "o"),
    "mup-full": ("#d55e00", "s"),
    "mup-no": ("#009e73", "^"),
    "maxP-frozen": ("#56b4e9", "D"),
    "sp": ("#cc79a7", "v"),
}
LAYER_TYPES = {
    "embedding": ("#e69f00", ""),
    "hidden": (INK, ""),
    "readout": ("#7f7f7f", "6 3"),
    "attention product": ("#8c6d31", "2 2"),
}
"""Layer type -> (colour, dashes); none is the colour of a method in `METHODS`."""

PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"),
    *("#56b4e9", "#7f7f7f", "#8c6d31", "#332288"),
)
"""Colours for lines that are not methods, in order of use."""

_OTHERS = (("#e69f00", "P"), ("#7f7f7f", "X"), ("#8c6d31", "<"))

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "savefig.dpi": 200,
    "svg.hashsalt": "maxp",  # the same plot gives the same file
}


@contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib's settings to make and save figures with."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def looks(methods: list[str]) -> dict[str, tuple[str, str]]:
    """Method -> (colour, marker); known methods look the same in every plot."""
    others = cycle(_OTHERS)
    return {method: _FIXED.get(method) or next(others) for method in methods}


def panels(
    count: int, *, columns: int = 3, width: float = 4.2, height: float = 3.2
) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes in at most ``columns`` columns; sizes in inches per axes."""
    columns = min(count, columns)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.remove()
    return figure, axes[:count]


def to_bytes(figure: Figure, kind: str) -> bytes:
    """The figure as a "png" or "svg" file."""
    stream = io.BytesIO()
    with drawing():
        no_date = {"Date": None} if kind == "svg" else None
        figure.savefig(stream, format=kind, metadata=no_date)
    return stream.getvalue()


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as an <svg> element with the page's colours and font.

    ``name`` is a prefix that makes its ids unique in the page.
    """
    stream = io.StringIO()
    with drawing(), matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return text.replace(INK, "currentColor").replace(GRID, "var(--line)")
