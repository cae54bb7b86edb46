"""Files that are written whole or not at all, and JSON as this project writes it."""

from __future__ import annotations

import json
import math
import operator
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def naming(file: Path) -> Iterator[None]:
    """Name ``file`` in an OSError: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(file)
        raise


def write_whole(target: Path, content: str | bytes) -> None:
    """Replace ``target`` in one step: no reader, and no crash, ever sees a part of ``content``.

    Raises:
        OSError: it cannot be written; the error names ``target``.
    """
    with temporary(target, content) as file:
        os.replace(file, target)


@contextmanager
def temporary(target: Path, content: str | bytes) -> Iterator[Path]:
    """A file next to ``target`` that holds ``content``, deleted at the end unless renamed."""
    # Not mkstemp: its mode 0600 would hide a run from the colleagues who share the folder.
    path = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with naming(target), path.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        yield path
    finally:
        with suppress(OSError):  # missing, or the disk has become read-only
            path.unlink()


def to_json(value: Any, **layout: Any) -> str:
    """JSON of plain values and paths; raises TypeError for anything else."""

    # Only paths: the text of other objects may contain an address, which differs between runs.
    def default(item: Any) -> str:
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        raise TypeError(f"{item!r} ({type(item).__name__}) cannot be written as JSON")

    return json.dumps(value, default=default, **layout)


def plain(value: Any, name: str = "record") -> Any:
    """``value`` with NumPy and torch scalars as Python numbers, and non-finite numbers as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, name) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    try:
        return operator.index(value)
    except TypeError:
        pass
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name!r} is not a number: {value!r}") from error
    return number if math.isfinite(number) else None


def parse_record(line: bytes) -> dict[str, Any] | None:
    """One line of metrics.jsonl, or None where it is not a JSON object."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
