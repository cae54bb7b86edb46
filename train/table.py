"""``python -m train.table RUNS_DIR``: the loss tables of the runs below a folder.

Rows lr, columns method, one table a scale; the work is in ``train.results``. No torch here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from train.results.collect import UNREADABLE, collect
from train.results.formats import render
from train.results.names import Format, Metric, named, natural
from train.run.files import write_whole
from train.run.folder import CONFIG


def main(
    runs_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS_DIR")],
    metric: Metric = "validation",
    format: Format = "text",
    scale: str | None = None,
    to: Path | None = None,
) -> None:
    """Print the loss tables of all runs below a folder.

    Args:
        runs_dir: Folder below which the runs' folders lie, at any depth.
        metric: The validation loss at the end, or the mean training loss over the
            last 10% of the steps.
        format: Plain text, Markdown, CSV or JSON (full precision), or LaTeX (booktabs).
        scale: Show this scale only.
        to: Write into this file instead of printing.
    """
    if not runs_dir.is_dir():
        sys.exit(f"RUNS_DIR {runs_dir} is not a folder: give the one that holds the runs")
    runs = collect(runs_dir)
    readable = runs["state"] != UNREADABLE
    scales = sorted(runs.loc[readable, "scale"].unique(), key=natural)
    if not scales:
        others = runs["description"]
        why = f"; folders that are no readable runs: {named(others)}" if len(others) else ""
        sys.exit(f"RUNS_DIR {runs_dir} holds no runs: give a folder above some {CONFIG}{why}")
    if scale is not None and scale not in scales:
        sys.exit(f"--scale {scale}: RUNS_DIR {runs_dir} has only {', '.join(scales)}")
    shown = runs if scale is None else runs[~readable | (runs["scale"] == scale)]
    text = render(shown, metric, format)
    if to is None:
        print(text)
        return
    try:
        write_whole(to, text + "\n")
    except OSError as error:
        sys.exit(f"--to {to} cannot be written ({error.strerror}): choose another file")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m train.table")
