"""A run's processes on one node: start them, pass a signal on, wait."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

# What the trainer stops for, at the next step and with a checkpoint (train/preemption.py).
STOP = signal.SIGUSR2

_POLL_SECONDS = 0.2
_AGAIN_SECONDS = 5.0

# torchrun would end its ranks half a minute after a SIGTERM, in the middle of a large checkpoint.
# The ranks hear it from Slurm, stop by themselves, and torchrun ends with them.
_TORCHRUN_SIGNALS = "SIGINT,SIGHUP,SIGQUIT"


def start(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: str,
    output: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command that leaves stopping to its ranks.

    Args:
        output: where it writes; None is where this process does. With a file of its own it also
            gets a session of its own: the keyboard's interrupt is then for this process alone.
    """
    return subprocess.Popen(
        command,
        cwd=cwd,
        env={**environment, "TORCHELASTIC_SIGNALS_TO_HANDLE": _TORCHRUN_SIGNALS},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        start_new_session=output is not None,
        preexec_fn=_leave_stopping_to_the_ranks,
    )


def _leave_stopping_to_the_ranks() -> None:
    # Inherited until a rank sets its own handler; by default both signals end a process.
    signal.signal(STOP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit status. Polls, so that a signal handler may wait for it as well."""
    while (code := process.poll()) is None:
        time.sleep(_POLL_SECONDS)
    return code


def stop(process: subprocess.Popen[bytes], *, limit: float | None = None) -> int:
    """Ask its ranks to save and stop, until they have; its exit status.

    Asked again every few seconds: a rank that is starting does not listen yet.

    Args:
        limit: seconds after which what is left is killed; None waits.
    """
    begun = asked = time.monotonic()
    send(process.pid, STOP)
    while (code := process.poll()) is None:
        now = time.monotonic()
        if limit is not None and now - begun > limit:
            send(process.pid, signal.SIGKILL)
        elif now - asked > _AGAIN_SECONDS:
            asked = now
            send(process.pid, STOP)
        time.sleep(_POLL_SECONDS)
    return code


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process and all its descendants."""
    for member in family(pid):
        try:
            os.kill(member, number)
        except ProcessLookupError:
            continue


def family(pid: int) -> list[int]:
    """A process and all its descendants; torchrun starts its ranks in sessions of their own."""
    parents: dict[int, int] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            stat = file.read_text()
        except OSError:
            continue  # it has ended
        # "PID (NAME) STATE PARENT ...", where the name may hold anything
        parents[int(stat.split()[0])] = int(stat.rpartition(")")[2].split()[1])
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def alive(pid: int) -> bool:
    """Whether a process of this machine runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
