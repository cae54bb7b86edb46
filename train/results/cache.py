"""A file at the root of many runs that remembers what was read of each, by its files' times.

Deleting it costs time and changes no result. A row is used again only while modification time, size
and inode of the run's files are what they were when it was read; files are replaced by renaming, so
that a new one has another inode even within one tick of the clock.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from train.run.files import write_whole

log = logging.getLogger(__name__)

CACHE = ".maxp-results.json"
_VERSION = 1  # of the rows: another number, and every run is read again

Fingerprint = list[list[int] | None]
"""For each of a run's files [mtime, ns; size, bytes; inode], or None where it is not there."""
Row = dict[str, Any]


class RowCache:
    """Rows of the runs below ``root``, keyed by path relative to it."""

    def __init__(self, root: Path) -> None:
        self._file = root / CACHE
        self._old = self._load()
        self._new: dict[str, list[Any]] = {}
        self._changed = False

    def get(self, run: str, fingerprint: Fingerprint) -> Row | None:
        """The row read when the run's files were as they are now, if there was one."""
        entry = self._old.get(run)
        if not isinstance(entry, list) or len(entry) != 2 or entry[0] != fingerprint:
            return None
        if not isinstance(entry[1], dict):
            return None
        self._new[run] = entry
        return entry[1]

    def put(self, run: str, fingerprint: Fingerprint, row: Row) -> None:
        self._new[run] = [fingerprint, row]
        self._changed = True

    def save(self) -> None:
        """Write the rows that were asked for, if any changed; a folder that refuses is no fault."""
        if not self._changed and len(self._new) == len(self._old):
            return
        try:
            text = json.dumps({"version": _VERSION, "rows": self._new}, separators=(",", ":"))
            write_whole(self._file, text)
        except OSError as error:
            log.info("%s not written (%s): next time is as slow", self._file, error.strerror)

    def _load(self) -> dict[str, Any]:
        try:
            content = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            log.warning("%s is ignored (%s): all runs are read again", self._file, error)
            return {}
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, dict):
            log.warning("%s is ignored (not a cache): all runs are read again", self._file)
            return {}
        return rows if content.get("version") == _VERSION else {}
