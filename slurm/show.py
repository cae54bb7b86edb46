"""The status of a sweep as text: one line per run, and a summary."""

import contextlib
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from slurm.estimate import ScaleEstimate
from slurm.ledger import SweepFolder
from slurm.states import ACTIVE, RESULTS, Standing, State, last_error
from train.model.image_scales import is_image_scale
from train.run import tail
from train.run.folder import METRICS, ended_at
from train.run.summary import SummaryError, read_summary
from train.run.tail import Tail

LISTED = 100
"""Most runs that are listed; of more runs, those that run or need attention come first."""

_COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left", "job", "")
_RIGHT = frozenset({"step", "loss", "tokens/s", "left"})
_NEED_SOMEBODY = (State.FAILED, State.UNREADABLE, State.VANISHED, State.CANCELLED)


def lines(
    folder: SweepFolder,
    standings: Sequence[Standing],
    *,
    width: int | None = None,
    everything: bool = False,
) -> list[str]:
    """The table with one line per run, and a last line about runs that are not listed.

    Reads only the files of listed runs.

    Args:
        width: characters per line, to which lines are cut; None does not cut.
        everything: list all runs, however many.
    """
    listed = standings if everything else _listed(standings)
    commands = bool(folder.commands())
    images = bool(listed) and all(is_image_scale(standing.run.scale) for standing in listed)
    heads = tuple(name.replace("tokens", "images") if images else name for name in _COLUMNS)
    rows = [heads, *(_row(folder, standing, commands) for standing in listed)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    # Empty columns are left out.
    used = [any(row[i] for row in rows[1:]) for i in range(len(_COLUMNS))]
    table = []
    for row in rows if listed else []:
        cells = [
            cell.rjust(size) if name in _RIGHT else cell.ljust(size)
            for cell, size, name, use in zip(row, widths, _COLUMNS, used, strict=False)
            if use
        ]
        table.append(_cut("  ".join([*cells, row[-1]]).rstrip(), width))
    if len(listed) < len(standings):
        names = {standing.run.name for standing in listed}
        hidden = counted(s for s in standings if s.run.name not in names)
        table.append(f"not listed: {hidden}; --all lists them")
    return table


def summary(standings: Sequence[Standing]) -> str:
    """ "42 runs: 30 completed, 2 diverged, 6 running, 4 queued"."""
    return f"{len(standings)} runs: {counted(standings)}" if standings else "no runs"


def counted(standings: Iterable[Standing]) -> str:
    """ "30 completed, 2 diverged"; empty for none."""
    counts = Counter(standing.state for standing in standings)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def advice(folder: SweepFolder, standings: Sequence[Standing]) -> list[str]:
    """The commands to use next, one per line."""
    states = {standing.state for standing in standings}
    where = shlex.quote(str(folder.path))
    hints = []
    at_work = folder.commands()
    if at_work and State.MISSING in states:
        numbers = " and ".join(str(process.pid) for process in at_work)
        hints.append(f"missing runs wait for process {numbers} of this machine")
    elif states & {State.MISSING, State.VANISHED, State.CANCELLED}:
        hints.append(f"submit missing runs: python -m slurm resume {where}")
    if State.FAILED in states:
        hints.append(f"start failed runs again: python -m slurm retry {where}")
    if states & RESULTS and not states & ACTIVE:
        hints.append(f"the table: python -m slurm table {where}")
    return hints


def costs(estimates: Sequence[ScaleEstimate], kind: str) -> list[str]:
    """The costs of a sweep: one line per scale, the total, and warnings.

    Args:
        kind: the kind of devices, "GPU" or "process".
    """
    report = [
        f"{e.scale}: {plural(e.runs, 'job')} of {plural(e.devices, kind)}, "
        + (
            "time unknown until a run has been measured"
            if e.hours is None
            else f"{e.hours:.2g} h each ({e.source}), {e.device_hours:.3g} {kind}-hours"
        )
        for e in estimates
    ]
    known = [e.device_hours for e in estimates if e.device_hours is not None]
    total = f", {sum(known):.3g} {kind}-hours" if len(known) == len(estimates) else ""
    report.append(f"in all: {plural(sum(e.runs for e in estimates), 'job')}{total}")
    return [*report, *(f"warning: {e.warning}" for e in estimates if e.warning)]


def plural(number: int, noun: str) -> str:
    """``1 job``, ``2 jobs``, ``2 processes``."""
    end = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{end}"


def as_record(folder: SweepFolder, standing: Standing) -> dict[str, Any]:
    """One run for scripts; ``left`` is in seconds, and unknown values are None."""
    run, record = standing.run, standing.record
    end, left = progress(folder, standing)
    return {
        "run": run.name,
        **{key: getattr(run, key) for key in ("scale", "method", "lr", "seed", "axes")},
        "state": str(standing.state),
        "step": standing.step if end.step is None else end.step,
        "steps": run.steps,
        "loss": end.loss,
        "tokens_per_second": end.tokens_per_second,
        "left": left,
        "validation_loss": end.validation if standing.state is State.COMPLETED else None,
        "detail": _detail(folder, standing, end),
        "job_id": record.job_id if record else None,
        "commit": record.commit if record else None,
        "log": record.log if record else None,
    }


def progress(folder: SweepFolder, standing: Standing) -> tuple[Tail, float | None]:
    """The end of a run's metrics, and the seconds left at the speed of the last step.

    Only the metrics of runs that run or have a result are read.
    """
    path = folder.run(standing.run.name)
    with contextlib.suppress(OSError):  # moved away meanwhile
        if standing.state is State.RUNNING:
            return _latest(path / METRICS, standing.run.steps)
        if standing.state in RESULTS:
            return _finished(path, standing), None
    return Tail(), None


def duration(seconds: float) -> str:
    """3725 -> "1:02:05", with days "2-03:00:00"."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (
        f"{days}-{hour:02}:{minute:02}:{second:02}" if days else f"{hour}:{minute:02}:{second:02}"
    )


def _listed(standings: Sequence[Standing]) -> Sequence[Standing]:
    if len(standings) <= LISTED:
        return standings
    chosen = [
        s for state in (*_NEED_SOMEBODY, State.RUNNING) for s in standings if s.state is state
    ]
    names = {standing.run.name for standing in chosen[:LISTED]}
    return [standing for standing in standings if standing.run.name in names]


def _row(folder: SweepFolder, standing: Standing, commands: bool) -> tuple[str, ...]:
    """One line's cells; ``commands``: whether a command on this machine still starts runs."""
    shown = as_record(folder, standing)
    detail = shown["detail"]
    if standing.state is State.MISSING and commands:
        detail = "waits for its turn here"

    def cell(key: str, form: str) -> str:
        return "" if shown[key] is None else format(shown[key], form)

    return (
        shown["run"],
        shown["state"],
        "" if shown["step"] is None else f"{shown['step']}/{shown['steps']}",
        cell("loss", ".3f"),
        cell("tokens_per_second", ",.0f"),
        "" if shown["left"] is None else duration(shown["left"]),
        shown["job_id"] or "",
        detail,
    )


def _detail(folder: SweepFolder, standing: Standing, end: Tail) -> str:
    parts = [standing.detail]
    if standing.state is State.COMPLETED and end.validation is not None:
        accuracy = "" if end.accuracy is None else f", accuracy {end.accuracy:.1%}"
        parts.append(f"validation loss {end.validation:.4f}{accuracy}")
    if standing.state in (State.FAILED, State.VANISHED):
        parts.append(last_error(folder, standing.record))
    if end.skipped_lines:
        lines = "line" if end.skipped_lines == 1 else "lines"
        parts.append(f"{end.skipped_lines} corrupt {lines} in {METRICS}")
    return " | ".join(dict.fromkeys(filter(None, parts)))


def _latest(file: Path, steps: int) -> tuple[Tail, float | None]:
    last, corrupt = tail.last_record(file)
    step, seconds = last.get("step"), last.get("step_seconds")
    left = None if step is None or seconds is None else max(0.0, (steps - step) * seconds)
    now = Tail(
        step=step,
        loss=last.get("loss"),
        tokens_per_second=tail.speed(last),
        skipped_lines=corrupt,
    )
    return now, left


def _finished(folder: Path, standing: Standing) -> Tail:
    with contextlib.suppress(SummaryError):
        if summary := read_summary(folder, str(standing.state)):
            return summary[0]
    return tail.final(folder / METRICS, ended_at(standing.status))


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"
