"""The loss table of the runs below a folder: rows lr, columns method, one table a scale.

``python -m train.table RUNS_DIR`` prints it. ``collect`` reads, ``loss_table`` computes, ``render``
writes; none of them needs torch.
"""

from __future__ import annotations

import logging
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import tyro

from train.run_folder import (
    CONFIG,
    FINISHED,
    METRICS,
    RunFolderError,
    describe_status,
    load_run,
    parse_record,
)

log = logging.getLogger(__name__)

Metric = Literal["validation", "train"]
Format = Literal["text", "markdown"]

METHODS = ("maxP", "mup-full", "mup-no", "maxP-frozen", "sp")
"""Order of the columns; methods of other names follow alphabetically."""
TRAIN_STEPS = 200
"""The training metric is the mean of the losses logged in this many last steps."""
TITLES: dict[Metric, str] = {
    "validation": "validation loss at the end",
    "train": f"training loss, mean of the last {TRAIN_STEPS} steps",
}

_RUN = ("scale", "method", "lr", "seed", "steps")  # keys of a run's configuration
_COLUMNS = ("path", *_RUN, "state", "description", "validation", "train", "skipped_lines")
_UNREADABLE = "unreadable"
_SHOWN = 3  # folders named in a note
_BLOCK = 1 << 20  # bytes read at a time from the end of a metrics file


def collect(folder: str | os.PathLike[str]) -> pd.DataFrame:
    """One row for every run below ``folder``, whatever its state.

    Columns: path, scale, method, lr, seed, steps, state ("no status" before it has one), its
    description in words, the two metrics (NaN unless the run is completed and has them) and the
    number of corrupt lines of metrics met. A folder whose config.json is not that of a run, or
    whose status is corrupt, has the state "unreadable" and the reason as its description.
    """

    def unlisted(error: OSError) -> None:
        log.warning("%s cannot be listed (%s): skipped", error.filename, error.strerror)

    rows = []
    for path, subfolders, files in os.walk(folder, onerror=unlisted):
        subfolders.sort()
        if CONFIG in files:
            rows.append(_row(Path(path)))
            if rows[-1]["state"] != _UNREADABLE:
                subfolders.clear()  # checkpoints hold thousands of files, and no runs
    numbers = {"lr": float, "validation": float, "train": float, "skipped_lines": int}
    return pd.DataFrame(rows, columns=list(_COLUMNS)).astype(numbers)


def loss_table(runs: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The table's cells, one row for each scale, lr and method that has runs.

    Columns: scale, lr, method, mean and std (sample standard deviation over seeds, NaN for one
    seed) of ``metric``, finished (runs in the mean), diverged, runs, and best: True at the lowest
    mean of a scale and method. An lr at which a seed diverged is never best, however good the
    seeds that survived.
    """
    readable = runs[runs["state"] != _UNREADABLE]
    cells = (
        readable.assign(diverged=readable["state"] == "diverged")
        .groupby(["scale", "lr", "method"], as_index=False)
        .agg(
            mean=(metric, "mean"),
            std=(metric, "std"),
            finished=(metric, "count"),
            diverged=("diverged", "sum"),
            runs=("diverged", "size"),
        )
    )
    candidates = cells[(cells["diverged"] == 0) & cells["mean"].notna()]
    best = candidates.groupby(["scale", "method"])["mean"].idxmin()
    return cells.assign(best=cells.index.isin(best))


def render(runs: pd.DataFrame, metric: Metric, style: Format = "text") -> str:
    """The tables of all scales in ``runs`` with what a reader must know under each."""
    table = loss_table(runs, metric)
    heading, bullet = ("### ", "- ") if style == "markdown" else ("", "")
    blocks: list[str] = []
    for scale in sorted(table["scale"].unique(), key=_natural):
        cells = table[table["scale"] == scale]
        legend = "* best lr"
        if cells["std"].notna().any():
            legend += ", ± standard deviation over seeds"
        title = f"{scale}: {TITLES[metric]} ({legend})"
        notes = [*_best_lines(cells), *_run_notes(runs[runs["scale"] == scale], metric)]
        blocks += [heading + title, "\n".join(_grid(_texts(cells), style))]
        blocks += ["\n".join(bullet + note for note in notes)]
    unreadable = runs.loc[runs["state"] == _UNREADABLE, "description"]
    if len(unreadable):
        blocks.append(f"{bullet}folders that are no readable runs: {_named(unreadable)}")
    return "\n\n".join(blocks)


def _row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {"path": str(folder), "skipped_lines": 0}
    try:
        run = load_run(folder, metrics=False)
        row |= {key: run.config[key] for key in _RUN}
        row |= {"scale": str(row["scale"]), "method": str(row["method"]), "lr": float(row["lr"])}
        state = run.status.get("state", "no status")
        row |= {"state": state, "description": describe_status(run.status)}
        return row | (_final_metrics(folder / METRICS) if state == "completed" else {})
    except (RunFolderError, OSError) as error:
        return row | {"state": _UNREADABLE, "lr": None, "description": str(error)}
    except (KeyError, TypeError, ValueError):
        reason = f"{folder / CONFIG} lacks one of {', '.join(_RUN)}, or its lr is no number"
        return row | {"state": _UNREADABLE, "lr": None, "description": reason}


def _final_metrics(file: Path) -> dict[str, float | int]:
    """Both metrics from the last lines of ``file``, of which no more are parsed than that takes."""
    validation: float | None = None
    losses: list[float] = []
    start: float | None = None  # the step after which the training losses count
    whole_window = False
    skipped = 0
    for line in _lines_from_end(file):
        if whole_window and b'"validation_loss"' not in line:
            continue
        record = parse_record(line)
        step = _number((record or {}).get("step"))
        if record is None or math.isnan(step):
            skipped += 1
            continue
        if validation is None and "validation_loss" in record:
            validation = _number(record["validation_loss"])
        if "loss" in record and not whole_window:
            start = step - TRAIN_STEPS if start is None else start
            whole_window = step <= start
            if not whole_window:
                losses.append(_number(record["loss"]))
        if whole_window and validation is not None:
            break
    if skipped:
        log.warning("%s: %d corrupt lines skipped", file, skipped)
    return {
        "validation": math.nan if validation is None else validation,
        "train": sum(losses) / len(losses) if losses else math.nan,
        "skipped_lines": skipped,
    }


def _lines_from_end(file: Path) -> Iterator[bytes]:
    """The non-empty lines of ``file``, last first, without reading the file whole."""
    if not file.exists():
        return
    with file.open("rb") as stream:
        position = stream.seek(0, os.SEEK_END)
        cut = b""  # the end of a line whose beginning lies in the block before
        while position > 0:
            size = min(_BLOCK, position)
            position = stream.seek(position - size)
            cut, *lines = (stream.read(size) + cut).split(b"\n")
            yield from filter(None, reversed(lines))
        if cut:
            yield cut


def _number(value: Any) -> float:
    """``value`` as a finite number, NaN for anything else."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan


def _texts(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one scale as text: rows lr ascending, columns methods in order."""
    width = max((len(f"{mean:.4f}") for mean in cells["mean"].dropna()), default=1)

    def text(cell: pd.Series) -> str:
        diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
        if cell["finished"] == 0:
            return diverged or "-"
        parts = [f"{cell['mean']:.4f}".rjust(width)]
        parts += [f"± {cell['std']:.4f}"] if pd.notna(cell["std"]) else []
        parts += [f"({diverged})"] if diverged else []
        parts += ["*"] if cell["best"] else []
        return " ".join(parts)

    texts = cells.assign(text=[text(cell) for _, cell in cells.iterrows()])
    grid = texts.pivot(index="lr", columns="method", values="text")
    return grid.reindex(columns=_ordered(grid.columns)).fillna("-")


def _grid(texts: pd.DataFrame, style: Format) -> list[str]:
    """The lines of a table with all columns padded to their widths."""
    rows = [["lr", *texts.columns]]
    rows += [[_lr(lr), *line] for lr, line in zip(texts.index, texts.to_numpy(), strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    if style == "markdown":
        return [f"| {' | '.join(row)} |" for row in padded]
    return ["   ".join(row).rstrip() for row in padded]


def _best_lines(cells: pd.DataFrame) -> list[str]:
    methods = _ordered(cells["method"].unique())
    width = max(map(len, methods))
    lines = []
    for method in methods:
        column = cells[cells["method"] == method]
        best = column[column["best"]]
        found = "none"
        if len(best):
            found = f"{best['mean'].item():.4f} at lr {_lr(best['lr'].item())}"
        if column["mean"].min() < best["mean"].min() or (best.empty and column["finished"].any()):
            found += " (lower only where a seed diverged)"
        lines.append(f"best {method.ljust(width)}   {found}")
    return lines


def _run_notes(runs: pd.DataFrame, metric: Metric) -> list[str]:
    """What the table of one scale does not show, or mixes."""
    notes = []
    ended = runs["state"].isin(FINISHED)
    if not ended.all():
        counts = runs.loc[~ended, "state"].value_counts(sort=False)
        notes.append(f"not finished: {', '.join(f'{n} {state}' for state, n in counts.items())}")
    completed = runs[runs["state"] == "completed"]
    lacking = completed[completed[metric].isna()]
    if len(lacking):
        notes.append(f"completed without a {metric} loss: {_named(lacking['path'])}")
    corrupt = runs[runs["skipped_lines"] > 0]
    if len(corrupt):
        lines = corrupt["skipped_lines"].sum()
        notes.append(f"corrupt lines of metrics skipped: {lines}, in {_named(corrupt['path'])}")
    averaged = completed[completed[metric].notna()]
    again = averaged[averaged.duplicated(["method", "lr", "seed"], keep=False)]
    if len(again):
        notes.append(f"several runs of one seed, all in its mean: {_named(again['path'])}")
    steps = sorted(averaged["steps"].unique())
    if len(steps) > 1:
        notes.append(f"runs of different lengths: {', '.join(map(str, steps))} steps")
    return notes


def _named(texts: pd.Series) -> str:
    """How many there are, and the first few."""
    shown = "; ".join(texts.iloc[:_SHOWN])
    return f"{len(texts)} ({shown}{'; ...' if len(texts) > _SHOWN else ''})"


def _ordered(methods: Iterable[str]) -> list[str]:
    rank = {method: position for position, method in enumerate(METHODS)}
    return sorted(methods, key=lambda method: (rank.get(method, len(rank)), method))


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key under which s2 precedes s10."""
    return [
        (int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)
    ]


def _lr(lr: float) -> str:
    """0.0003 -> "3e-4"; at most four digits."""
    digits, exponent = f"{lr:.3e}".split("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def main(
    runs_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS_DIR")],
    metric: Metric = "validation",
    format: Format = "text",
    scale: str | None = None,
) -> None:
    """Print the loss tables of all runs below a folder.

    Args:
        runs_dir: Folder below which the runs' folders lie, at any depth.
        metric: The validation loss at the end, or the training loss of the last 200 steps.
        format: Plain text, or Markdown.
        scale: Show this scale only.
    """
    if not runs_dir.is_dir():
        sys.exit(f"RUNS_DIR {runs_dir} is not a folder: give the one that holds the runs")
    runs = collect(runs_dir)
    readable = runs["state"] != _UNREADABLE
    scales = sorted(runs.loc[readable, "scale"].unique(), key=_natural)
    if not scales:
        others = runs["description"]
        why = f"; folders that are no readable runs: {_named(others)}" if len(others) else ""
        sys.exit(f"RUNS_DIR {runs_dir} holds no runs: give a folder above some {CONFIG}{why}")
    if scale is not None and scale not in scales:
        sys.exit(f"--scale {scale}: RUNS_DIR {runs_dir} has only {', '.join(scales)}")
    print(
        render(
            runs if scale is None else runs[~readable | (runs["scale"] == scale)], metric, format
        )
    )


if __name__ == "__main__":
    tyro.cli(main, prog="python -m train.table")
