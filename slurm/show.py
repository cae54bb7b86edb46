"""The status of a sweep as text: one line a run, and a summary."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from slurm.estimate import ScaleEstimate
from slurm.ledger import SweepFolder
from slurm.states import Standing, State, last_error, last_metrics

_COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left", "job", "")


def lines(folder: SweepFolder, standings: Sequence[Standing]) -> list[str]:
    """The table, one line a run; only running ones have their metrics read."""
    rows = [_COLUMNS, *(_row(folder, standing) for standing in standings)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    return [
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        ).rstrip()
        for row in rows
    ]


def summary(standings: Sequence[Standing]) -> str:
    """ "42 runs: 30 completed, 2 diverged, 6 running, 4 queued"."""
    counts = Counter(standing.state for standing in standings)
    named = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    return f"{len(standings)} runs: {named}" if named else "no runs"


def costs(estimates: Sequence[ScaleEstimate], kind: str) -> list[str]:
    """What a sweep takes: one line a scale, the total, and warnings.

    Args:
        kind: of the devices, "GPU" or "process".
    """
    found = [
        f"{e.scale}: {e.runs} jobs of {e.devices} {kind}{'' if e.devices == 1 else 's'}, "
        + (
            "time unknown until a run has been measured"
            if e.hours is None
            else f"{e.hours:.2g} h each ({e.source}), {e.device_hours:.3g} {kind}-hours"
        )
        for e in estimates
    ]
    known = [e.device_hours for e in estimates if e.device_hours is not None]
    total = f", {sum(known):.3g} {kind}-hours" if len(known) == len(estimates) else ""
    found.append(f"in all: {sum(e.runs for e in estimates)} jobs{total}")
    return [*found, *(f"warning: {e.warning}" for e in estimates if e.warning)]


def as_record(folder: SweepFolder, standing: Standing) -> dict[str, Any]:
    """One run for scripts."""
    run, record = standing.run, standing.record
    return {
        "run": run.name,
        "state": str(standing.state),
        "step": standing.step,
        "steps": run.steps,
        "detail": _detail(folder, standing),
        "job_id": record.job_id if record else None,
        "commit": record.commit if record else None,
        "log": record.log if record else None,
    }


def _row(folder: SweepFolder, standing: Standing) -> tuple[str, ...]:
    step, loss, speed, left = standing.step, "", "", ""
    if standing.state is State.RUNNING:
        last = last_metrics(folder.run(standing.run.name))
        step = last.get("step", step)
        loss = _number(last.get("loss"), "{:.3f}")
        speed = _number(last.get("tokens_per_second"), "{:,.0f}")
        left = _left(standing, last)
    steps = standing.run.steps
    job = standing.record.job_id if standing.record else None
    return (
        standing.run.name,
        str(standing.state),
        "" if step is None else f"{step}/{steps}",
        *(loss, speed, left),
        job or "",
        _detail(folder, standing),
    )


def _left(standing: Standing, last: dict[str, Any]) -> str:
    """Time until its last step at its present speed."""
    step, seconds = last.get("step"), last.get("step_seconds")
    if not isinstance(step, int) or not isinstance(seconds, int | float):
        return ""
    return duration((standing.run.steps - step) * seconds)


def _detail(folder: SweepFolder, standing: Standing) -> str:
    if standing.state in (State.FAILED, State.VANISHED):
        said = [standing.detail, last_error(folder, standing.record)]
        return " | ".join(dict.fromkeys(filter(None, said)))
    return standing.detail


def duration(seconds: float) -> str:
    """3725 -> "1:02:05", with days "2-03:00:00"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (
        f"{days}-{hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
    )


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else ""
