"""A run's folder, the only record of a run.

``config.json`` identifies the experiment, ``metrics.jsonl`` holds one JSON object per line, and
``status.json`` says how far the run got. TensorBoard's files are in ``tb/``, checkpoints in
``checkpoint/``. Nothing here imports torch, so that commands that read results start fast.
"""

from __future__ import annotations

import logging
import os
import socket
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from train.run.files import parse_record, temporary, to_json, write_whole
from train.run.identity import differences, identity
from train.run.metrics_log import MetricsLog
from train.run.process import vanished
from train.run.provenance import git_commit, hardware, versions

log = logging.getLogger(__name__)

CONFIG = "config.json"
METRICS = "metrics.jsonl"
STATUS = "status.json"
JOB = "job.json"
"""The job of a sweep that the run belongs to; the `slurm` package writes it."""

State = Literal["queued", "running", "preempted", "completed", "diverged", "failed"]
FINISHED: tuple[State, ...] = ("completed", "diverged")
"""States that count as results: such a run is not started again."""

_DIFFERENCES_SHOWN = 3


class RunFolderError(Exception):
    """The folder cannot be used or read; the message is one line with the remedy."""


@dataclass(frozen=True)
class RunRecord:
    """What a run's folder holds: ``metrics`` are the records of metrics.jsonl in file order."""

    path: Path
    config: dict[str, Any]
    status: dict[str, Any]
    """Content of status.json; empty if there is none yet."""
    metrics: list[dict[str, Any]]
    skipped_lines: int
    """Lines of metrics.jsonl that were not JSON objects."""


class RunFolder:
    """The folder of one run, as the process that runs it sees it."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def claim(self, config: Mapping[str, Any]) -> Literal["new", "completed", "resumable"]:
        """Claim the folder for the run of ``config``; create the folder if needed.

        Returns:
            "new" to the one caller that creates the run; "completed" if the same run already has a
            result (completed or diverged); otherwise "resumable". Another process may be running a
            resumable run: the caller must check.

        Raises:
            RunFolderError: the folder holds the run of another configuration, foreign files, or a
                run with corrupt files. Nothing is overwritten.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            created = self._create_config(config)
        except OSError as error:
            raise RunFolderError(
                f"--output-dir {self.path} cannot be used ({error.strerror}): choose another one"
            ) from error
        if created:
            return "new"
        different = differences(read_config_file(self.path)["config"], config)
        if different:
            hidden = len(different) - _DIFFERENCES_SHOWN
            more = f"; and {hidden} more" if hidden > 0 else ""
            raise RunFolderError(
                f"--output-dir {self.path} holds the run of another configuration "
                f"({'; '.join(different[:_DIFFERENCES_SHOWN])}{more}): "
                "choose another --output-dir, or move that folder away"
            )
        return "completed" if read_status(self.path).get("state") in FINISHED else "resumable"

    def _create_config(self, config: Mapping[str, Any]) -> bool:
        """Write config.json unless it exists; True for the one process that writes it."""
        target = self.path / CONFIG
        names = os.listdir(self.path)
        # A sweep writes a run's status and job before its config; the names that begin with a dot
        # are those of processes that are writing.
        ours = {STATUS, JOB, ".lock"}
        foreign = [
            name
            for name in names
            if name not in ours and not name.startswith((f".{CONFIG}.", f".{STATUS}.", f".{JOB}."))
        ]
        # Checked after the listing: files that a concurrent claim adds later do not look foreign.
        if target.exists():
            return False
        if foreign:
            raise RunFolderError(
                f"--output-dir {self.path} is not empty ({min(foreign)}, ...) and holds no run: "
                "choose another --output-dir, or an empty folder"
            )
        content = {
            "identity": identity(config),
            "id": uuid.uuid4().hex[:8],  # the same experiment in another folder has another one
            "config": config,
            "versions": versions(),
            "git_commit": git_commit(),
            "hardware": hardware(),  # of the first start
        }
        with temporary(target, to_json(content, indent=2) + "\n") as file:
            try:
                os.link(file, target)  # atomic; fails if the file exists
            except FileExistsError:
                return False
        return True

    def set_status(
        self, state: State, *, step: int | None = None, reason: str | None = None
    ) -> None:
        """Replace status.json; that of a running run also names its host and process."""
        if state not in get_args(State):
            raise ValueError(
                f"unknown state {state!r}, expected one of {', '.join(get_args(State))}"
            )
        status: dict[str, Any] = {"state": state, "step": step, "reason": reason}
        status["updated"] = datetime.now(UTC).isoformat(timespec="seconds")
        if state == "running":
            process = psutil.Process()
            status |= {"host": socket.gethostname(), "pid": process.pid}
            status["started"] = process.create_time()  # another process may get this id later
        write_whole(self.path / STATUS, to_json(status, indent=2) + "\n")

    def describe(self) -> str:
        """The state in words, e.g. "diverged at step 12"."""
        return describe_status(read_status(self.path))

    def metrics(self) -> MetricsLog:
        """The run's metrics file, for writing."""
        return MetricsLog(self.path / METRICS)


def load_run(path: str | os.PathLike[str], *, metrics: bool = True) -> RunRecord:
    """Read a run's folder, without its metrics if ``metrics=False``.

    A corrupt line of metrics is skipped, counted and logged.

    Raises:
        RunFolderError: the folder holds no run, or its config.json or status.json is corrupt.
    """
    folder = Path(path)
    config, status = read_config_file(folder)["config"], read_status(folder)
    records: list[dict[str, Any]] = []
    skipped = 0
    file = folder / METRICS
    if metrics and file.exists():
        for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
            record = parse_record(line) if line else {}
            if record is None:
                log.warning("%s line %d is not a JSON object: skipped", file, number)
                skipped += 1
            elif line:
                records.append(record)
    return RunRecord(folder, config, status, records, skipped)


def ended_at(status: Mapping[str, Any]) -> int | None:
    """The step in a status.json, None if it names none."""
    step = status.get("step")
    return step if isinstance(step, int) else None


def describe_status(status: Mapping[str, Any]) -> str:
    """The content of a status.json in words, e.g. "failed at step 12: out of memory"."""
    gone = vanished(status)
    words = "vanished" if gone else str(status.get("state", "no status yet"))
    if status.get("step") is not None:
        words += f" at step {status['step']}"
    if status.get("reason"):
        words += f": {' '.join(str(status['reason']).split())}"
    return f"{words}: its process is gone" if gone else words


def read_config_file(folder: Path) -> dict[str, Any]:
    """Content of a run's config.json: the ``config``, its ``identity``, the folder's ``id``, ...

    Raises:
        RunFolderError: the folder holds no run, or its config.json is corrupt.
    """
    remedy = "restore it, or choose another --output-dir"
    content = _read_object(folder / CONFIG, remedy)
    if not isinstance(content.get("config"), dict):
        raise RunFolderError(f"{folder / CONFIG} is not the configuration of a run: {remedy}")
    return content


def read_status(folder: Path) -> dict[str, Any]:
    """Content of a run's status.json; empty if there is none. Raises as `load_run`."""
    file = folder / STATUS
    if not file.exists():
        return {}
    remedy = "remove that file to resume the run of --output-dir"
    status = _read_object(file, remedy)
    if status.get("state") not in get_args(State):
        raise RunFolderError(f"{file} is corrupt (state {status.get('state')!r}): {remedy}")
    return status


def _read_object(file: Path, remedy: str) -> dict[str, Any]:
    try:
        content = parse_record(file.read_bytes())
    except OSError as error:
        raise RunFolderError(f"{file} cannot be read ({error.strerror}): {remedy}") from error
    if content is None:
        raise RunFolderError(f"{file} is corrupt (not a JSON object): {remedy}")
    return content
