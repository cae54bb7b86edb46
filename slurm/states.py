"""The state of each run of a sweep, from its folder, its job's record and Slurm's queue."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from slurm import squeue
from slurm.ledger import JobRecord, SweepFolder
from slurm.squeue import QueueEntry
from slurm.sweep import RunSpec
from train.run.folder import STATUS, RunFolderError, read_status
from train.run.process import Process, process_of

_TAIL_BYTES = 64 << 10
# The last line of a traceback, also with the rank that torch puts before it.
_ERROR = re.compile(r"error: |^(\[\w+\]: ?)?[\w.]*Error(:|$)")
_FOLLOWS = re.compile(r"^srun: |training ended with status \d")
_TOKEN = re.compile(r"[0-9a-f]{12}")


class State(StrEnum):
    """State of a run, from the best to the worst."""

    COMPLETED = "completed"
    DIVERGED = "diverged"
    RUNNING = "running"
    QUEUED = "queued"
    MISSING = "missing"
    """It was never submitted."""
    CANCELLED = "cancelled"
    VANISHED = "vanished"
    """Its job disappeared before the run ended: it was killed, or its node died."""
    FAILED = "failed"
    UNREADABLE = "unreadable"
    """Its status file is corrupt."""


RESULTS = frozenset({State.COMPLETED, State.DIVERGED})
ACTIVE = frozenset({State.RUNNING, State.QUEUED})


@dataclass(frozen=True)
class Standing:
    """A run and its state.

    Attributes:
        step: the last known step; None before the run begins.
        detail: why it is waiting, failed or vanished.
        record: its job, if it has one.
        entry: its job in Slurm's queue, if it is there.
        status: the content of its status.json.
    """

    run: RunSpec
    state: State
    step: int | None
    detail: str
    record: JobRecord | None
    entry: QueueEntry | None
    status: dict[str, Any]


def survey(folder: SweepFolder, runs: Iterable[RunSpec]) -> list[Standing]:
    """The state of every run, in the order given.

    Raises:
        squeue.QueueError: Slurm does not answer, and some of its runs have no result. Without the
            queue, waiting runs and lost runs look the same.
    """
    chosen = list(runs)
    records = {run.name: folder.job(run.name) for run in chosen}
    statuses = {run.name: status_of(folder.run(run.name)) for run in chosen}
    asked = any(
        record is not None
        and record.kind == "slurm"
        and statuses[name].get("state") not in ("completed", "diverged")
        for name, record in records.items()
    )
    entries = squeue.jobs() if asked else {}
    by_token: dict[str, list[QueueEntry]] = {}
    for job in entries.values():
        by_token.setdefault(job.comment, []).append(job)
    standings = []
    for run in chosen:
        record, status = records[run.name], statuses[run.name]
        entry = _entry(record, entries, by_token)
        state, detail = judge(status, record, entry)
        standings.append(Standing(run, state, status.get("step"), detail, record, entry, status))
    return _explain_vanished(standings)


def judge(
    status: dict[str, Any], record: JobRecord | None, entry: QueueEntry | None
) -> tuple[State, str]:
    """The state of a run, and a detail about it.

    A process of another machine counts as running, because this machine cannot look.

    Args:
        status: content of its status.json; empty without one.
        record: its job, if it has one.
        entry: that job in Slurm's queue, if it is there.
    """
    said = status.get("state")
    if said == "unreadable":
        return State.UNREADABLE, str(status.get("reason"))
    if said in ("completed", "diverged"):
        return State(said), f"at step {status['step']}" if said == "diverged" else ""
    if entry is not None:
        if not entry.waiting:
            return State.RUNNING, f"on {entry.nodes}" if entry.nodes else ""
        begun = f"preempted at step {status['step']}, " if said == "preempted" else ""
        return State.QUEUED, f"{begun}{entry.reason}"
    owner = owner_of(status, record)
    if owner is not None and (not owner.here or owner.find()):
        return (State.RUNNING, "here") if said == "running" else (State.QUEUED, "here")
    if record is not None and record.cancelled:
        return State.CANCELLED, ""
    if said == "failed":
        return State.FAILED, str(status.get("reason") or "")
    if record is None:
        return (State.MISSING, "") if said in (None, "queued") else (State.VANISHED, "")
    return State.VANISHED, f"job {record.job_id or record.token} is gone"


def owner_of(status: dict[str, Any], record: JobRecord | None) -> Process | None:
    """The process of a run that a local sweep, or somebody by hand, started; else None."""
    return process_of(status) if record is None else record.process


def _entry(
    record: JobRecord | None,
    entries: dict[str, QueueEntry],
    by_token: dict[str, list[QueueEntry]],
) -> QueueEntry | None:
    if record is None or record.kind != "slurm":
        return None
    if record.job_id is None:
        # Its submission was interrupted before its id was written down. No job of the array can
        # start without that record, so this entry represents the whole array.
        array = next(iter(by_token.get(record.token, [])), None)
        return array and replace(array, job_id=array.job_id.partition("_")[0])
    entry = entries.get(record.job_id)
    # A restarted controller may reuse ids; some sites write their own comments.
    if entry is not None and entry.comment != record.token:
        another = not entry.comment or _TOKEN.fullmatch(entry.comment)
        return None if another else entry
    return entry


def _explain_vanished(standings: list[Standing]) -> list[Standing]:
    """``standings`` with the endings of vanished jobs, from Slurm's accounting."""
    gone = [s.record.job_id for s in standings if s.state is State.VANISHED and s.record]
    endings = squeue.endings([job for job in gone if job][:500])

    def explained(standing: Standing) -> Standing:
        job = standing.record.job_id if standing.record else None
        if standing.state is not State.VANISHED or job not in endings:
            return standing
        return replace(standing, detail=f"job {job} ended as {endings[job]}")

    return [explained(standing) for standing in standings]


def status_of(folder: Path) -> dict[str, Any]:
    """Content of a run's status.json; empty without one, state "unreadable" if corrupt."""
    if not (folder / STATUS).exists():
        return {}
    try:
        return read_status(folder)
    except RunFolderError as error:
        return {"state": "unreadable", "reason": str(error)}


def last_error(folder: SweepFolder, record: JobRecord | None) -> str:
    """The last error in a job's log, else the last line; "" without a log.

    Errors of the trainer are preferred to those of Slurm and the job, which follow from them.
    """
    if record is None or record.log is None:
        return ""
    file = Path(record.log)
    if not file.exists():  # the sweep's folder was moved
        file = folder.jobs / file.name
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    written = [line.strip() for line in lines if line.strip()]
    errors = [line for line in written if _ERROR.search(line)]
    first_hand = [line for line in errors if not _FOLLOWS.search(line)]
    return (first_hand or errors or written or [""])[-1]
