"""A sweep's folder: its runs, and the job of each run.

``sweep.json`` lists the runs; each run's folder holds a ``job.json`` next to the trainer's files.
There is no other state: commands read these files, and ask Slurm.
"""

import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import psutil
from filelock import FileLock, Timeout

from slurm.flags import settings
from slurm.resources import Resources
from slurm.sweep import RunSpec
from train.run.files import write_whole
from train.run.folder import CONFIG, JOB, STATUS, RunFolderError, read_status
from train.run.identity import differences
from train.run.process import Process

SWEEP = "sweep.json"
_OWN = ".sweep"
_LOCK_SECONDS = 600
_START_SECONDS = 60.0
_REMEDY = "free some space, get write permission, or choose another --runs-dir"


class LedgerError(Exception):
    """The sweep's folder cannot be used; the message is one line with the remedy."""


@dataclass(frozen=True)
class JobRecord:
    """The job that a run was given to.

    Attributes:
        identity: identity of the run's configuration.
        kind: a job of Slurm's, or a process on some machine.
        token: names the submission; it is the job's comment in Slurm, and identifies a job whose
            id was not written down.
        cluster: name of the cluster file.
        submitted: UTC time, ISO 8601.
        commit, code: the commit, and the folder of its snapshot.
        job_id: Slurm's id, ``123_4`` in an array; None during the submission.
        log: the job's output file.
        host, pid, started: the process of a local run, and its start time.
        cancelled: whether `cancel` ended it.
    """

    identity: str
    kind: Literal["slurm", "local"]
    token: str
    cluster: str
    submitted: str
    commit: str | None
    code: str
    job_id: str | None = None
    log: str | None = None
    host: str | None = None
    pid: int | None = None
    started: float | None = None
    cancelled: bool = False

    def owned_by(self, process: psutil.Process) -> "JobRecord":
        """This record with the process of this machine that runs the run."""
        host, started = socket.gethostname(), process.create_time()
        return replace(self, host=host, pid=process.pid, started=started)

    @property
    def process(self) -> Process | None:
        """The process of a local run; None for a Slurm job."""
        if self.kind != "local" or self.host is None or self.pid is None:
            return None
        # A record is written just before its process starts.
        noted = datetime.fromisoformat(self.submitted).timestamp() + _START_SECONDS
        return Process(self.host, self.pid, self.started, noted)


class SweepFolder:
    """The folder of one sweep, ``runs/NAME``, with its runs' folders, ``runs/NAME/RUN``."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def jobs(self) -> Path:
        """Folder for submitit's files and the jobs' output."""
        return self.path / _OWN / "jobs"

    @property
    def code(self) -> Path:
        """Folder for snapshots of the code."""
        return self.path / _OWN / "code"

    def run(self, name: str) -> Path:
        return self.path / name

    def job_log(self, name: str) -> Path:
        """Output file of a run on this machine."""
        return self.jobs / f"{name}.log"

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the sweep's lock, which every command that submits or cancels takes.

        Raises:
            LedgerError: another command held it for ten minutes, or the folder is not writable.
        """
        try:
            (self.path / _OWN).mkdir(parents=True, exist_ok=True)
            held = FileLock(self.path / _OWN / "lock").acquire(timeout=_LOCK_SECONDS)
        except Timeout:
            raise LedgerError(
                f"{self.path}: another command has been submitting this sweep for "
                f"{_LOCK_SECONDS // 60} minutes; wait for it, or stop it"
            ) from None
        except OSError as error:
            raise LedgerError(
                f"--runs-dir {self.path.parent} cannot be written ({error.strerror}): {_REMEDY}"
            ) from error
        with held:
            yield

    def enter(self, name: str, runs: Iterable[RunSpec]) -> None:
        """Add runs to the sweep. Call it under the lock.

        Raises:
            LedgerError: as `merged`; or the folder cannot be written.
        """
        content = {"name": name, "runs": [asdict(run) for run in self.merged(name, runs)]}
        with writing(self.path / SWEEP):
            write_whole(self.path / SWEEP, json.dumps(content, indent=1) + "\n")

    def merged(self, name: str, runs: Iterable[RunSpec]) -> list[RunSpec]:
        """The runs of the sweep with ``runs`` added; nothing is written.

        Raises:
            LedgerError: the folder holds another sweep, or a run of the same name that has begun
                with other settings; or it is not writable.
        """
        place = next(path for path in (self.path, *self.path.absolute().parents) if path.exists())
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            why = "no permission" if place.is_dir() else f"{place} is a file"
            raise LedgerError(f"--runs-dir {self.path.parent} cannot be written ({why}): {_REMEDY}")
        known = {run.name: run for run in self.runs()}
        former = self._read().get("name", name)
        if former != name:
            raise LedgerError(
                f"{self.path} holds the sweep {former!r}, not {name!r}: give one of them another "
                "name, or choose another --runs-dir"
            )
        for run in runs:
            there = known.get(run.name, run)
            # Earlier versions computed other hashes: if hashes differ, compare the settings.
            if there.identity != run.identity and self._begun(run.name):
                different = differences(settings(there.arguments), settings(run.arguments))
                if different:
                    raise LedgerError(
                        f"{self.path} holds {run.name} with other settings "
                        f"({'; '.join(different[:3])}): give the sweep another name, or delete "
                        "that run's folder"
                    )
            known[run.name] = run  # resources may change
        return list(known.values())

    def _begun(self, name: str) -> bool:
        return any((self.run(name) / file).exists() for file in (JOB, STATUS, CONFIG))

    def runs(self) -> list[RunSpec]:
        """All runs of the sweep, in the order in which they were added."""
        return [
            RunSpec(
                **{
                    **run,
                    "arguments": tuple(run["arguments"]),
                    "resources": Resources(**run["resources"]),
                }
            )
            for run in self._read().get("runs", [])
        ]

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads((self.path / SWEEP).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise LedgerError(
                f"{self.path / SWEEP} cannot be read ({error}): delete it and submit the sweep "
                "again; its runs are kept"
            ) from error
        if not isinstance(content, dict):
            raise LedgerError(f"{self.path / SWEEP} does not list runs: delete it and submit again")
        return content

    def job(self, name: str) -> JobRecord | None:
        """The last job of a run; None without a readable record."""
        try:
            content = json.loads((self.run(name) / JOB).read_text(encoding="utf-8"))
            return JobRecord(**content)
        except (OSError, ValueError, TypeError):
            return None

    def give(self, name: str, record: JobRecord) -> None:
        """Write down the job of a run."""
        folder = self.run(name)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(folder / JOB, json.dumps(asdict(record), indent=1) + "\n")

    def restore(self, name: str, former: JobRecord | None) -> None:
        """Undo `give` for a job that was not started after all.

        If the disk is too full for that, a run that had a job before counts as vanished.
        """
        if former is not None:
            with suppress(LedgerError):
                self.give(name, former)
            return
        folder = self.run(name)
        (folder / JOB).unlink(missing_ok=True)
        with suppress(RunFolderError):
            if read_status(folder).get("state") == "queued":
                (folder / STATUS).unlink()
        with suppress(OSError):
            folder.rmdir()

    @contextmanager
    def worked_on(self) -> Iterator[None]:
        """Tell other commands that this process is running the sweep."""
        this = psutil.Process()
        mark = self.path / _OWN / "commands" / f"{socket.gethostname()}.{this.pid}"
        with writing(mark):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.write_text(str(this.create_time()))
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)

    def commands(self) -> list[psutil.Process]:
        """Processes of this machine that are running the sweep now."""
        host = socket.gethostname()
        running = []
        for mark in sorted((self.path / _OWN / "commands").glob(f"{host}.*")):
            with suppress(FileNotFoundError):  # the command has just ended
                started = float(mark.read_text() or 0) or None  # empty in earlier versions
                pid = int(mark.name.rpartition(".")[2])
                process = Process(host, pid, started, noted=mark.stat().st_mtime).find()
                running += [process] if process else []
        return running

    def mark_cancelled(self, name: str) -> None:
        record = self.job(name)
        if record is not None:
            self.give(name, replace(record, cancelled=True))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError into a message.

    Raises:
        LedgerError: names the path that could not be written, the cause and the remedy.
    """
    try:
        yield
    except OSError as error:
        raise LedgerError(f"{path} cannot be written ({error.strerror}): {_REMEDY}") from error
