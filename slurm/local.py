"""A sweep on this machine, without Slurm: a few runs at a time, until every run has its result.

When the command is interrupted, the runs save and stop; the same command continues them. Concurrent
commands split the runs between them.
"""

import contextlib
import os
import shlex
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

import psutil
from tqdm import tqdm

from slurm import processes, show, warm
from slurm.cluster import Cluster
from slurm.executor import Executor
from slurm.ledger import JobRecord, LedgerError, SweepFolder
from slurm.snapshot import Snapshot, environment
from slurm.states import ACTIVE, RESULTS, State, judge, status_of, survey
from slurm.sweep import RunSpec
from slurm.task import announce, task, training
from train.model.image_scales import IMAGE_SCALES
from train.progress import progress
from train.run.exit_status import INTERRUPTED
from train.run.folder import RunFolderError

_STOP_SECONDS = 120.0
_FULL_BYTES = 1 << 20
_IMAGE_MODULES = ("timm", "sklearn.datasets")  # imported late by runs on images


class LocalExecutor(Executor):
    """Runs trainings as processes of this machine, and waits for them."""

    # Nothing requeues a stopped run here: the command that started it continues it.
    submits = frozenset({State.MISSING, State.VANISHED, State.CANCELLED})

    def __init__(self, folder: SweepFolder, cluster: Cluster) -> None:
        super().__init__(folder, cluster)
        self._devices = list(range(cluster.gpus_per_node))
        self._children: set[processes.Child] = set()
        self._starter = warm.Starter()
        self._stopping = False
        self._mutex = threading.Lock()

    def plan(self, runs: Sequence[RunSpec]) -> Iterator[str]:
        for run in runs:
            yield shlex.join(["python", *self._command(run, self.folder.code)[1:]])

    def start(self, runs: Sequence[RunSpec], code: Snapshot, states: frozenset[State]) -> int:
        if chosen := self.choose(runs, states):
            self._run(chosen, code, states)
        standings = survey(self.folder, runs)
        print("\n".join([show.summary(standings), *show.advice(self.folder, standings)]))
        if self._stopping:
            return INTERRUPTED
        return 0 if all(standing.state in RESULTS | ACTIVE for standing in standings) else 1

    def _run(self, runs: Sequence[RunSpec], code: Snapshot, states: frozenset[State]) -> None:
        """Run them until all have ended, or until this process is asked to stop."""
        parallel = self._parallel(runs)
        on_images = any(run.scale in IMAGE_SCALES for run in runs)
        self._starter = warm.Starter(_IMAGE_MODULES if on_images else ())
        # What the main thread waits for: a run that has ended, or None to stop all. A signal
        # handler may put into a SimpleQueue.
        events: SimpleQueue[Future[str] | None] = SimpleQueue()
        with (
            self.folder.worked_on(),
            self._starter,
            progress(total=len(runs), desc="runs", unit="run") as bar,
            _signals_to(events),
            ThreadPoolExecutor(parallel) as pool,
        ):
            for run in runs:
                future = pool.submit(self._train_on_devices, run, code, states, parallel)
                future.add_done_callback(events.put)
            left = len(runs)
            while left:
                ended = events.get()
                if ended is not None:
                    left -= 1
                    _say(bar, ended.result(), done=1)
                elif not self._stopping:
                    _say(bar, "stopping: the runs save and end; the same command continues them")
                    self._stop()

    def _parallel(self, runs: Sequence[RunSpec]) -> int:
        at_once = min(self.cluster.max_parallel or 1, len(runs)) or 1
        each = max((self.cluster.gpus(run.resources) for run in runs), default=0)
        return max(1, min(at_once, len(self._devices) // each)) if each else at_once

    def _train_on_devices(
        self, run: RunSpec, code: Snapshot, states: frozenset[State], parallel: int
    ) -> str:
        """Run one training on GPUs of its own; returns a line about how it ended, or ""."""
        count = self.cluster.gpus(run.resources)
        with self._mutex:
            devices, self._devices = self._devices[:count], self._devices[count:]
        try:
            variables = self._environment(run, code, devices, parallel)
            ending = self._train(run, code, states, variables)
        except (LedgerError, RunFolderError, OSError) as error:  # the other runs continue
            ending = f"not started: {error}"
        finally:
            with self._mutex:
                self._devices += devices
        return f"{run.name}: {ending}" if ending else ""

    def _environment(
        self, run: RunSpec, code: Snapshot, devices: list[int], parallel: int
    ) -> dict[str, str]:
        """The environment that gives a run its share of this machine."""
        variables = environment(str(code.folder))
        cores = len(os.sched_getaffinity(0))
        share = cores // (parallel * self.cluster.processes(run.resources))
        variables.setdefault("OMP_NUM_THREADS", str(max(1, share)))
        if devices:
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, devices))
        return variables

    def _train(
        self, run: RunSpec, code: Snapshot, states: frozenset[State], variables: dict[str, str]
    ) -> str:
        folder = self.folder
        if not self.cluster.gpus(run.resources):
            # Takes seconds, so not under the locks.
            self._starter.warm_up(self._command(run, code.folder), variables, str(self.cwd))
        with folder.lock(), self._mutex:
            if self._stopping:
                return ""
            state, _ = self._state(run)
            if state not in states:
                return f"{state} by another command"
            former = folder.job(run.name)
            try:
                child = self._start(run, code, variables)
            except (LedgerError, RunFolderError, OSError):
                folder.restore(run.name, former)  # as if it had never been tried
                raise
        status = child.wait()
        self._children.discard(child)
        with folder.lock():
            state, detail = self._state(run)
            if state is State.VANISHED and self._stopping:
                folder.mark_cancelled(run.name)
                state, detail = self._state(run)
        if state is State.VANISHED:
            full = shutil.disk_usage(folder.path).free < _FULL_BYTES
            disk = f"; the disk of {folder.path} is full" if full else ""
            detail = f"{processes.ending(status)}{disk}; its output: {folder.job_log(run.name)}"
        return f"{state} {detail}".rstrip()

    def _state(self, run: RunSpec) -> tuple[State, str]:
        return judge(status_of(self.folder.run(run.name)), self.folder.job(run.name), None)

    def _start(self, run: RunSpec, code: Snapshot, variables: dict[str, str]) -> processes.Child:
        folder = self.folder
        log = folder.job_log(run.name)
        record = JobRecord(
            identity=run.identity,
            kind="local",
            token=uuid.uuid4().hex[:12],
            cluster=self.cluster.name,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=code.commit,
            code=str(code.folder),
            log=str(log),
        ).owned_by(psutil.Process())
        # Written before there is a process, so that no process is ever without its record.
        folder.give(run.name, record)
        announce(folder.run(run.name))
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            start = processes.Child if self.cluster.gpus(run.resources) else self._starter.start
            child = start(
                self._command(run, code.folder),
                environment=variables,
                cwd=str(self.cwd),
                output=output,
            )
        try:
            folder.give(run.name, record.owned_by(child.process))
        except LedgerError:
            child.stop(limit=0)
            raise
        self._children.add(child)
        return child

    def _command(self, run: RunSpec, code: Path) -> list[str]:
        todo = task(run, self.cluster, self.folder, code, self.cwd)
        return training(todo.arguments, processes=todo.processes)

    def _stop(self) -> None:
        """Stop all runs; from here on none is started."""
        with self._mutex:
            self._stopping = True
            children = list(self._children)
        for child in children:
            processes.send(child.process, processes.STOP)
        for child in children:
            child.stop(limit=_STOP_SECONDS)


def _say(bar: "tqdm[Any]", text: str, *, done: int = 0) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone; the runs are not
        if text:
            bar.write(text)
        bar.update(done)


@contextlib.contextmanager
def _signals_to(events: "SimpleQueue[Any]") -> Iterator[None]:
    """Put None on Ctrl-C, on TERM and when the terminal closes."""

    def note(number: int, frame: FrameType | None) -> None:
        events.put(None)

    former = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
