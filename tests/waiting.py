"""Waiting for other processes, on a machine that may be busy with anything else.

A test fails as soon as what it waits for can no longer happen, and not because it takes long: only
pytest's `timeout` (pyproject.toml) ends a test that would wait for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from subprocess import Popen
from typing import Any


def wait_until(
    what: str, holds: Callable[[], object], hopeless: Callable[[], str | None] | None = None
) -> None:
    """Ask until it holds.

    Args:
        what: is waited for, for the message.
        hopeless: asked every second; says why it can no longer come to hold, or None.

    Raises:
        AssertionError: it is hopeless.
    """
    asked = time.monotonic()
    while not holds():
        if hopeless is not None and time.monotonic() - asked > 1:
            reason = hopeless()
            assert reason is None or holds(), f"{what}: {reason}"
            asked = time.monotonic()
        time.sleep(0.05)


def ended(processes: Iterable[Popen[Any]]) -> Callable[[], str | None]:
    """For `wait_until`: hopeless once one of the processes has ended."""

    def reason() -> str | None:
        codes = {p.pid: p.poll() for p in processes}
        over = [f"process {pid} has ended with {c}" for pid, c in codes.items() if c is not None]
        return "; ".join(over) or None

    return reason
