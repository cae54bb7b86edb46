"""Ask the trainer, before a job is submitted, whether it would take the job's command line."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from slurm.cluster import Cluster, Container
from slurm.config_file import ConfigError
from slurm.sweep import RunSpec


def check(runs: Iterable[RunSpec], cluster: Cluster) -> None:
    """Have the trainer read the flags of one run of each scale and method.

    It reads them as on a node of the cluster, with as many processes, but without their GPUs. Paths
    of the cluster's container are read where they are mounted from. Imports torch.

    Raises:
        ConfigError: it refuses them; the message is the trainer's.
    """
    first: dict[tuple[str, str], RunSpec] = {}
    for run in runs:
        first.setdefault((run.scale, run.method), run)
    if not first:
        return
    from train.cli import parse

    for run in first.values():
        processes = run.resources.nodes * cluster.processes(run.resources)
        with _world_size(processes):
            try:
                parse([_mounted_from(word, cluster.container) for word in run.arguments])
            except ValueError as error:
                raise ConfigError(f"{run.name}: {error}") from error
            except SystemExit as refused:  # tyro has said why
                raise ConfigError(
                    f"{run.name}: python -m train does not take its flags, as said above; correct "
                    "[flags] of the sweep, or --set"
                ) from refused


def _mounted_from(word: str, container: Container | None) -> str:
    """A path in the container as this machine has it; any other word as it is."""
    for mount in container.mounts if container else ():
        here, there = mount.split(":")[:2]
        if word == there or word.startswith(f"{there}/"):
            return here + word.removeprefix(there)
    return word


@contextmanager
def _world_size(processes: int) -> Iterator[None]:
    former = os.environ.get("WORLD_SIZE")
    os.environ["WORLD_SIZE"] = str(processes)
    try:
        yield
    finally:
        if former is None:
            del os.environ["WORLD_SIZE"]
        else:
            os.environ["WORLD_SIZE"] = former
