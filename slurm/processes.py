"""The processes of a run on one node: start them, find them again, signal them, wait for them."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import IO

import psutil

STOP = signal.SIGUSR2
"""The trainer saves a checkpoint after its current step and stops (train/preemption.py)."""

UNKNOWN = 256
"""Stands for the exit status of a process whose status nobody could read."""

_AGAIN_SECONDS = 5.0

# torchrun would kill its ranks 30 s after a SIGTERM, in the middle of a large checkpoint. Slurm
# signals the ranks as well; they stop on their own, and torchrun ends when they have.
_TORCHRUN_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"


class Child:
    """A command that this process started. Its ranks decide when to stop.

    Args:
        output: where it writes; None inherits this process's output. With a file it also gets its
            own session, so that Ctrl-C interrupts this process only.
        descriptors: file descriptors that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: str,
        output: IO[bytes] | None = None,
        descriptors: Sequence[int] = (),
    ) -> None:
        self._popen = subprocess.Popen(
            command,
            cwd=cwd,
            env={**environment, "TORCHELASTIC_SIGNALS_TO_HANDLE": _TORCHRUN_SIGNALS},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=output is not None,
            pass_fds=descriptors,
            preexec_fn=_ignore_stop_signals,
        )
        self.process = psutil.Process(self._popen.pid)

    def wait(self) -> int:
        """Its exit status. A signal handler or another thread may call `stop` meanwhile."""
        # Popen.wait would hold a lock that `stop` needs, for as long as the child runs.
        with contextlib.suppress(ChildProcessError):  # `stop` has waited for it already
            os.waitid(os.P_PID, self._popen.pid, os.WEXITED | os.WNOWAIT)
        return self._popen.wait()

    def stop(self, *, limit: float | None = None) -> int:
        """Ask its ranks to save and stop, and wait for them; returns its exit status.

        Asks again every few seconds, because a rank that is still starting ignores the signal.

        Args:
            limit: seconds after which the remaining processes are killed; None waits.
        """
        deadline = float("inf") if limit is None else time.monotonic() + limit
        while True:
            left = deadline - time.monotonic()
            send(self.process, STOP if left > 0 else signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._wait(min(left, _AGAIN_SECONDS) if left > 0 else _AGAIN_SECONDS)

    def _wait(self, seconds: float) -> int:
        """`wait`, or raise TimeoutExpired."""
        return self._popen.wait(seconds)


def ending(code: int) -> str:
    """How a process with this exit status ended."""
    if code == UNKNOWN:
        return "ended with an unknown status"
    return f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"


def _ignore_stop_signals() -> None:
    # Inherited until a rank sets its own handler; by default both signals end a process.
    signal.signal(STOP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def send(process: psutil.Process, number: signal.Signals) -> None:
    """Signal a process and all its descendants."""
    for member in family(process):
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(number)


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process and all its descendants; torchrun starts its ranks in sessions of their own."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []
