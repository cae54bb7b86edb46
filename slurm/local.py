"""A sweep on this machine, without Slurm: a few runs at a time, until all have their result.

Interrupted, it has the runs save and stop; the same command goes on where they were. Several such
commands, started beside each other, share the runs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from slurm import processes
from slurm.cluster import Cluster
from slurm.ledger import JobRecord, LedgerError, SweepFolder
from slurm.snapshot import Snapshot, environment
from slurm.states import Standing, State, judge, status_of
from slurm.sweep import RunSpec
from slurm.task import announce, task, training
from train.run.folder import RunFolderError

_STOP_SECONDS = 120.0
_POLL_SECONDS = 0.1
_FULL_BYTES = 1 << 20


class LocalRunner:
    """Runs trainings as processes of this machine.

    Args:
        cluster: of kind local; says how many run at once, and on how many GPUs.
        wanted: the states in which a run is started; looked at again just before.
    """

    def __init__(
        self,
        folder: SweepFolder,
        cluster: Cluster,
        code: Snapshot,
        cwd: Path,
        wanted: frozenset[State],
    ) -> None:
        self._folder, self._cluster, self._code, self._cwd = folder, cluster, code, cwd
        self._wanted = wanted
        self._children: set[subprocess.Popen[bytes]] = set()
        self._stopping = threading.Event()
        self._mutex = threading.Lock()
        self._waiting: list[RunSpec] = []
        self._devices = list(range(cluster.gpus_per_node))

    def run(self, runs: Sequence[RunSpec]) -> bool:
        """Run them to their ends; False where it was interrupted."""
        if not runs:
            return True
        self._waiting = list(runs)
        parallel = self._parallel(runs)
        with (
            self._folder.worked_on(),
            tqdm(total=len(runs), desc="runs", unit="run") as bar,
            _interrupted_by(self._stopping),
        ):
            workers = [
                threading.Thread(target=self._work, args=(bar, parallel)) for _ in range(parallel)
            ]
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                if self._stopping.wait(0.2):
                    self._stop(workers, bar)
        return not self._stopping.is_set()

    def _parallel(self, runs: Sequence[RunSpec]) -> int:
        at_once = min(self._cluster.max_parallel or 1, len(runs)) or 1
        each = max((self._cluster.gpus(run.resources) for run in runs), default=0)
        return max(1, min(at_once, len(self._devices) // each)) if each else at_once

    def _work(self, bar: "tqdm[Any]", parallel: int) -> None:
        while not self._stopping.is_set():
            with self._mutex:
                if not self._waiting:
                    return
                run = self._waiting.pop(0)
                count = self._cluster.gpus(run.resources)
                devices, self._devices = self._devices[:count], self._devices[count:]
            try:
                said = self._train(run, self._environment(run, devices, parallel))
            except (LedgerError, RunFolderError, OSError) as error:  # the others go on
                said = f"not started: {error}"
            finally:
                with self._mutex:
                    self._devices += devices
            _say(bar, f"{run.name}: {said}", done=1)

    def _environment(self, run: RunSpec, devices: list[int], parallel: int) -> dict[str, str]:
        """A run's share of this machine."""
        variables = environment(str(self._code.folder))
        cores = len(os.sched_getaffinity(0))
        share = cores // (parallel * self._cluster.processes(run.resources))
        variables.setdefault("OMP_NUM_THREADS", str(max(1, share)))
        if devices:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        return variables

    def _train(self, run: RunSpec, variables: dict[str, str]) -> str:
        """Run one training; how it ended, in words."""
        folder = self._folder
        there = folder.run(run.name)
        with folder.lock():
            state, _ = judge(status_of(there), folder.job(run.name), None)
            if state not in self._wanted:
                return f"{state} by another command"
            if self._stopping.is_set():
                return "not started"
            former = folder.job(run.name)
            try:
                child = self._start(run, variables)
            except (LedgerError, RunFolderError, OSError):
                folder.restore(run.name, former)  # as if it had never been tried
                raise
        code = processes.wait(child)
        self._children.discard(child)
        with folder.lock():
            state, detail = judge(status_of(there), folder.job(run.name), None)
            if state is State.VANISHED and self._stopping.is_set():
                folder.mark_cancelled(run.name)
                state, detail = judge(status_of(there), folder.job(run.name), None)
        if state is State.VANISHED:
            full = shutil.disk_usage(folder.path).free < _FULL_BYTES
            disk = f"; the disk of {folder.path} is full" if full else ""
            detail = f"{_ending(code)}{disk}; its output: {folder.job_log(run.name)}"
        return f"{state} {detail}".rstrip()

    def _start(self, run: RunSpec, variables: dict[str, str]) -> subprocess.Popen[bytes]:
        folder = self._folder
        log = folder.job_log(run.name)
        todo = task(run, self._cluster, folder, self._code.folder, self._cwd)
        record = JobRecord(
            identity=run.identity,
            kind="local",
            token=uuid.uuid4().hex[:12],
            cluster=self._cluster.name,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=self._code.commit,
            code=todo.code,
            log=str(log),
            host=socket.gethostname(),
            pid=os.getpid(),
        )
        # Before there is a process, so that none is ever without its record.
        folder.give(run.name, record)
        announce(folder.run(run.name))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            child = processes.start(
                training(todo.arguments, processes=todo.processes),
                environment=variables,
                cwd=todo.cwd,
                output=output,
            )
        try:
            folder.give(run.name, replace(record, pid=child.pid))
        except LedgerError:
            processes.send(child.pid, signal.SIGKILL)
            child.wait()
            raise
        self._children.add(child)
        return child

    def _stop(self, workers: Sequence[threading.Thread], bar: "tqdm[Any]") -> None:
        _say(bar, "stopping: the runs save and end; the same command goes on with them")
        # In turns, since a worker may have been about to start one.
        while any(worker.is_alive() for worker in workers):
            children = list(self._children)
            for child in children:
                processes.send(child.pid, processes.STOP)
            for child in children:
                processes.stop(child, limit=_STOP_SECONDS)
            time.sleep(_POLL_SECONDS)


def _say(bar: "tqdm[Any]", text: str, *, done: int = 0) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the runs are not
        bar.write(text)
        bar.update(done)


def _ending(code: int) -> str:
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def processes_of(standings: Sequence[Standing]) -> tuple[list[int], list[str]]:
    """Processes of this machine that runs belong to, and where others are: "RUN on HOST"."""
    here, elsewhere = [], []
    for standing in standings:
        record = standing.record
        local = record is not None and record.kind == "local"
        host = record.host if record and local else standing.status.get("host")
        pid = record.pid if record and local else standing.status.get("pid")
        if host == socket.gethostname() and pid is not None:
            here.append(int(pid))
        else:
            elsewhere.append(f"{standing.run.name} on {host}")
    return here, elsewhere


@contextlib.contextmanager
def _interrupted_by(stopping: threading.Event) -> Iterator[None]:
    """Set the event on the keyboard's interrupt, on TERM and when the terminal goes."""

    def note(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, note) for number in signals}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
