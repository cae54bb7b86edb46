"""Progress bars that stay readable in a log."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress(iterable: Iterable[Any] | None = None, **options: Any) -> "tqdm[Any]":
    """A `tqdm` bar, redrawn at most every 30 s where stderr is not a terminal."""
    if not sys.stderr.isatty():
        options |= {"mininterval": 30, "maxinterval": 30}
    return tqdm(iterable, **options)
