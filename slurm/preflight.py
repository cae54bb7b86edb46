"""Check with the trainer, before submission, that it accepts the jobs' command lines."""

import os
from collections.abc import Iterable

from slurm.cluster import Cluster, Container
from slurm.config_file import ConfigError
from slurm.sweep import RunSpec


def check(runs: Iterable[RunSpec], cluster: Cluster) -> None:
    """Let the trainer parse and check the flags of one run per scale and method.

    The checks assume the cluster's number of processes, but not its GPUs. Paths in a container are
    checked where they are mounted from. Imports torch.

    Raises:
        ConfigError: the trainer refuses the flags; the message is the trainer's.
    """
    first: dict[tuple[str, str], RunSpec] = {}
    for run in runs:
        first.setdefault((run.scale, run.method), run)
    if not first:
        return
    from train.cli import parse

    former = os.environ.get("WORLD_SIZE")
    try:
        for run in first.values():
            processes = run.resources.nodes * cluster.processes(run.resources)
            os.environ["WORLD_SIZE"] = str(processes)
            parse([_mounted_from(word, cluster.container) for word in run.arguments])
    except ValueError as error:
        raise ConfigError(f"{run.name}: {error}") from error
    except SystemExit as refused:  # tyro has printed why
        raise ConfigError(
            f"{run.name}: python -m train does not take its flags (see above); correct [flags] of "
            "the sweep, or --set"
        ) from refused
    finally:
        os.environ.pop("WORLD_SIZE", None)
        if former is not None:
            os.environ["WORLD_SIZE"] = former


def _mounted_from(word: str, container: Container | None) -> str:
    """A path in the container as a path of this machine; other words unchanged."""
    for mount in container.mounts if container else ():
        here, there = mount.split(":")[:2]
        if word == there or word.startswith(f"{there}/"):
            return here + word.removeprefix(there)
    return word
