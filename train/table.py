"""``python -m train.table RUNS_DIR``: the loss tables of the runs below a folder.

One table per scale: rows are learning rates, columns methods. ``train.results`` does the work.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

from train.results.analysis import Results
from train.results.collect import UNREADABLE, collect
from train.results.formats import write
from train.results.names import Format, Metric, named, scales_in_order
from train.results.notes import every_note
from train.run.files import write_whole


def main(
    runs_dir: Annotated[Path, Positional, arg(metavar="RUNS_DIR")],
    metric: Metric = "validation",
    format: Format = "text",
    scale: Annotated[str | None, arg(metavar="SCALE", help_behavior_hint="(default: all)")] = None,
    to: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
) -> None:
    """Print the loss tables of all runs below a folder.

    For example: python -m train.table runs/debug --format latex --to table.tex

    Args:
        runs_dir: Folder to search for runs, at any depth.
        metric: The final validation loss, or the mean training loss over the last 10% of the steps.
        format: Plain text, Markdown, CSV and JSON with full precision, or LaTeX with booktabs.
            Notes on the runs go to stderr for CSV and LaTeX.
        scale: Show only this scale.
        to: Write to this file instead of printing.
    """
    if not runs_dir.is_dir():
        sys.exit(f"RUNS_DIR {runs_dir} is not a folder: pass the folder that holds the runs")
    runs = collect(runs_dir)
    readable = runs["state"] != UNREADABLE
    scales = scales_in_order(runs[readable])
    if not scales:
        others = runs["description"]
        why = f"; unreadable folders: {named(others)}" if len(others) else ""
        sys.exit(f"RUNS_DIR {runs_dir} holds no runs: pass a folder that contains runs{why}")
    if scale is not None and scale not in scales:
        sys.exit(f"--scale {scale}: RUNS_DIR {runs_dir} has only {', '.join(scales)}")
    shown = runs if scale is None else runs[~readable | (runs["scale"] == scale)]
    results = Results.of(shown, metric)
    text = write(results, format)
    if format in ("csv", "latex"):
        for note in every_note(results):
            print(f"note: {note}", file=sys.stderr)
    if to is None:
        print(text)
        return
    try:
        write_whole(to, text + "\n")
    except OSError as error:
        sys.exit(f"--to {to} cannot be written ({error.strerror}): pass another file")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m train.table")
