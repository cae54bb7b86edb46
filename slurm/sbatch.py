"""The sbatch options and the batch script of an array of runs.

Only this module uses a private name of submitit, `_make_sbatch_string`; pyproject.toml bounds
submitit's version because of it. `submitit.SlurmExecutor` makes the submitted script with the same
function and parameters, but it cannot print a script without submitting it.
"""

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitit.slurm.slurm import _make_sbatch_string

from slurm.cluster import Cluster, Container
from slurm.ledger import SweepFolder
from slurm.snapshot import exports
from slurm.sweep import RunSpec


@dataclass(frozen=True)
class Batch:
    """Runs of one array; ``token`` marks its jobs in Slurm."""

    runs: tuple[RunSpec, ...]
    token: str


def script(cluster: Cluster, batch: Batch, folder: SweepFolder, code: Path) -> str:
    """The text of the batch script that sbatch is given."""
    settings = parameters(cluster, batch, folder, code)
    if len(batch.runs) > 1:
        settings["map_count"] = len(batch.runs)
    jobs = folder.jobs.absolute()
    start = python(cluster, folder) or shlex.quote(sys.executable)
    command = f"{start} -u -m submitit.core._submit {shlex.quote(str(jobs))}"
    return str(_make_sbatch_string(command=command, folder=jobs, **settings))


def parameters(cluster: Cluster, batch: Batch, folder: SweepFolder, code: Path) -> dict[str, Any]:
    """Parameters for `submitit.SlurmExecutor.update_parameters`."""
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
    variables = exports(str(code)).items()
    options = {
        "job_name": folder.path.name,
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
        "setup": [
            *cluster.setup,
            *(f"export {name}={shlex.quote(value)}" for name, value in variables),
        ],
        "srun_args": _srun_arguments(cluster, folder, cpus_per_task),
        "additional_parameters": more,
    }
    # submitit sets a wckey of its own unless it is None.
    return {**{name: value for name, value in options.items() if value is not None}, "wckey": None}


def python(cluster: Cluster, folder: SweepFolder) -> str | None:
    """The shell command that starts Python in a job; None is this process's own Python."""
    container = cluster.container
    if container is None:
        return None
    if container.kind == "pyxis":
        return "python3"
    binds = (word for mount in _mounts(container, folder) for word in ("--bind", mount))
    return shlex.join(["apptainer", "exec", "--nv", *binds, container.image, "python3"])


def _mounts(container: Container, folder: SweepFolder) -> list[str]:
    """The container's mounts, and mounts for the working folder and the sweep's folder.

    A job takes its code from the sweep's folder and writes there; relative paths, such as the
    tokenizer's, start from the working folder.
    """
    mounts = list(container.mounts)
    for path in (Path.cwd(), folder.path.resolve()):
        if not any(path.is_relative_to(mount.split(":")[1]) for mount in mounts):
            mounts.append(f"{path}:{path}")
    return mounts


def _srun_arguments(cluster: Cluster, folder: SweepFolder, cpus_per_task: int | None) -> list[str]:
    # Since Slurm 22.05 srun does not inherit this from sbatch.
    words = [f"--cpus-per-task={cpus_per_task}"] if cpus_per_task else []
    words.append("--kill-on-bad-exit=1")  # otherwise the other nodes wait for one that failed
    container = cluster.container
    if container is not None and container.kind == "pyxis":
        words.append(f"--container-image={container.image}")
        words.append(f"--container-mounts={','.join(_mounts(container, folder))}")
    return words
