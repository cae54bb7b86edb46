"""A Slurm job of a sweep: it runs one training, and requeues itself when Slurm stops it.

Slurm signals every process of the job's step: USR2 before the end of the wall time, TERM when it
preempts. The trainer then saves at its next step and ends with status 75. After USR2 the job is
requeued through submitit; after TERM the job requeues itself unless Slurm already does so, or
cancels it.
"""

import os
import socket
import subprocess
import time
from pathlib import Path

import submitit
from submitit.helpers import DelayedSubmission

from slurm import processes, squeue
from slurm.snapshot import environment
from slurm.task import Task, training
from train.run.exit_status import PREEMPTED
from train.run.folder import RunFolder, read_status

_PORTS = range(20_000, 30_000)
_GRACE_SECONDS = 2.0
_REQUEUE_SECONDS = 60.0


class TrainingJob:
    """submitit calls this in every task of the job, and `checkpoint` in the first one on USR2."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self._child: processes.Child | None = None

    def __call__(self) -> str:
        """Train.

        Returns:
            "finished" or "preempted".

        Raises:
            RuntimeError: training failed; its reason is in the run's status and in this job's log.
        """
        here = submitit.JobEnvironment()
        self._child = processes.Child(
            command(self.task, here),
            environment=rank_environment(self.task, here),
            cwd=self.task.cwd,
        )
        code = self._child.wait()
        if code == PREEMPTED:
            time.sleep(_GRACE_SECONDS)  # this process may get its own USR2 a little later
            if here.global_rank == 0:
                _requeue_unless_decided(here.job_id)
            return "preempted"
        if code != 0:
            if code > 0 and here.global_rank == 0:
                tell_failure(self.task.folder, code)
            raise RuntimeError(f"{self.task.name}: training ended with status {code}")
        return "finished"

    def checkpoint(self) -> DelayedSubmission | None:
        """Make the ranks save and wait for them; returns the job to requeue."""
        if self._child is not None and self._child.stop() != PREEMPTED:
            return None  # it has just finished or failed: nothing to requeue
        return DelayedSubmission(TrainingJob(self.task))

    def __getstate__(self) -> dict[str, object]:
        return {"task": self.task, "_child": None}


def tell_failure(folder: Path, code: int) -> None:
    """Set the status of a run whose training ended before it could set it to failed."""
    if read_status(folder).get("state") in (None, "queued", "preempted"):
        reason = f"refused to start, with status {code}"
        RunFolder(folder).set_status("failed", reason=reason)


def _requeue_unless_decided(job_id: str) -> None:
    """Requeue the job, unless Slurm is already cancelling or requeueing it.

    Slurm sends TERM when it ends a job, and also before it preempts one; it does not requeue a job
    that has already ended by then. Others may signal the ranks too.
    """
    entry = squeue.jobs().get(job_id)
    if entry is not None and entry.state == "RUNNING":
        squeue.requeue(job_id)
        time.sleep(_REQUEUE_SECONDS)  # Slurm ends this process


def command(task: Task, here: submitit.JobEnvironment) -> list[str]:
    """The command that this task of the job runs."""
    if task.launcher == "srun":
        return training(task.arguments, processes=1)
    alone = here.num_nodes == 1
    return training(
        task.arguments,
        processes=task.processes,
        nodes=here.num_nodes,
        node=here.node,
        address="" if alone else node_address(here.hostnames[0]),
        port=0 if alone else master_port(here.raw_job_id),
    )


def rank_environment(task: Task, here: submitit.JobEnvironment) -> dict[str, str]:
    """The environment; with launcher ``srun`` it holds the ranks that torchrun would set."""
    variables = environment(task.code)
    if task.launcher == "srun":
        variables |= {
            "RANK": str(here.global_rank),
            "LOCAL_RANK": str(here.local_rank),
            "WORLD_SIZE": str(here.num_tasks),
            "LOCAL_WORLD_SIZE": str(task.processes),
            "MASTER_ADDR": node_address(here.hostnames[0]),
            "MASTER_PORT": str(master_port(here.raw_job_id)),
        }
    return variables


def master_port(job_id: str) -> int:
    """A port that differs between the jobs that share a node."""
    return _PORTS[int(job_id) % len(_PORTS)]


def node_address(name: str) -> str:
    """A node's name if it resolves, else the address that Slurm knows."""
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        shown = subprocess.run(
            ["scontrol", "--oneliner", "show", "node", name],
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
            env=dict(os.environ),
        ).stdout
        fields = dict(part.split("=", 1) for part in shown.split() if "=" in part)
        return fields["NodeAddr"]
    return name
