"""Slurm's commands: ``squeue`` about current jobs, ``sacct`` about past ones, and others."""

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

_TIMEOUT = 60

# States of jobs that squeue still lists although they have ended.
_OVER = frozenset(
    {
        "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
        "REVOKED", "TIMEOUT",
    }
)  # fmt: skip


class QueueError(Exception):
    """Slurm refuses or does not answer; the message is one line."""


@dataclass(frozen=True)
class QueueEntry:
    """A job in Slurm's queue.

    Attributes:
        state: Slurm's name for it: ``PENDING``, ``RUNNING``, ``COMPLETING``, ...
        reason: why it is waiting.
        left: time until its limit, ``D-HH:MM:SS``.
        nodes: the nodes on which it runs.
        comment: the token of its submission.
    """

    job_id: str
    state: str
    reason: str
    left: str
    nodes: str
    comment: str

    @property
    def waiting(self) -> bool:
        return self.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SUSPENDED", "SPECIAL_EXIT")


def jobs() -> dict[str, QueueEntry]:
    """This user's jobs by id; each task of an array has its own id, ``123_4``.

    Raises:
        QueueError: no answer, so nothing is known. A job that is not in its answer has ended.
    """
    form = "%i|%T|%r|%L|%N|%k"
    lines = _run(["squeue", "--noheader", "--array", f"--user={os.getuid()}", f"--format={form}"])
    entries = {}
    for line in lines.splitlines():
        if line.count("|") < 5:
            continue
        entry = QueueEntry(*line.split("|", 5))
        if entry.state not in _OVER:
            entries[entry.job_id] = entry
    return entries


def endings(job_ids: Iterable[str]) -> dict[str, str]:
    """How jobs ended (``NODE_FAIL``, ``TIMEOUT``); empty if Slurm keeps no accounting."""
    ids = ",".join(job_ids)
    if not ids:
        return {}
    try:
        command = ["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State"]
        lines = _run([*command, f"--jobs={ids}"])
    except QueueError:
        return {}  # no accounting: the runs' own folders say what is known
    pairs = (line.split("|", 1) for line in lines.splitlines() if "|" in line)
    return {job: state.split()[0] for job, state in pairs if state}


def cancel(job_ids: Iterable[str]) -> None:
    """Cancel jobs; jobs that have ended are ignored.

    Raises:
        QueueError: no answer.
    """
    ids = list(job_ids)
    for start in range(0, len(ids), 500):
        _run(["scancel", *ids[start : start + 500]], gone_is_fine=True)


def requeue(job_id: str) -> None:
    """Stop a job and queue it again.

    Raises:
        QueueError: Slurm refuses, or does not answer.
    """
    _run(["scontrol", "requeue", job_id])


def max_array_size() -> int:
    """Most tasks that one array may have on this cluster."""
    match = re.search(r"MaxArraySize\s*=\s*(\d+)", _run(["scontrol", "show", "config"]))
    return int(match[1]) - 1 if match else 1000


def _run(command: list[str], *, gone_is_fine: bool = False) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
    except FileNotFoundError:
        raise QueueError(f"{command[0]} is not on this machine: use --cluster local") from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"{command[0]} did not answer within {_TIMEOUT} s") from None
    if done.returncode and not (gone_is_fine and "Invalid job id" in done.stderr):
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1] if lines else f"status {done.returncode}"
        raise QueueError(f"{command[0]} failed: {reason.removeprefix(f'{command[0]}: ')}")
    return done.stdout
