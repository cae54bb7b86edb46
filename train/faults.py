"""Processes that are gone, hang or cannot be reached, and disks: time limits and error messages.

Over gloo, a collective raises on every waiting rank when a peer is gone or the group's time limit
passes, so a run ends with a message and a status. Over NCCL, ranks wait for a peer that is gone
until torch's watchdog aborts them at the time limit: the message is on stderr, and status.json
still says "running". `StopFlag` exchanges flags over gloo after every step, on a GPU as well; a run
that waits there ends as on a CPU.
"""

import errno
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train import torch_compat

# The messages of gloo and of the store when a peer is gone, and when it is late.
_GONE = re.compile(r"connection (was )?(likely )?(closed|reset)|broken pipe|socket closed", re.I)
_LATE = re.compile(r"timed ?out|timeout", re.I)
_WHERE = re.compile(r"^\[\S+:\d+\] ")

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)

# Seconds beyond the limit, so that torch's own message, which says more, comes first.
_GRACE = 10


def single_process_environment() -> None:
    """Set what torchrun would set, for a run that was started without it."""
    if "RANK" in os.environ:
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.update(
        RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


@contextmanager
def meeting_within(seconds: float, late: Callable[[str], Any]) -> Iterator[None]:
    """Call ``late(reason)`` in a thread if the processes are not connected after ``seconds``.

    ``late`` must end the process. torch does not do this itself: its store's handshake has no time
    limit, so a rank that reaches another program's port waits for ever.
    """

    def check() -> None:
        if not dist.is_initialized():
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            late(
                f"another process did not connect to {where} within {seconds:g} s: it is gone, or "
                "another program uses that port (limit: --comm.init_timeout_seconds)"
            )

    timer = threading.Timer(seconds + _GRACE, check)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def limit_new_groups(seconds: float) -> None:
    """Set the time limit of groups over gloo that are made without one.

    Making a group waits for all processes, with torch's own limit for half an hour.
    """
    distributed_c10d.default_pg_timeout = timedelta(seconds=seconds)


def limit_collectives(seconds: float) -> None:
    """Set the time limit of collectives in every existing process group.

    torch gives a group that is made without a limit half an hour (ten minutes over NCCL), whatever
    the limit of the default group; torchtitan 0.3.0 sets those of its meshes after the first step.
    """
    torch_compat.install()
    for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
        if backend != "fake":  # of a mesh axis of size 1; nothing is sent over it
            dist.set_timeout(timedelta(seconds=seconds), group)  # type: ignore[attr-defined]


def port_taken(error: BaseException) -> str | None:
    """The message for an error that means the first rank cannot listen; None for any other."""
    if not (isinstance(error, dist.DistNetworkError) and "EADDRINUSE" in str(error)):
        return None
    port = os.environ.get("MASTER_PORT")
    return f"MASTER_PORT {port} is in use on this machine: set another one on every process"


def unwritable(error: BaseException, folder: Path) -> str | None:
    """The message for an error of a full, read-only or broken disk; None for any other.

    Args:
        folder: named in the message where the error names no file.
    """
    if not isinstance(error, OSError) or error.errno not in _DISK:
        return None
    return (
        f"{error.filename or folder} cannot be written ({error.strerror}); make room, or make it "
        "writable, then run the same command again to resume"
    )


def quiet_threads() -> None:
    """Leave out the traceback of a disk error in a thread; the main thread reports the error.

    TensorBoard writes in a thread, and raises the thread's error at the next write.
    """

    def report(failure: threading.ExceptHookArgs) -> None:
        error = failure.exc_value
        if not isinstance(error, OSError) or error.errno not in _DISK:
            threading.__excepthook__(failure)

    threading.excepthook = report


def lost_contact(error: BaseException) -> str | None:
    """The message for an error that means another process is gone or hangs; None for any other."""
    text = str(error).partition("\n")[0]
    if not isinstance(error, RuntimeError):
        return None
    if not (isinstance(error, dist.DistError) or "gloo/" in text):
        return None
    text = _WHERE.sub("", text)
    if _LATE.search(text):
        return f"another process hangs or is gone; the time limit of a collective passed ({text})"
    if _GONE.search(text):
        return f"another process is gone ({text})"
    return None
