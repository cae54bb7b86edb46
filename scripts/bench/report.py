"""The report of `scripts.bench.train`: measured rows, targets and predictions."""

import statistics
from dataclasses import dataclass
from typing import Any

from train.model import costs
from train.model.scales import SCALES

TARGET_STATIC = {"cpu": 1.02, "accelerator": 1.01}
TARGET_INTERVAL = {10: 1.08, 100: 1.01}
TARGET_REDRAWN_SHARE = 0.02
MIB = 2**20


@dataclass(frozen=True)
class Row:
    """One trainer; times in ms, bytes on the first rank."""

    name: str
    interval: int | None
    redrawn: bool
    plain_ms: float | None
    measuring_ms: float | None
    step_ms: float
    paired: float
    model_bytes: int
    w0_bytes: int
    z0_bytes: int
    probe_bytes: int
    communicated_bytes: int
    peak_bytes: int | None

    @property
    def kept_bytes(self) -> int:
        return self.w0_bytes + self.z0_bytes + self.probe_bytes

    @property
    def share(self) -> float:
        """`kept_bytes` as a part of parameters, gradients and optimizer state."""
        return self.kept_bytes / self.model_bytes


def step_time(plain: list[float], measuring: list[float], interval: int | None) -> float:
    """The mean step time of a whole interval, from medians; see `scripts.bench.train`."""
    if not measuring or interval is None:
        return statistics.median(plain)
    measured = statistics.median(measuring)
    if interval == 1:
        return measured
    usual = statistics.median(plain)
    return usual + (measured - usual) / interval


def rows_of(contenders: list[Any]) -> list[Row]:
    """Rows of `scripts.bench.contenders.Contender`: torchtitan's first, then the static one.

    With several ranks this is a collective.
    """
    static = contenders[1]
    return [_row(contender, static) for contender in contenders]


def _row(contender: Any, static: Any) -> Row:
    kept, model = contender.bytes_kept(), contender.bytes_of_model()
    plain, measuring = contender.plain(), contender.measuring()
    rounds = range(len(contender.blocks))
    pairs = [_round(contender, i) / _round(static, i) for i in rounds]
    return Row(
        name=contender.name,
        interval=contender.interval,
        redrawn=contender.redrawn,
        plain_ms=statistics.median(plain) if plain else None,
        measuring_ms=statistics.median(measuring) if measuring else None,
        step_ms=step_time(plain, measuring, contender.interval),
        paired=statistics.median(pairs),
        model_bytes=model,
        w0_bytes=kept["w0"],
        z0_bytes=kept["z0"],
        probe_bytes=kept["probe"],
        communicated_bytes=contender.bytes_communicated(),
        peak_bytes=None if contender.peak is None else contender.peak + model + sum(kept.values()),
    )


def _round(contender: Any, i: int) -> float:
    return step_time(contender.plain(i), contender.measuring(i), contender.interval)


def table(rows: list[Row]) -> str:
    """A table of times and ratios, and one of bytes."""
    own, static = rows[0], rows[1]
    head = ("plain ms", "measuring", "step ms", "/torchtitan", f"/{static.name}", "paired")
    width = max(len(r.name) for r in rows) + 2
    lines = [f"{'':<{width}}" + "".join(f"{name:>12}" for name in head)]
    for r in rows:
        ratios = (f"{r.step_ms / base.step_ms:.3f}" for base in (own, static))
        times = (_ms(r.plain_ms), _ms(r.measuring_ms), _ms(r.step_ms), *ratios, f"{r.paired:.3f}")
        lines.append(f"{r.name:<{width}}" + "".join(f"{value:>12}" for value in times))
    head = ("model MiB", "W0 MiB", "z0 MiB", "kept share", "sent KiB", "peak MiB")
    lines += ["", f"{'':<{width}}" + "".join(f"{name:>12}" for name in head)]
    for r in rows:
        peak = "-" if r.peak_bytes is None else _mib(r.peak_bytes)
        sizes = (_mib(r.model_bytes), _mib(r.w0_bytes), _mib(r.z0_bytes))
        more = (f"{r.share:.2%}", f"{r.communicated_bytes / 1024:.1f}", peak)
        lines.append(f"{r.name:<{width}}" + "".join(f"{value:>12}" for value in (*sizes, *more)))
    return "\n".join(lines)


def predictions(names: list[str], mesh: costs.Mesh, probe: costs.Probe) -> str:
    """Predictions of `train.model.costs` for some scales on the same mesh."""
    head = ("parameters", "model MiB", "W0 MiB", "z0 MiB", "kept", "W0 redrawn", "sent KiB")
    more = ("FLOPs/step", "measurement")
    lines = [f"{'':<8}" + "".join(f"{name:>12}" for name in head + more)]
    for name in names:
        scale = SCALES[name]
        memory = costs.memory(scale, mesh, probe)
        shares = (f"{memory.share(resample_w0=redrawn):.2%}" for redrawn in (False, True))
        flops = costs.step_flops(scale)
        values = (
            f"{sum(costs.parameters(scale)) / 1e6:.1f}M",
            *(_mib(size) for size in (memory.model, memory.w0, memory.z0)),
            *shares,
            f"{costs.communicated(scale, mesh, probe) / 1024:.1f}",
            f"{flops:.3g}",
            f"{costs.measurement_flops(scale, probe) / flops:.2%}",
        )
        lines.append(f"{name:<8}" + "".join(f"{value:>12}" for value in values))
    return "\n".join(lines)


def differences(r: Row, scale: str, mesh: costs.Mesh, probe: costs.Probe) -> list[str]:
    """Bytes of a row that differ from the prediction of `train.model.costs`."""
    memory = costs.memory(SCALES[scale], mesh, probe)
    pairs = {
        "model": (r.model_bytes, memory.model),
        "W0": (r.w0_bytes, memory.gains if r.redrawn else memory.w0),
        "z0": (r.z0_bytes, memory.z0),
        "probe": (r.probe_bytes, memory.probe),
        "communicated": (r.communicated_bytes, costs.communicated(SCALES[scale], mesh, probe)),
    }
    if r.interval is None:
        pairs = {"model": pairs["model"]}
    return [
        f"{r.name}: {name} {measured} bytes measured, {predicted} predicted"
        for name, (measured, predicted) in pairs.items()
        if measured != predicted
    ]


def verdict(rows: list[Row], *, accelerator: bool) -> list[str]:
    """One line per target: the measured value, the target, and whether it is reached."""
    own, static = rows[0], rows[1]
    limit = TARGET_STATIC["accelerator" if accelerator else "cpu"]
    lines = [_judged("static / torchtitan", static.step_ms / own.step_ms, limit)]
    for r in rows:
        if r.interval in TARGET_INTERVAL and not r.redrawn:
            ratio = r.step_ms / static.step_ms
            lines.append(_judged(f"{r.name} / static", ratio, TARGET_INTERVAL[r.interval]))
        if r.redrawn:
            lines.append(_judged("kept with W0 redrawn", r.share, TARGET_REDRAWN_SHARE))
    return lines


def _judged(name: str, value: float, limit: float) -> str:
    return f"{name} {value:.4f}, target {limit}: {'reached' if value <= limit else 'MISSED'}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _mib(size: int) -> str:
    return f"{size / MIB:.2f}"


def report(
    rows: list[Row], scale: str, mesh: costs.Mesh, probe: costs.Probe, *, accelerator: bool
) -> str:
    """The whole report as text."""
    apart = [line for r in rows for line in differences(r, scale, mesh, probe)]
    return "\n".join(
        (
            f"{scale} on {mesh}, {probe}\n",
            table(rows),
            "",
            *verdict(rows, accelerator=accelerator),
            "\npredicted on this mesh (FLOPs of a measurement relative to those of a step):",
            predictions([scale, *(f"s{i}" for i in range(1, 6))], mesh, probe),
            "",
            *(apart or [f"{scale}: every byte as predicted"]),
        )
    )
