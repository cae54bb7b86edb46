"""Reads metrics.jsonl from its end, and no more of it than needed."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.run.files import parse_record

_BLOCK = 1 << 16  # bytes read at a time

COUNTS = {
    "refused": "measured alignments refused (NaN or infinite), previous ones kept",
    "zero_terms": "measured terms exactly zero, previous alignments kept",
    "bounded": "measured alignments moved to a bound",
    "infeasible": "programs without a solution, previous learning rates kept",
    "skipped_images": "images that cannot be read, skipped",
}
"""Key in the training records -> what it counts, since the start of the run; absent if zero."""


@dataclass(frozen=True)
class Tail:
    """Numbers from the end of a run's metrics; None for one that is missing or not finite.

    Losses are in nats per token, or per image.

    Attributes:
        validation: the validation loss of the last step.
        accuracy: of that validation, in [0, 1]; None for text.
        train: mean of the training losses logged in the last 10% of the steps, at least of one.
        loss: the last training loss.
        step: the last step logged.
        tokens: tokens, or images, seen up to that step.
        tokens_per_second: the same per second and device; the median over the records that
            ``train`` is the mean of.
        skipped_lines: number of corrupt lines read.
        refused, zero_terms, bounded, infeasible, skipped_images: the `COUNTS` up to that step;
            None for none.
    """

    validation: float | None = None
    accuracy: float | None = None
    train: float | None = None
    loss: float | None = None
    step: int | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    skipped_lines: int = 0
    refused: int | None = None
    zero_terms: int | None = None
    bounded: int | None = None
    infeasible: int | None = None
    skipped_images: int | None = None


def final(file: Path, end: int | None) -> Tail:
    """All numbers of a run that has ended.

    Args:
        end: the step at which it ended, if that is known. Metrics that lack it, as in a copy that
            was made while the run wrote them, have neither its last validation nor its last
            losses: ``validation``, ``accuracy`` and ``train`` are then None.
    """
    validation: dict[str, Any] | None = None
    records: list[dict[str, Any]] = []  # with a training loss, last first
    last_step = 0.0
    whole_window = False
    skipped = 0
    for line in lines_from_end(file):
        if whole_window and b'"validation_loss"' not in line:
            continue
        record = parse_record(line)
        at = _number((record or {}).get("step"))
        if record is None or at is None:
            skipped += 1
            continue
        if validation is None and "validation_loss" in record:
            validation = record
        if "loss" in record and not whole_window:
            last_step = last_step if records else at
            whole_window = bool(records) and 10 * (last_step - at) >= last_step
            if not whole_window:
                records.append(record)
        if whole_window and validation is not None:
            break
    last = records[0] if records else {}
    step = _whole((last or validation or {}).get("step"))
    validated = _whole((validation or {}).get("step"))
    reached = max(step or 0, validated or 0)
    if validated != max(reached, end or 0):
        validation = None  # of a step before the end
    losses = [_number(record["loss"]) for record in records]
    speeds = [v for r in records if (v := speed(r)) is not None]
    known = [loss for loss in losses if loss is not None]
    whole = bool(known) and len(known) == len(losses) and reached >= (end or 0)
    return Tail(
        validation=_number((validation or {}).get("validation_loss")),
        accuracy=_number((validation or {}).get("validation_accuracy")),
        # One loss that is not finite makes the mean not finite.
        train=math.fsum(known) / len(known) if whole else None,
        loss=_number(last.get("loss")),
        step=step,
        tokens=_seen(last),
        tokens_per_second=statistics.median(speeds) if speeds else None,
        skipped_lines=skipped,
        **_counts(last),
    )


def latest(file: Path) -> Tail:
    """The numbers of the last logged step, for a run that has not ended."""
    record, corrupt = last_record(file)
    return Tail(
        loss=_number(record.get("loss")),
        step=_whole(record.get("step")),
        tokens=_seen(record),
        tokens_per_second=speed(record),
        skipped_lines=corrupt,
        **_counts(record),
    )


def last_record(file: Path) -> tuple[dict[str, Any], int]:
    """The last record with a training loss, or {}, and the number of corrupt lines near the end.

    The last line does not count as corrupt: the run may be writing it.
    """
    last: dict[str, Any] = {}
    corrupt = size = 0
    for position, line in enumerate(lines_from_end(file)):
        record = parse_record(line)
        if record is None or _number(record.get("step")) is None:
            corrupt += position > 0
        elif not last and "loss" in record:
            last = record
        size += len(line)
        if last and size > _BLOCK:
            break
    return last, corrupt


def lines_from_end(file: Path) -> Iterator[bytes]:
    """The non-empty lines of ``file``, last first, without reading the file whole."""
    try:
        stream = file.open("rb")
    except FileNotFoundError:
        return
    with stream:
        position = stream.seek(0, os.SEEK_END)
        cut = b""  # the end of a line that begins in the previous block
        while position > 0:
            size = min(_BLOCK, position)
            position = stream.seek(position - size)
            cut, *lines = (stream.read(size) + cut).split(b"\n")
            yield from filter(None, reversed(lines))
        if cut:
            yield cut


def speed(record: dict[str, Any]) -> float | None:
    """Tokens, or images, per second and device in a training record."""
    return _number(record.get("tokens_per_second", record.get("images_per_second")))


def _seen(record: dict[str, Any]) -> int | None:
    return _whole(record.get("tokens", record.get("images")))


def _number(value: Any) -> float | None:
    """``value`` if it is a finite number, else None."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _counts(record: dict[str, Any]) -> dict[str, int | None]:
    return {key: _whole(record.get(key)) for key in COUNTS}


def _whole(value: Any) -> int | None:
    number = _number(value)
    return None if number is None else int(number)
