"""Reads all runs below a folder into one table."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from train.results.axes import Varying, base_scale
from train.run import tail
from train.run.folder import (
    CONFIG,
    FINISHED,
    METRICS,
    STATUS,
    RunFolderError,
    describe_status,
    ended_at,
    load_run,
)
from train.run.process import vanished
from train.run.summary import COORDINATES, SUMMARY, SummaryError, read_summary
from train.run.tail import COUNTS, Tail

log = logging.getLogger(__name__)

UNREADABLE = "unreadable"
"""State of a folder with a config.json that is not a readable run."""

VANISHED = "vanished"
"""State of a run whose status.json says "running", but whose process on this machine is gone."""

_NUMBERS = (
    *("lr", "parameters", "validation", "accuracy", "train", "loss", "step"),
    *("tokens", "tokens_per_second", *COUNTS),
)
COLUMNS = (
    *(
        "path",
        *COORDINATES,
        "base_scale",
        "axes",
        "parameters",
        "state",
        "description",
        "validation",
        "accuracy",
        "train",
        "loss",
    ),
    *("step", "tokens", "tokens_per_second", "skipped_lines", "bad_summary", "updated"),
    "made_with",
    *COUNTS,
)


def collect(*folders: str | os.PathLike[str]) -> pd.DataFrame:
    """One row per run below the folders, whatever its state.

    Columns:
        path: the run's folder.
        scale, method, lr, seed, steps: from its configuration.
        base_scale: from its configuration; "none" if it has no base model.
        axes: the settings that tell its runs apart from others of the same scale, method and
            steps, by name; see `axes.Varying`.
        parameters: number of parameters; NaN if the run has no summary.
        state: as in status.json; "no status" if there is none, "vanished" if its process is gone,
            and "unreadable" if config.json or status.json is corrupt.
        description: the state in words, with its reason.
        validation, train: the two metrics, nats per token or image; NaN unless the run is
            completed.
        accuracy: of the validation, in [0, 1]; NaN for text, or unless the run is completed.
        loss, step, tokens, tokens_per_second: as last logged, see `tail.Tail`.
        skipped_lines: number of corrupt lines in its metrics.
        bad_summary: why its summary cannot be used; empty if it can.
        updated: time of its status, ISO 8601, UTC.
        made_with: the commit of its code and the versions of its packages, by name.
        refused, zero_terms, bounded, infeasible, skipped_images: the counts of `tail.COUNTS`;
            NaN for none.
    """
    runs = [run for folder in folders for run in _runs_below(folder)]
    progress = tqdm(runs, desc="runs", unit="run", delay=1, leave=False, disable=None)
    varying = Varying()
    rows = [read_run(Path(path), varying) | {"path": path} for path in progress]
    points = iter(varying.points())
    rows = [row | {"axes": {} if row["state"] == UNREADABLE else next(points)} for row in rows]
    types: dict[str, type] = dict.fromkeys(_NUMBERS, float) | {"skipped_lines": int}
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(types)


def _runs_below(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The folders that hold a config.json, ordered by name."""

    def unlisted(error: OSError) -> None:
        log.warning("%s cannot be listed (%s): skipped", error.filename, error.strerror)

    walked: set[str] = set()
    # A run that was moved to another disk has a link in its place; links may form circles.
    for path, folders, files in os.walk(folder, onerror=unlisted, followlinks=True):
        if (place := os.path.realpath(path)) in walked:
            folders.clear()
            continue
        walked.add(place)
        folders.sort()
        if CONFIG in files:
            yield path
            # A run's checkpoints hold thousands of files and no runs: do not search them. A
            # config.json alone may belong to a model, and the runs may be below it.
            if not {SUMMARY, STATUS, METRICS}.isdisjoint(files):
                folders.clear()


def read_run(folder: Path, varying: Varying) -> dict[str, Any]:
    """The row of one run, None for a number that does not exist; without its path and axes.

    Adds the configuration of a readable run to ``varying``.
    """
    row: dict[str, Any] = dict.fromkeys(COLUMNS) | {"skipped_lines": 0, "bad_summary": ""}
    try:
        run = load_run(folder, metrics=False)
        row |= {key: run.config[key] for key in COORDINATES}
        row |= {"scale": str(row["scale"]), "method": str(row["method"]), "lr": float(row["lr"])}
        if not 0 < row["lr"] < math.inf:
            raise ValueError
        state = run.status.get("state", "no status")
        state = VANISHED if vanished(run.status) else state
        row |= {"state": state, "description": describe_status(run.status)}
        row |= {"updated": run.status.get("updated"), "base_scale": base_scale(run.config)}
        stopped = ended_at(run.status)
        numbers, parameters, row["bad_summary"] = _numbers(folder, state, stopped)
    except (RunFolderError, OSError) as error:
        return row | {"state": UNREADABLE, "lr": None, "description": str(error)}
    except (KeyError, TypeError, ValueError):
        keys = ", ".join(COORDINATES)
        reason = f"{folder / CONFIG} lacks one of {keys}, or its lr is not a positive number"
        return row | {"state": UNREADABLE, "lr": None, "description": reason}
    varying.add(run.config)
    row["made_with"] = _made_with(run.config)
    row |= vars(numbers) | {"parameters": parameters}
    if state != "completed":
        row |= {"validation": None, "accuracy": None, "train": None}
    if stopped is not None:  # for a run that diverged: the step at which it did
        row["step"] = stopped
    return row


def _made_with(config: Mapping[str, Any]) -> dict[str, str]:
    """The first seven digits of the commit, and whether it was changed; the versions. Those that
    a configuration lacks are left out."""
    commit, versions = config.get("git_commit"), config.get("versions")
    found = {"commit": commit[:7] + "+dirty" * commit.endswith("+dirty")} if commit else {}
    return found | (versions if isinstance(versions, dict) else {})


def _numbers(folder: Path, state: str, end: int | None) -> tuple[Tail, int | None, str]:
    """A run's numbers, its number of parameters, and why its summary cannot be used."""
    if state not in FINISHED:
        return tail.latest(folder / METRICS), None, ""
    problem = ""
    try:
        summary = read_summary(folder, state)
    except SummaryError as error:
        log.warning("%s: reading its metrics instead", error)
        summary, problem = None, str(error)
    if summary is not None:
        return *summary, ""
    numbers = tail.final(folder / METRICS, end)
    if numbers.skipped_lines:
        log.warning("%s: %d corrupt lines skipped", folder / METRICS, numbers.skipped_lines)
    return numbers, None, problem
