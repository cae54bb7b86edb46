"""How one run is started, in a Slurm job or on this machine."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from slurm.cluster import Cluster
from slurm.ledger import SweepFolder
from slurm.sweep import RunSpec
from train.run.folder import STATUS, RunFolder


@dataclass(frozen=True)
class Task:
    """What is needed to start one run.

    Attributes:
        name: the run's name.
        arguments: arguments of ``python -m train``; they end with ``--output-dir``.
        code: folder of the code's snapshot.
        cwd: working folder, from which relative paths in the arguments start.
        processes: processes per node.
        launcher: one torchrun per node, or one task per process.
    """

    name: str
    arguments: tuple[str, ...]
    code: str
    cwd: str
    processes: int
    launcher: Literal["torchrun", "srun"]

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.arguments[-1])


def task(run: RunSpec, cluster: Cluster, folder: SweepFolder, code: Path, cwd: Path) -> Task:
    """The task of a run."""
    output = str(folder.run(run.name).resolve())
    return Task(
        name=run.name,
        arguments=(*run.arguments, *checkpoints(run), "--output-dir", output),
        code=str(code),
        cwd=str(cwd),
        processes=cluster.processes(run.resources),
        launcher=cluster.launcher,
    )


def checkpoints(run: RunSpec) -> tuple[str, ...]:
    """Enable checkpoints unless the sweep says otherwise, because a job can be preempted."""
    given = {"--checkpoint.enable", "--checkpoint.no_enable"} & {*run.arguments}
    return () if given else ("--checkpoint.enable",)


def announce(folder: Path) -> None:
    """Set the status of a new run to queued."""
    if not (folder / STATUS).exists():
        RunFolder(folder).set_status("queued")


def training(
    arguments: Sequence[str],
    *,
    processes: int,
    nodes: int = 1,
    node: int = 0,
    address: str = "",
    port: int = 0,
) -> list[str]:
    """The command that trains with ``processes`` processes on this node.

    Args:
        arguments: arguments of ``python -m train``.
        nodes, node: the number of nodes, and the index of this one.
        address, port: address and port of the first node, if there are several.
    """
    train = ["-m", "train", *arguments]
    if nodes == 1 and processes == 1:
        return [sys.executable, *train]
    launcher = [sys.executable, "-m", "slurm.torchrun", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*launcher, "--standalone", *train]
    there = [f"--nnodes={nodes}", f"--node-rank={node}"]
    return [*launcher, *there, f"--master-addr={address}", f"--master-port={port}", *train]
