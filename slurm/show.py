"""The status of a sweep as text: one line a run, and a summary."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from slurm.estimate import ScaleEstimate
from slurm.ledger import JobRecord, SweepFolder
from slurm.states import ACTIVE, RESULTS, Standing, State, last_error
from train.run import tail
from train.run.files import parse_record
from train.run.folder import METRICS
from train.run.summary import SummaryError, read_summary

LISTED = 100
"""Of a sweep with more runs, those that run or need somebody are listed, and no more than this."""

_COLUMNS = ("run", "state", "step", "loss", "tokens/s", "left", "job", "")
_RIGHT = frozenset({"step", "loss", "tokens/s", "left"})
_NEED_SOMEBODY = (State.FAILED, State.UNREADABLE, State.VANISHED, State.CANCELLED)
_TAIL_BYTES = 64 << 10


@dataclass(frozen=True)
class Progress:
    """What the end of a run's metrics says; None where it says nothing.

    Attributes:
        step, loss, tokens_per_second: as last logged; nats a token, tokens a second and device.
        left: seconds until the last step, at the speed of the last one logged.
        validation: the validation loss at the end, of a run that has its result.
        corrupt: lines that are no records.
    """

    step: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    left: float | None = None
    validation: float | None = None
    corrupt: int = 0


def lines(
    folder: SweepFolder,
    standings: Sequence[Standing],
    *,
    width: int | None = None,
    everything: bool = False,
) -> list[str]:
    """The table, one line a run, and a line that says which are left out.

    Only the files of runs that are listed are read.

    Args:
        width: characters of a line, to which the last column is cut; None cuts nothing.
        everything: list also what a sweep of many runs leaves out.
    """
    listed = standings if everything else _listed(standings)
    waiting_for = folder.commands()
    rows = [_COLUMNS, *(_row(folder, standing, waiting_for) for standing in listed)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS) - 1)]
    # A column that says nothing of any run is left out.
    used = [any(row[i] for row in rows[1:]) for i in range(len(_COLUMNS))]
    found = []
    for row in rows if listed else []:
        cells = [
            cell.rjust(size) if name in _RIGHT else cell.ljust(size)
            for cell, size, name, use in zip(row, widths, _COLUMNS, used, strict=False)
            if use
        ]
        found.append(_cut("  ".join([*cells, row[-1]]).rstrip(), width))
    if len(listed) < len(standings):
        names = {standing.run.name for standing in listed}
        hidden = counted(s for s in standings if s.run.name not in names)
        found.append(f"not listed: {hidden}; --all lists them")
    return found


def summary(standings: Sequence[Standing]) -> str:
    """ "42 runs: 30 completed, 2 diverged, 6 running, 4 queued"."""
    return f"{len(standings)} runs: {counted(standings)}" if standings else "no runs"


def counted(standings: Iterable[Standing]) -> str:
    """ "30 completed, 2 diverged"; empty for none."""
    counts = Counter(standing.state for standing in standings)
    return ", ".join(f"{counts[state]} {state}" for state in State if counts[state])


def advice(folder: SweepFolder, standings: Sequence[Standing]) -> list[str]:
    """What to do about runs that do not go on by themselves, a line each."""
    states = {standing.state for standing in standings}
    found = []
    at_work = folder.commands()
    if at_work and State.MISSING in states:
        numbers = " and ".join(map(str, at_work))
        found.append(f"missing ones wait for process {numbers} of this machine")
    elif states & {State.MISSING, State.VANISHED, State.CANCELLED}:
        found.append(f"submit what is missing: python -m slurm resume {folder.path}")
    if State.FAILED in states:
        found.append(f"start failed ones again: python -m slurm retry {folder.path}")
    if states & RESULTS and not states & ACTIVE:
        found.append(f"the table: python -m slurm table {folder.path}")
    return found


def costs(estimates: Sequence[ScaleEstimate], kind: str) -> list[str]:
    """What a sweep takes: one line a scale, the total, and warnings.

    Args:
        kind: of the devices, "GPU" or "process".
    """
    found = [
        f"{e.scale}: {e.runs} jobs of {e.devices} {_plural(kind, e.devices)}, "
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
    """One run for scripts; ``left`` is in seconds, what is not known is null."""
    run, record = standing.run, standing.record
    seen = progress(folder, standing)
    return {
        "run": run.name,
        **{key: getattr(run, key) for key in ("scale", "method", "lr", "seed")},
        "state": str(standing.state),
        "step": standing.step if seen.step is None else seen.step,
        "steps": run.steps,
        "loss": seen.loss,
        "tokens_per_second": seen.tokens_per_second,
        "left": seen.left,
        "validation_loss": seen.validation,
        "detail": _detail(folder, standing, seen),
        "job_id": record.job_id if record else None,
        "commit": record.commit if record else None,
        "log": record.log if record else None,
    }


def progress(folder: SweepFolder, standing: Standing) -> Progress:
    """How far a run is; the metrics of one that neither runs nor has its result are not read."""
    there = folder.run(standing.run.name)
    try:
        if standing.state is State.RUNNING:
            return _latest(there / METRICS, standing.run.steps)
        if standing.state in RESULTS:
            return _finished(there, standing.state)
    except OSError:  # moved away meanwhile
        pass
    return Progress()


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


def _row(folder: SweepFolder, standing: Standing, waiting_for: Sequence[int]) -> tuple[str, ...]:
    seen = progress(folder, standing)
    step = standing.step if seen.step is None else seen.step
    job = standing.record.job_id if standing.record else None
    detail = _detail(folder, standing, seen)
    if standing.state is State.MISSING and waiting_for:
        detail = "waits for its turn here"
    return (
        standing.run.name,
        str(standing.state),
        "" if step is None else f"{step}/{standing.run.steps}",
        "" if seen.loss is None else f"{seen.loss:.3f}",
        "" if seen.tokens_per_second is None else f"{seen.tokens_per_second:,.0f}",
        "" if seen.left is None else duration(seen.left),
        job or "",
        detail,
    )


def _detail(folder: SweepFolder, standing: Standing, seen: Progress) -> str:
    said = [standing.detail]
    if seen.validation is not None:
        said.append(f"validation loss {seen.validation:.4f}")
    if standing.state in (State.FAILED, State.VANISHED):
        said.append(last_error(folder, _where_it_lies(folder, standing.record)))
    if seen.corrupt:
        said.append(f"{seen.corrupt} corrupt {_plural('line', seen.corrupt)} in {METRICS}")
    return " | ".join(dict.fromkeys(filter(None, said)))


def _where_it_lies(folder: SweepFolder, record: JobRecord | None) -> JobRecord | None:
    """The record with its log found, also where the sweep's folder has been moved."""
    if record is None or record.log is None or Path(record.log).exists():
        return record
    return replace(record, log=str(folder.jobs / Path(record.log).name))


def _latest(file: Path, steps: int) -> Progress:
    """What the last whole training record says."""
    try:
        with file.open("rb") as stream:
            begin = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
            stream.seek(begin)
            found = stream.read().split(b"\n")
    except FileNotFoundError:
        return Progress()
    # The first may have lost its beginning to the cut, the last is being written.
    whole = found[bool(begin) : -1]
    records = [parse_record(line) for line in whole if line]
    corrupt = sum(record is None for record in records)
    last: dict[str, Any] = next((r for r in reversed(records) if r is not None and "loss" in r), {})
    step, seconds = _number(last.get("step")), _number(last.get("step_seconds"))
    return Progress(
        step=None if step is None else int(step),
        loss=_number(last.get("loss")),
        tokens_per_second=_number(last.get("tokens_per_second")),
        left=None if step is None or seconds is None else max(0.0, (steps - step) * seconds),
        corrupt=corrupt,
    )


def _finished(folder: Path, state: State) -> Progress:
    try:
        known = read_summary(folder, str(state))
    except SummaryError:
        known = None
    end = known[0] if known else tail.final(folder / METRICS)
    return Progress(
        loss=end.loss,
        tokens_per_second=end.tokens_per_second,
        validation=end.validation if state is State.COMPLETED else None,
        corrupt=end.skipped_lines,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _plural(word: str, count: int) -> str:
    return word if count == 1 else f"{word}{'es' if word.endswith('s') else 's'}"


def _cut(text: str, width: int | None) -> str:
    return text if width is None or len(text) <= width else f"{text[: width - 1]}…"
