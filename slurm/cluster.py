"""A cluster file: account, partition, hardware, launcher, set-up lines and container of a cluster.

``--cluster NAME`` chooses it. Wall time and nodes belong to the sweep file instead.
``configs/clusters/example_h100.toml`` explains every key.
"""

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import ConfigDict

from slurm.config_file import NO_OTHER_KEYS, ConfigError, build, read_toml
from slurm.resources import Resources, parse_time
from train.model.costs import H100_FLOPS, USUAL_MFU

RUNS = "runs"
"""Where runs go by default."""

_SHIPPED = Path(__file__).resolve().parents[1] / "configs" / "clusters"
_MEMORY = re.compile(r"\d+[KMGT]?", re.ASCII)
_OPTION = re.compile(r"(--)?[A-Za-z][A-Za-z0-9_-]*")

# sbatch options that are not allowed in [sbatch]: each has its own key, or is set per job.
_OWN_KEY = {
    "account": "account",
    "partition": "partition",
    "qos": "qos",
    "constraint": "constraint",
    "mem": "mem_per_node",
    "mem_per_gpu": "mem_per_gpu",
    "cpus_per_gpu": "cpus_per_gpu",
    "cpus_per_task": "cpus_per_process",
    "gres": "gpu_request",
    "gpus_per_node": "gpu_request",
    "signal": "signal_lead_seconds",
}
_SET_BY_SUBMISSION = frozenset(
    {"array", "nodes", "ntasks", "ntasks_per_node", "time", "job_name", "output", "error"}
    | {"requeue", "no_requeue", "open_mode", "chdir", "wrap", "gpus", "gpus_per_task"}
)


@dataclass(frozen=True)
class Container:
    """The image that a run starts in.

    Attributes:
        kind: ``pyxis`` (``srun --container-image``, enroot) or ``apptainer`` (``apptainer exec``).
        image: the image, as the tool names it.
        mounts: ``HOST:CONTAINER`` pairs.
    """

    kind: Literal["pyxis", "apptainer"]
    image: str
    mounts: tuple[str, ...] = ()

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_KEYS

    def __post_init__(self) -> None:
        if not self.image:
            raise ValueError('image: "": name an image')
        _check_printable(self.image, "image")
        for mount in self.mounts:
            _check_printable(mount, "mounts")
            if ":" not in mount:
                raise ValueError(f'mounts: {mount!r}: write "HOST:CONTAINER"')


@dataclass(frozen=True)
class Cluster:
    """A validated cluster file; every field is a key of it.

    Attributes:
        name: the file's name without ``.toml``.
        kind: ``local`` runs on this machine, without Slurm.
        gpus_per_node: 0 trains on the CPU.
        gpu_request: the sbatch option: ``--gpus-per-node=N``, or ``--gres=gpu:N``.
        gpu_type: a GPU model such as ``h100``, for ``--gpus-per-node=h100:N``.
        processes_per_node: without GPUs; with GPUs there is one process per GPU.
        cpus_per_gpu: CPU cores per GPU.
        cpus_per_process: CPU cores per process, without GPUs.
        mem_per_gpu, mem_per_node: in Slurm's form, ``"120G"``; ``"0"`` is all memory of a node.
        max_parallel: most jobs of a sweep that run at the same time.
        max_time: the partition's limit on the wall time.
        launcher: ``torchrun`` starts one task per node, ``srun`` one per process.
        setup: shell lines before each run.
        container: the container that runs start in.
        signal_lead_seconds: seconds between the signal USR2 and the end of the wall time, in which
            a run saves and is requeued.
        sbatch: more options of sbatch: ``{exclusive = true, reservation = "x"}``.
        runs_dir: folder for runs; None is ``runs`` in the working folder.
        peak_flops: dense bfloat16 FLOP/s of one GPU, for estimates.
        mfu: the fraction of ``peak_flops`` that training is expected to reach.
    """

    name: str
    kind: Literal["slurm", "local"]
    account: str | None = None
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    gpus_per_node: int = 0
    gpu_request: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    gpu_type: str | None = None
    processes_per_node: int | None = None
    cpus_per_gpu: int | None = None
    cpus_per_process: int | None = None
    mem_per_gpu: str | None = None
    mem_per_node: str | None = None
    max_parallel: int | None = None
    max_time: str | None = None
    launcher: Literal["torchrun", "srun"] = "torchrun"
    setup: tuple[str, ...] = ()
    container: Container | None = None
    signal_lead_seconds: int = 300
    sbatch: Mapping[str, str | int | bool] = field(default_factory=dict)
    runs_dir: str | None = None
    peak_flops: float = H100_FLOPS
    mfu: float = USUAL_MFU

    __pydantic_config__: ClassVar[ConfigDict] = NO_OTHER_KEYS

    def __post_init__(self) -> None:
        for key in ("account", "partition", "qos", "constraint", "gpu_type", "runs_dir"):
            _check_printable(getattr(self, key), key)
        for key in ("processes_per_node", "cpus_per_gpu", "cpus_per_process", "max_parallel"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key}: {value}: must be at least 1")
        for key in ("gpus_per_node", "signal_lead_seconds"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key}: {getattr(self, key)}: must not be negative")
        for key in ("mem_per_gpu", "mem_per_node"):
            value = getattr(self, key)
            if value is not None and not _MEMORY.fullmatch(value):
                raise ValueError(f'{key}: {value!r}: write a number and K, M, G or T, as "120G"')
        if self.mem_per_gpu and self.mem_per_node:
            raise ValueError("mem_per_node: excludes mem_per_gpu: remove one")
        if not (0 < self.mfu <= 1 and 0 < self.peak_flops < float("inf")):
            raise ValueError(f"mfu: {self.mfu}: must be in (0, 1], and peak_flops positive")
        if self.max_time is not None:
            parse_time(self.max_time, "max_time")
        self._check_processes()
        self._check_sbatch()

    def _check_processes(self) -> None:
        if self.gpus_per_node:
            pointless = {"processes_per_node": "there is one process per GPU: remove it"}
            pointless["cpus_per_process"] = "use cpus_per_gpu"
        else:
            keys = ("gpu_type", "cpus_per_gpu", "mem_per_gpu")
            pointless = dict.fromkeys(keys, "there are no GPUs: set gpus_per_node")
        for key, remedy in pointless.items():
            if getattr(self, key) is not None:
                raise ValueError(f"{key}: {remedy}")
        if self.kind == "slurm" and not (self.gpus_per_node or self.processes_per_node):
            raise ValueError("gpus_per_node: missing: add it, or processes_per_node without GPUs")

    def _check_sbatch(self) -> None:
        options: set[str] = set()
        for written, value in self.sbatch.items():
            if not _OPTION.fullmatch(written):
                raise ValueError(f"sbatch.{written}: is no option of sbatch: correct its name")
            _check_printable(value, f"sbatch.{written}")
            option = written.removeprefix("--").replace("-", "_")
            if option in options:
                raise ValueError(f"sbatch.{written}: is there twice: remove one")
            options.add(option)
            if option in _OWN_KEY:
                raise ValueError(f"sbatch.{written}: has its own key: use {_OWN_KEY[option]}")
            if option in _SET_BY_SUBMISSION:
                raise ValueError(f"sbatch.{written}: is set for each job: remove it")

    def gpus(self, resources: Resources) -> int:
        """GPUs that a job takes on each node; 0 on a CPU cluster."""
        if not self.gpus_per_node:
            return 0
        return resources.gpus_per_node or self.gpus_per_node

    def processes(self, resources: Resources) -> int:
        """Processes of a run on each node: one per GPU, or as many as the file says."""
        return self.gpus(resources) or self.processes_per_node or 1

    def check(self, resources: Resources, scale: str) -> None:
        """Check that a job can start on this cluster.

        Raises:
            ConfigError: more GPUs per node, or a longer wall time, than the cluster has; a wall
                time no longer than the signal's lead; GPUs or several nodes on this machine,
                where the cluster file does not have them.
        """
        asked = resources.gpus_per_node or 0
        remedy = "change one of the two files"
        if asked and self.kind == "local" and not self.gpus_per_node:
            problem = f"gpus_per_node {asked}: cluster {self.name} has no GPUs"
            remedy = (
                "pass --cluster NAME of one that has them, or remove gpus_per_node from the sweep "
                "file to train on this machine's CPU"
            )
        elif self.gpus_per_node and asked > self.gpus_per_node:
            problem = f"gpus_per_node {asked}: cluster {self.name} has {self.gpus_per_node}"
        elif self.kind == "local" and resources.nodes > 1:
            problem = f"nodes {resources.nodes}: cluster {self.name} is a single machine"
        elif self.kind == "slurm" and resources.seconds <= self.signal_lead_seconds:
            problem = (
                f"time {resources.time}: not over signal_lead_seconds {self.signal_lead_seconds} "
                f"of cluster {self.name}, so the run would stop at once"
            )
        elif self.max_time and resources.seconds > parse_time(self.max_time, "max_time"):
            problem = f"time {resources.time}: over max_time {self.max_time} of cluster {self.name}"
        else:
            return
        raise ConfigError(f"scale.{scale}: {problem}: {remedy}")


def _check_printable(value: object, key: str) -> None:
    # A line break would begin another line of the batch script.
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"{key}: {value!r}: holds a line break or control character: remove it")


def load_cluster(name_or_path: str | Path) -> Cluster:
    """Read a cluster file, given by path or by name.

    Names are looked up in ``configs/clusters`` and in ``$XDG_CONFIG_HOME/maxp/clusters``, by
    default ``~/.config/maxp/clusters``.

    Raises:
        ConfigError: no such file, a name that both folders have, or a mistake in the file.
    """
    text = str(name_or_path)
    is_path = text.endswith(".toml") or "/" in text
    path = Path(text).expanduser() if is_path else _find(text)
    return build(Cluster, {"name": path.stem, **read_toml(path)}, str(path))


def known_clusters() -> dict[str, list[Path]]:
    """Cluster files by name, in the repository and in the user's folder."""
    files: dict[str, list[Path]] = {}
    for folder in (_SHIPPED, _users_folder()):
        for path in sorted(folder.glob("*.toml")):
            files.setdefault(path.stem, []).append(path)
    return files


def runs_dirs() -> list[Path]:
    """Where sweeps without ``--runs-dir`` go: ``runs``, or the runs_dir of some cluster file."""
    folders = {Path(RUNS): None}
    for path in (path for paths in known_clusters().values() for path in paths):
        with contextlib.suppress(ConfigError):  # nothing was submitted with such a file
            if runs_dir := load_cluster(path).runs_dir:
                folders[Path(runs_dir)] = None
    return list(folders)


def _find(name: str) -> Path:
    known = known_clusters()
    paths = known.get(name, [])
    if not paths:
        raise ConfigError(
            f"--cluster {name}: unknown: choose from {', '.join(sorted(known)) or 'none'}, or put "
            f"{name}.toml into {_users_folder()}"
        )
    if len(paths) > 1:
        raise ConfigError(f"--cluster {name}: both {paths[0]} and {paths[1]}: pass the path")
    return paths[0]


def _users_folder() -> Path:
    root = os.environ.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "maxp" / "clusters"
