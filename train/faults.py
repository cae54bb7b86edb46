"""Processes that are gone, hang, or cannot be reached: time limits, and what is said of them.

Over gloo a collective that waits longer than its group's limit, or whose peer has gone, raises on
every rank that waits, so a run ends with a message and its status. Over NCCL a peer that has gone
shows only as a wait, and torch's watchdog aborts the process at the limit: its message is on
stderr, and what is left of the run says "running" with no process behind it. `StopFlag` asks over
gloo after every step on a GPU as well; where it is what waits, the run ends as on a CPU.
"""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed import distributed_c10d

from train import torch_compat

# How gloo and the store say that a peer has gone, and that it has not answered in time.
_GONE = re.compile(r"connection (was )?(likely )?(closed|reset)|broken pipe|socket closed", re.I)
_LATE = re.compile(r"timed ?out|timeout", re.I)
_WHERE = re.compile(r"^\[\S+:\d+\] ")

# Seconds beyond the limit for torch's own message, which says more, to come first.
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
    """Call ``late(reason)``, in a thread, if the processes have not met this long after the start.

    Not left to torch: its store's handshake has no time limit, so that a rank which reaches some
    other program's port waits for ever. ``late`` must end the process.
    """

    def check() -> None:
        if not dist.is_initialized():
            where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            late(
                f"another process did not come to {where} in {seconds:g} s: it is gone, or another "
                "program has that port (limit: --comm.init_timeout_seconds)"
            )

    timer = threading.Timer(seconds + _GRACE, check)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def limit_collectives(seconds: float) -> None:
    """Give every process group that there is this time limit for a collective.

    torch gives a group that is made without one half an hour (ten minutes over NCCL), whatever the
    limit of the default group; torchtitan 0.3.0 sets its meshes' only after the first step.
    """
    torch_compat.install()
    for group, (backend, _) in list(distributed_c10d._world.pg_map.items()):
        if backend != "fake":  # of a mesh axis of size 1; nothing is sent over it
            dist.set_timeout(timedelta(seconds=seconds), group)  # type: ignore[attr-defined]


def port_taken(error: BaseException) -> str | None:
    """What to say of an error that means the first rank cannot listen; None of any other."""
    if not (isinstance(error, dist.DistNetworkError) and "EADDRINUSE" in str(error)):
        return None
    port = os.environ.get("MASTER_PORT")
    return f"MASTER_PORT {port} is in use on this machine: set another, the same for every process"


def lost_contact(error: BaseException) -> str | None:
    """What to say of an error that means another process is gone or hangs; None of any other."""
    said = str(error).partition("\n")[0]
    found: Any = isinstance(error, dist.DistError) or "gloo/" in said
    if not isinstance(error, RuntimeError) or not found:
        return None
    said = _WHERE.sub("", said)
    if _LATE.search(said):
        return f"another process hangs or is gone; the time limit of a collective passed ({said})"
    if _GONE.search(said):
        return f"another process is gone ({said})"
    return None
