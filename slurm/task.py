"""One run as a job, or a process of this machine, starts it."""

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
    """One run as a job starts it.

    Attributes:
        name: of the run.
        arguments: the command line of ``python -m train``, with its ``--output-dir``.
        code: folder of the code's snapshot.
        cwd: folder that relative paths in the arguments start from.
        processes: a node.
        launcher: one torchrun a node, or one task a process.
    """

    name: str
    arguments: tuple[str, ...]
    code: str
    cwd: str
    processes: int
    launcher: Literal["torchrun", "srun"]

    @property
    def folder(self) -> Path:
        """The run's; its arguments end with it."""
        return Path(self.arguments[-1])


def task(run: RunSpec, cluster: Cluster, folder: SweepFolder, code: Path, cwd: Path) -> Task:
    """What the job of a run does."""
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
    """A job may be preempted at any time, so its run saves, also at the scales that do not."""
    given = {argument for argument in run.arguments if argument.startswith("--checkpoint.")}
    return (
        ()
        if given & {"--checkpoint.enable", "--checkpoint.no_enable"}
        else ("--checkpoint.enable",)
    )


def announce(folder: Path) -> None:
    """Let a run that has no status yet say that it is queued."""
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
        arguments: of ``python -m train``.
        nodes, node: how many there are, and which this is.
        address, port: of the first node, where there are several.
    """
    train = ["-m", "train", *arguments]
    if nodes == 1 and processes == 1:
        return [sys.executable, *train]
    launcher = [sys.executable, "-m", "slurm.torchrun", f"--nproc-per-node={processes}"]
    if nodes == 1:
        return [*launcher, "--standalone", *train]
    there = [f"--nnodes={nodes}", f"--node-rank={node}"]
    return [*launcher, *there, f"--master-addr={address}", f"--master-port={port}", *train]
