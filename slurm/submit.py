"""Submit runs to Slurm, through submitit: one job array for runs with the same resources."""

import shlex
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError

from slurm import squeue
from slurm.executor import Executor, SubmissionError
from slurm.job import TrainingJob
from slurm.ledger import JobRecord, LedgerError, writing
from slurm.sbatch import Batch, parameters, python, script
from slurm.snapshot import Snapshot
from slurm.squeue import QueueError
from slurm.states import State
from slurm.sweep import RunSpec
from slurm.task import announce, task, training
from train.progress import progress

# How often submitit requeues a job that timed out or was preempted: no limit, as every run ends.
_TIMEOUTS = 1_000_000
_USUAL_ARRAY = 1000

_REFUSALS = (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError)


class SlurmExecutor(Executor):
    """Submits runs as job arrays; Slurm starts them, and requeues those that it stops."""

    submits = frozenset({State.MISSING})

    def plan(self, runs: Sequence[RunSpec]) -> Iterator[str]:
        code = self.folder.code
        for batch in batches(runs, _USUAL_ARRAY):
            yield script(self.cluster, batch, self.folder, code / "SNAPSHOT")
            for index, run in enumerate(batch.runs):
                todo = task(run, self.cluster, self.folder, code, self.cwd)
                words = training(todo.arguments, processes=1)
                yield f"# {index}: {shlex.join(['python', *words[1:]])}"
            yield ""

    def start(self, runs: Sequence[RunSpec], code: Snapshot, states: frozenset[State]) -> int:
        with self.folder.lock():
            chosen = self.choose(runs, states)
            with (
                progress(total=len(chosen), desc="submitting", unit="job", delay=2) as bar,
                writing(self.folder.path),
            ):
                for batch in batches(chosen, squeue.max_array_size()):
                    self._submit(batch, code)
                    bar.update(len(batch.runs))
        if chosen:
            print(f"follow them: python -m slurm status {shlex.quote(str(self.folder.path))}")
        return 0

    def _submit(self, batch: Batch, code: Snapshot) -> None:
        """Submit an array and record its jobs.

        The record is written before the submission, and the job's id after it: if the submission
        is interrupted between the two, the token in the record identifies the job.

        Raises:
            SubmissionError: sbatch refused or did not answer; the records are restored.
            LedgerError, OSError: the sweep's folder cannot be written; the records are restored.
        """
        folder = self.folder
        record = JobRecord(
            identity="",
            kind="slurm",
            token=batch.token,
            cluster=self.cluster.name,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=code.commit,
            code=str(code.folder),
        )
        former = {run.name: folder.job(run.name) for run in batch.runs}
        try:
            for run in batch.runs:
                folder.give(run.name, replace(record, identity=run.identity))
                announce(folder.run(run.name))
            jobs = self._sbatch(batch, code)
        except (LedgerError, *_REFUSALS) as error:
            if not _taken(batch):
                for run in batch.runs:
                    folder.restore(run.name, former[run.name])
            full = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if full or isinstance(error, LedgerError):
                raise  # nothing was submitted
            raise SubmissionError(f"sbatch refused the jobs: {_reason(error)}") from error
        for run, job in zip(batch.runs, jobs, strict=True):
            log = str(job.paths.stderr)
            known = replace(record, identity=run.identity, job_id=job.job_id, log=log)
            folder.give(run.name, known)

    def _sbatch(self, batch: Batch, code: Snapshot) -> list[Any]:
        executor = submitit.SlurmExecutor(
            folder=self.folder.jobs,
            max_num_timeout=_TIMEOUTS,
            python=python(self.cluster, self.folder),
        )
        executor.update_parameters(**parameters(self.cluster, batch, self.folder, code.folder))
        with executor.batch():
            return [
                executor.submit(
                    TrainingJob(task(run, self.cluster, self.folder, code.folder, self.cwd))
                )
                for run in batch.runs
            ]


def batches(runs: Sequence[RunSpec], largest: int) -> Iterator[Batch]:
    """Runs in order; consecutive runs that ask for the same nodes and time share a batch.

    Args:
        largest: most tasks that an array may have.
    """
    for _, same in groupby(runs, key=lambda run: (run.scale, run.resources)):
        group = list(same)
        for start in range(0, len(group), largest):
            yield Batch(tuple(group[start : start + largest]), uuid.uuid4().hex[:12])


def _taken(batch: Batch) -> bool:
    """Whether Slurm has the jobs after all; true if it does not answer."""
    try:
        return any(entry.comment == batch.token for entry in squeue.jobs().values())
    except QueueError:
        return True


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(line.removeprefix("sbatch:").strip() for line in own) or (lines or [""])[-1]
