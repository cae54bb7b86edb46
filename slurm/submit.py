"""Give runs to Slurm, through submitit: one array of jobs for all that ask for the same nodes."""

import subprocess
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.slurm.slurm import _make_sbatch_string

from slurm import squeue
from slurm.cluster import Cluster, Container
from slurm.job import TrainingJob
from slurm.ledger import JobRecord, LedgerError, SweepFolder
from slurm.snapshot import Snapshot, exports
from slurm.squeue import QueueError
from slurm.sweep import RunSpec
from slurm.task import announce, task

# Requeued as often as the cluster likes: a run ends by itself.
_TIMEOUTS = 1_000_000

_REFUSALS = (FailedJobError, FailedSubmissionError, OSError, subprocess.SubprocessError)


class SubmissionError(Exception):
    """Slurm took none, or not all, of the jobs; the message is one line."""


@dataclass(frozen=True)
class Batch:
    """Runs of one array."""

    runs: tuple[RunSpec, ...]
    token: str


def batches(runs: Sequence[RunSpec], largest: int) -> Iterator[Batch]:
    """Runs in order, those that ask for the same nodes and time together.

    Args:
        largest: tasks that an array may have.
    """
    for _, same in groupby(runs, key=lambda run: (run.scale, run.resources)):
        group = list(same)
        for start in range(0, len(group), largest):
            yield Batch(tuple(group[start : start + largest]), uuid.uuid4().hex[:12])


def script(sweep: str, cluster: Cluster, batch: Batch, folder: SweepFolder, code: Path) -> str:
    """The text of the batch script that sbatch is given."""
    settings = parameters(sweep, cluster, batch, code)
    if len(batch.runs) > 1:
        settings["map_count"] = len(batch.runs)
    command = f"{python(cluster)} -u -m submitit.core._submit {folder.jobs}"
    return str(_make_sbatch_string(command=command, folder=folder.jobs, **settings))


def submit(
    sweep: str,
    cluster: Cluster,
    runs: Sequence[RunSpec],
    folder: SweepFolder,
    code: Snapshot,
    cwd: Path,
    *,
    told: Callable[[int], object] = lambda count: None,
) -> None:
    """Submit runs and write down their jobs. Call it under the sweep's lock.

    What is intended is written down before Slurm is asked, and the number of the job after: a
    submission that is interrupted between the two is found again by its token.

    Args:
        told: called with how many runs have been submitted, after each array.

    Raises:
        SubmissionError: sbatch refused, or did not answer. What it took before stays submitted;
            what it did not is as it was.
        LedgerError, OSError: the sweep's folder cannot be written; likewise.
    """
    for batch in batches(runs, squeue.max_array_size()):
        record = JobRecord(
            identity="",
            kind="slurm",
            token=batch.token,
            cluster=cluster.name,
            submitted=datetime.now(UTC).isoformat(timespec="seconds"),
            commit=code.commit,
            code=str(code.folder),
        )
        former = {run.name: folder.job(run.name) for run in batch.runs}
        try:
            for run in batch.runs:
                folder.give(run.name, replace(record, identity=run.identity))
                announce(folder.run(run.name))
            jobs = _sbatch(sweep, cluster, batch, folder, code, cwd)
        except (LedgerError, *_REFUSALS) as error:
            if not _taken(batch):
                for run in batch.runs:
                    folder.restore(run.name, former[run.name])
            full = isinstance(error, OSError) and not isinstance(error, FileNotFoundError)
            if full or isinstance(error, LedgerError):
                raise  # Slurm has not been asked
            raise SubmissionError(f"sbatch refused the jobs: {_reason(error)}") from error
        for run, job in zip(batch.runs, jobs, strict=True):
            known = replace(
                record, identity=run.identity, job_id=job.job_id, log=str(job.paths.stderr)
            )
            folder.give(run.name, known)
        told(len(batch.runs))


def _sbatch(
    sweep: str, cluster: Cluster, batch: Batch, folder: SweepFolder, code: Snapshot, cwd: Path
) -> list[Any]:
    executor = submitit.SlurmExecutor(
        folder=folder.jobs, max_num_timeout=_TIMEOUTS, python=python(cluster)
    )
    executor.update_parameters(**parameters(sweep, cluster, batch, code.folder))
    with executor.batch():
        return [
            executor.submit(TrainingJob(task(run, cluster, folder, code.folder, cwd)))
            for run in batch.runs
        ]


def parameters(sweep: str, cluster: Cluster, batch: Batch, code: Path) -> dict[str, Any]:
    """Of `submitit.SlurmExecutor`, by its names; None is left out."""
    resources = batch.runs[0].resources
    count = cluster.processes(resources)
    tasks = count if cluster.launcher == "srun" else 1
    gpus = cluster.gpus(resources)
    cpus = gpus * (cluster.cpus_per_gpu or 0) or count * (cluster.cpus_per_process or 0)
    cpus_per_task = cpus // tasks or None
    amount = f"{cluster.gpu_type}:{gpus}" if cluster.gpu_type else gpus
    by_gres = cluster.gpu_request == "gres"
    more: dict[str, Any] = {"requeue": True, **cluster.sbatch}
    if cluster.mem_per_node:
        more["mem"] = cluster.mem_per_node
    variables = (f"export {name}={value!r}" for name, value in exports(str(code)).items())
    found = {
        "job_name": sweep,
        "comment": batch.token,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "time": -(-resources.seconds // 60),
        "nodes": resources.nodes,
        "ntasks_per_node": tasks,
        "cpus_per_task": cpus_per_task,
        "gpus_per_node": None if by_gres or not gpus else amount,
        "gres": f"gpu:{amount}" if by_gres and gpus else None,
        "mem_per_gpu": cluster.mem_per_gpu,
        "signal_delay_s": cluster.signal_lead_seconds,
        "array_parallelism": cluster.max_parallel or len(batch.runs),
        "setup": [*cluster.setup, *variables],
        "srun_args": srun_arguments(cluster, cpus_per_task),
        "additional_parameters": more,
        "wckey": None,
    }
    return {name: value for name, value in found.items() if value is not None or name == "wckey"}


def srun_arguments(cluster: Cluster, cpus_per_task: int | None) -> list[str]:
    """Of the step that runs in the job."""
    # Since Slurm 22.05 srun does not take this over from sbatch.
    found = [f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []
    found.append("--kill-on-bad-exit=1")  # no node waits for another that has failed
    container = cluster.container
    if container is not None and container.kind == "pyxis":
        found.append(f"--container-image={container.image}")
        if container.mounts:
            found.append(f"--container-mounts={','.join(container.mounts)}")
    return found


def python(cluster: Cluster) -> str | None:
    """How a job starts Python; None is this process's own."""
    container = cluster.container
    if container is None:
        return None
    return "python3" if container.kind == "pyxis" else _apptainer(container)


def _apptainer(container: Container) -> str:
    binds = "".join(f" --bind {mount}" for mount in container.mounts)
    return f"apptainer exec --nv{binds} {container.image} python3"


def _taken(batch: Batch) -> bool:
    """Whether Slurm has the jobs after all; supposed where it does not answer."""
    try:
        return any(entry.comment == batch.token for entry in squeue.jobs().values())
    except QueueError:
        return True


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("sbatch:")]
    return "; ".join(line.removeprefix("sbatch:").strip() for line in told) or (lines or [""])[-1]
