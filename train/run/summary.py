"""``summary.json``: the numbers of a finished run, so that a table need not read its metrics.

It is only a cache: readers of a summary that is missing, corrupt or older than the metrics use
``metrics.jsonl`` instead.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from train.run import tail
from train.run.files import parse_record, write_whole
from train.run.folder import FINISHED, METRICS, RunFolderError, ended_at, load_run
from train.run.tail import Tail

SUMMARY = "summary.json"
COORDINATES = ("scale", "method", "lr", "seed", "steps")
"""Keys of a run's configuration that place it in a table."""
_VERSION = 2  # of the content; 1 had the mean training loss of the last 200 steps
_TAIL = tuple(field.name for field in fields(Tail))


class SummaryError(Exception):
    """summary.json cannot be used; the message is one line with the file and the reason."""


def write_summary(
    folder: str | os.PathLike[str], *, parameters: int | None = None
) -> dict[str, Any]:
    """Write summary.json of a finished run; returns its content.

    Args:
        folder: of the run.
        parameters: number of parameters of the model.

    Raises:
        RunFolderError: the folder holds no run, or its run is neither completed nor diverged.
        OSError: the file cannot be written.
    """
    run = load_run(folder, metrics=False)
    state = run.status.get("state")
    if state not in FINISHED:
        raise RunFolderError(f"{run.path} has no result yet ({state or 'no status'}): run it first")
    content = {
        "version": _VERSION,
        **{key: run.config.get(key) for key in COORDINATES},
        "parameters": parameters,
        "state": state,
        **asdict(tail.final(run.path / METRICS, ended_at(run.status))),
        "metrics_bytes": _size(run.path / METRICS),
    }
    write_whole(run.path / SUMMARY, json.dumps(content, indent=2) + "\n")
    return content


def read_summary(folder: Path, state: str) -> tuple[Tail, int | None] | None:
    """A finished run's numbers and number of parameters; None without an up-to-date summary.

    A summary is out of date if its state is not ``state`` or if the metrics grew after it was
    written. It stays valid if the metrics were deleted to save space.

    Raises:
        SummaryError: the file exists, and is corrupt, cannot be read, or is of another version and
            the metrics are gone.
    """
    file = folder / SUMMARY
    try:
        content = parse_record(file.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SummaryError(f"{file} cannot be read ({error.strerror})") from error
    if content is None:
        raise SummaryError(f"{file} is corrupt (not a JSON object)")
    size = _size(folder / METRICS)
    if content.get("version") != _VERSION:
        if size is None:
            raise SummaryError(f"{file} is of another version, and there is no {METRICS}")
        return None
    if content.get("state") != state or size not in (None, content.get("metrics_bytes")):
        return None
    values = {key: content.get(key) for key in (*_TAIL, "parameters")}
    for key, value in values.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise SummaryError(f"{file} is corrupt ({key} is {value!r})")
    parameters = values.pop("parameters")
    if values["skipped_lines"] is None:
        raise SummaryError(f"{file} is corrupt (no skipped_lines)")
    return Tail(**values), parameters  # type: ignore[arg-type]


def _size(file: Path) -> int | None:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return None
