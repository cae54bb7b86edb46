"""Hours and GPU-hours of a sweep, from measured speed or else from FLOPs.

Speed is measured in runs of the same scale, in tokens or images per second and device;
`train.model.costs` counts FLOPs.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from slurm.cluster import Cluster
from slurm.flags import Flags
from slurm.sweep import RunSpec, Sweep
from train.method.methods import METHODS
from train.method.settings import MaxPSettings
from train.model import costs
from train.model.image_scales import ImageScale
from train.model.scales import AnyScale, find_scale

_HOUR = 3600


@dataclass(frozen=True)
class ScaleEstimate:
    """Costs of the runs of one scale.

    Attributes:
        runs: number of runs.
        devices: GPUs per run, or processes per run on a CPU cluster.
        hours: wall time per run, the mean over methods and axes; None where unknown.
        wall_hours: wall time after which a run is requeued; None without a limit.
        source: where ``hours`` comes from.
    """

    scale: str
    runs: int
    devices: int
    hours: float | None
    wall_hours: float | None
    source: Literal["measured", "predicted", "unknown"]

    @property
    def device_hours(self) -> float | None:
        """Device-hours of all runs."""
        return None if self.hours is None else self.hours * self.devices * self.runs

    @property
    def warning(self) -> str | None:
        """One line if a run is longer than its wall time, else None."""
        if self.hours is None or self.wall_hours is None or self.hours <= self.wall_hours:
            return None
        return (
            f"scale.{self.scale}.time: a run takes about {self.hours:.1f} h and has "
            f"{self.wall_hours:.1f} h: it will be requeued and resume from its checkpoint; "
            "more time or more nodes would avoid that"
        )


def measured_speeds(folder: str | os.PathLike[str]) -> dict[str, float]:
    """Tokens, or images, per second and device by scale: the median over the runs below ``folder``.

    Empty if the folder does not exist.
    """
    if not os.path.isdir(folder):
        return {}
    from train.results.collect import collect  # pandas, which nothing else here needs

    runs = collect(folder)
    runs = runs[runs["tokens_per_second"] > 0]
    medians = runs.groupby("scale")["tokens_per_second"].median()
    return {str(scale): float(speed) for scale, speed in medians.items()}


def estimate(
    sweep: Sweep, runs: Sequence[RunSpec], cluster: Cluster, speeds: Mapping[str, float]
) -> list[ScaleEstimate]:
    """Costs of ``runs``, a part of ``sweep``, on a cluster: one entry per scale.

    Args:
        speeds: tokens, or images, per second and device by scale, as from `measured_speeds`. For
            other scales the time follows from FLOPs and the cluster's ``peak_flops`` and ``mfu``;
            on a CPU cluster it is unknown.
    """
    by_scale: dict[str, list[RunSpec]] = {}
    for run in runs:
        by_scale.setdefault(run.scale, []).append(run)
    return [
        _estimate(members, sweep.flags[scale], cluster, speeds.get(scale))
        for scale, members in by_scale.items()
    ]


def _estimate(
    runs: Sequence[RunSpec], flags: Flags, cluster: Cluster, speed: float | None
) -> ScaleEstimate:
    first = runs[0]
    devices = first.resources.nodes * cluster.processes(first.resources)
    hours: float | None = None
    source: Literal["measured", "predicted", "unknown"] = "unknown"
    if speed is not None or cluster.gpus_per_node:
        source = "predicted" if speed is None else "measured"
        alike = Counter((run.method, tuple(run.axes.values())) for run in runs)
        members = {(run.method, tuple(run.axes.values())): run for run in runs}
        total = sum(
            number * _hours(members[key], flags | dict(members[key].axes), devices, cluster, speed)
            for key, number in alike.items()
        )
        hours = total / len(runs)
    wall = first.resources.seconds / _HOUR if cluster.kind == "slurm" else None
    return ScaleEstimate(first.scale, len(runs), devices, hours, wall, source)


def _hours(
    run: RunSpec, flags: Flags, devices: int, cluster: Cluster, speed: float | None
) -> float:
    """Wall time of one run."""
    scale = _as_flagged(find_scale(run.scale), flags, devices)
    if speed is not None:
        tokens = run.steps * scale.global_batch_size * scale.seq_len
        return tokens / (speed * devices) / _HOUR
    interval = _whole(flags, "maxp.solve_interval", MaxPSettings().solve_interval)
    device_hours = costs.gpu_hours(
        scale,
        run.steps,
        devices,
        mfu=cluster.mfu,
        peak_flops=cluster.peak_flops,
        solve_interval=interval if METHODS[run.method].follows else None,
    )
    return device_hours / devices


def _as_flagged(scale: AnyScale, flags: Flags, devices: int) -> AnyScale:
    """The scale with the batch that a run's flags set."""
    local = _whole(flags, "training.local_batch_size", scale.local_batch_size)
    batch = _whole(flags, "training.global_batch_size", scale.global_batch_size)
    if batch < 0:  # in torchtitan: one microbatch per device
        batch = local * devices
    if isinstance(scale, ImageScale):
        size = _whole(flags, "dataloader.image_size", scale.image_size)
        return replace(scale, image_size=size, local_batch_size=local, global_batch_size=batch)
    return replace(
        scale,
        seq_len=_whole(flags, "training.seq_len", scale.seq_len),
        local_batch_size=local,
        global_batch_size=batch,
    )


def _whole(flags: Flags, name: str, default: int) -> int:
    """The value of an integer flag; the trainer refuses other values."""
    value = flags.get(name, default)
    return value if isinstance(value, int) and not isinstance(value, bool) else default
