"""What a Slurm job of a sweep does: run one training, and hand it on when Slurm wants the nodes.

Slurm signals every process of the job's step: USR2 ahead of the wall time, TERM when it preempts.
The trainer then saves at its next step and ends with status 75. After USR2 the job asks to be
queued again, through submitit; after TERM it does so where Slurm has not already decided what
becomes of the job.
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
    """Called by submitit in every task of the job; `checkpoint` is called in the first, on USR2."""

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
            time.sleep(_GRACE_SECONDS)  # for a USR2 of our own that is still on its way
            if here.global_rank == 0:
                _requeue_unless_decided(here.job_id)
            return "preempted"
        if code != 0:
            if code > 0 and here.global_rank == 0:
                tell_failure(self.task.folder, code)
            raise RuntimeError(f"{self.task.name}: training ended with status {code}")
        return "finished"

    def checkpoint(self) -> DelayedSubmission | None:
        """Have the ranks save, wait for them, and give what is to be queued again."""
        if self._child is not None and self._child.stop() != PREEMPTED:
            return None  # it has just finished, or failed: nothing is left to run
        return DelayedSubmission(TrainingJob(self.task))

    def __getstate__(self) -> dict[str, object]:
        return {"task": self.task, "_child": None}


def tell_failure(folder: Path, code: int) -> None:
    """Let a run say that it failed, where training ended before it could write that down."""
    if read_status(folder).get("state") in (None, "queued", "preempted"):
        reason = f"refused to start, with status {code}"
        RunFolder(folder).set_status("failed", reason=reason)


def _requeue_unless_decided(job_id: str) -> None:
    """Ask for the job to be queued again, unless it is being cancelled or requeued already.

    TERM comes for every end of a job, but also ahead of a preemption, which comes to nothing for a
    job that has ended by then; and ranks can be signalled past Slurm.
    """
    entry = squeue.jobs().get(job_id)
    if entry is not None and entry.state == "RUNNING":
        squeue.requeue(job_id)
        time.sleep(_REQUEUE_SECONDS)  # Slurm ends this process


def command(task: Task, here: submitit.JobEnvironment) -> list[str]:
    """What this task of the job runs."""
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
    """The environment, with the ranks where no torchrun sets them."""
    found = environment(task.code)
    if task.launcher == "srun":
        found |= {
            "RANK": str(here.global_rank),
            "LOCAL_RANK": str(here.local_rank),
            "WORLD_SIZE": str(here.num_tasks),
            "LOCAL_WORLD_SIZE": str(task.processes),
            "MASTER_ADDR": node_address(here.hostnames[0]),
            "MASTER_PORT": str(master_port(here.raw_job_id)),
        }
    return found


def master_port(job_id: str) -> int:
    """A port that jobs which share a node do not share."""
    return _PORTS[int(job_id) % len(_PORTS)]


def node_address(name: str) -> str:
    """How to reach a node: its name where that resolves, else what Slurm knows."""
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
