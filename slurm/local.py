"""A sweep on this machine, without Slurm: a few runs at a time, until all have their result.

Interrupted, it has the runs save and stop; the same command goes on where they were. Several such
commands, started beside each other, share the runs.
"""

import contextlib
import os
import signal
import socket
import subprocess
import threading
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
from slurm.ledger import JobRecord, SweepFolder
from slurm.snapshot import Snapshot, environment
from slurm.states import State, judge, status_of
from slurm.submit import announce, task
from slurm.sweep import RunSpec

_STOP_SECONDS = 120.0


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
        self._waiting = list(runs)
        parallel = self._parallel(runs)
        threads_each = max(1, (os.cpu_count() or 1) // parallel)
        with (
            tqdm(total=len(runs), desc="runs", unit="run") as bar,
            _interrupted_by(self._stopping),
        ):
            workers = [
                threading.Thread(target=self._work, args=(bar, threads_each))
                for _ in range(parallel)
            ]
            for worker in workers:
                worker.start()
            while any(worker.is_alive() for worker in workers):
                if self._stopping.wait(0.2):
                    self._stop(bar)
                    break
            for worker in workers:
                worker.join()
        return not self._stopping.is_set()

    def _parallel(self, runs: Sequence[RunSpec]) -> int:
        at_once = min(self._cluster.max_parallel or 1, len(runs)) or 1
        each = max((self._cluster.gpus(run.resources) for run in runs), default=0)
        return max(1, min(at_once, len(self._devices) // each)) if each else at_once

    def _work(self, bar: "tqdm[Any]", threads_each: int) -> None:
        while not self._stopping.is_set():
            with self._mutex:
                if not self._waiting:
                    return
                run = self._waiting.pop(0)
                count = self._cluster.gpus(run.resources)
                devices, self._devices = self._devices[:count], self._devices[count:]
            try:
                said = self._train(run, devices, threads_each)
            finally:
                with self._mutex:
                    self._devices += devices
            bar.write(f"{run.name}: {said}")
            bar.update()

    def _train(self, run: RunSpec, devices: list[int], threads_each: int) -> str:
        """Run one training; how it ended, in words."""
        folder = self._folder
        there = folder.run(run.name)
        log = folder.jobs / f"{run.name}.log"
        todo = task(run, self._cluster, folder, self._code.folder, self._cwd)
        variables = environment(todo.code)
        variables.setdefault("OMP_NUM_THREADS", str(threads_each))
        if devices:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        with folder.lock():
            state, _ = judge(status_of(there), folder.job(run.name), None)
            if state not in self._wanted:
                return f"{state} by another command"
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
            folder.give(run.name, record)
            announce(there)
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                child = processes.start(
                    processes.training(todo.arguments, processes=todo.processes),
                    environment=variables,
                    cwd=todo.cwd,
                    output=output,
                )
            self._children.add(child)
            folder.give(run.name, replace(record, pid=child.pid))
        processes.wait(child)
        self._children.discard(child)
        state, detail = judge(status_of(there), folder.job(run.name), None)
        return f"{state} {detail}".rstrip()

    def _stop(self, bar: "tqdm[Any]") -> None:
        bar.write("stopping: the runs save and end; the same command goes on with them")
        for child in list(self._children):
            processes.stop(child, limit=_STOP_SECONDS)


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
