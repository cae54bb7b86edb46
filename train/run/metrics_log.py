"""``metrics.jsonl``: the log of a run, one JSON record per line."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from train.run.files import naming, parse_record, plain, to_json, write_whole
from train.run.tail import lines_from_end

log = logging.getLogger(__name__)


class MetricsLog:
    """Writes metrics.jsonl; only one process may write at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any]) -> None:
        """Add one line. Non-finite numbers become null, NumPy and torch scalars plain numbers.

        Raises:
            OSError: it cannot be written; the error names the file.
        """
        line = to_json(plain(record)).encode() + b"\n"
        with naming(self.path), self.path.open("a+b") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a writer was killed mid-line
                    line = b"\n" + line
            file.write(line)

    def rewind(self, step: int) -> int:
        """Drop the records after ``step``, from which a run resumes; returns how many lines.

        Corrupt lines and records without a step are dropped too.
        """
        if not self.path.exists():
            return 0
        lines = [line for line in self.path.read_bytes().split(b"\n") if line]
        kept = [line for line in lines if _step(line) <= step]
        write_whole(self.path, b"".join(line + b"\n" for line in kept))
        dropped = len(lines) - len(kept)
        log.info("%s: rewound to step %d, %d lines dropped", self.path, step, dropped)
        return dropped

    def has_validation(self, step: int) -> bool:
        """Whether the file holds a finite validation loss of ``step``, among its last records."""
        for line in lines_from_end(self.path):
            record = parse_record(line) or {}
            if _step(line) < step:
                return False
            if record.get("step") == step and record.get("validation_loss") is not None:
                return True
        return False

    def archive(self) -> Path | None:
        """Rename the file to metrics-1.jsonl, metrics-2.jsonl, ... before a run starts over.

        Returns the new path, or None if there is no file.
        """
        if not self.path.exists():
            return None
        names = (path.stem.partition("-")[2] for path in self.path.parent.glob("metrics-*.jsonl"))
        number = 1 + max((int(name) for name in names if name.isdecimal()), default=0)
        return self.path.rename(self.path.with_name(f"metrics-{number}.jsonl"))


def _step(line: bytes) -> float:
    """Step of a line of metrics; infinite if it has none."""
    step = (parse_record(line) or {}).get("step")
    return step if isinstance(step, int | float) else math.inf
