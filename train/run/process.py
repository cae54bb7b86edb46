"""A process as a file describes it, found again."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psutil

# Start times are derived from the boot time, which Linux gives in whole seconds.
_CLOCK_SECONDS = 2.0


@dataclass(frozen=True)
class Process:
    """A process as a file describes it; its id may belong to another process by now.

    Attributes:
        started: when it started, in seconds since the epoch; None in files of earlier versions.
        noted: when it was known to run, in seconds since the epoch.
    """

    host: str
    pid: int
    started: float | None
    noted: float

    @property
    def here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    def find(self) -> psutil.Process | None:
        """The process itself, if it still runs on this machine; a zombie does not run."""
        if not self.here:
            return None
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.pid)
            begun = process.create_time()
            # A process that began after `noted` was given the id later.
            earliest, latest = (self.started or 0.0), (self.started or self.noted)
            same = earliest - _CLOCK_SECONDS <= begun <= latest + _CLOCK_SECONDS
            if same and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None


def process_of(status: Mapping[str, Any]) -> Process | None:
    """The process that a status.json says is running the run; None if it names none."""
    if status.get("state") != "running":
        return None
    with contextlib.suppress(KeyError, TypeError, ValueError):  # of another program
        noted = datetime.fromisoformat(status["updated"]).timestamp()
        return Process(str(status["host"]), int(status["pid"]), status.get("started"), noted)
    return None


def vanished(status: Mapping[str, Any]) -> bool:
    """Whether a status.json says "running", but its process, of this machine, is gone."""
    process = process_of(status)
    return process is not None and process.here and process.find() is None
