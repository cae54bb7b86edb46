"""Stopping on a signal, after a step that all ranks agree on, with a checkpoint.

Slurm sends a signal before the wall time and when it preempts a job, not always to every process.
All ranks make a checkpoint together, so the signal only sets a flag, and the ranks exchange their
flags after each step. A rank also stops if the torchrun that started it is gone: nothing else would
end the ranks, or start them again. A second SIGINT (Ctrl-C) stops without a checkpoint.
"""

import os
import signal
import threading
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_ORPHANED = 1000  # larger than any signal


class PreemptedError(Exception):
    """A signal has stopped the run; the same command resumes it."""

    def __init__(self, step: int, name: str, *, saved: bool) -> None:
        self.step, self.saved = step, saved
        self.by_hand = name == signal.SIGINT.name
        kept = "saved" if saved else "nothing saved: --checkpoint.enable is off"
        super().__init__(f"preempted by {name} at step {step}; {kept}")


class StopFlag:
    """Whether any rank has received a signal. `close` restores the former handlers.

    Args:
        limit: time limit for the exchange between ranks. It applies from the second exchange on,
            since the first step may take one rank much longer than another.
    """

    def __init__(self, limit: timedelta | None = None) -> None:
        self._seen, self._limit = 0, limit
        self._former: dict[signal.Signals, Any] = {}
        if threading.current_thread() is threading.main_thread():
            # nohup ignores SIGHUP, and a shell SIGINT for its background jobs, so that a command
            # outlives its terminal.
            ignored = [n for n in (signal.SIGHUP, signal.SIGINT) if _is_ignored(n)]
            numbers = [n for n in SIGNALS if n not in ignored]
            self._former = {number: signal.signal(number, self._note) for number in numbers}
        self._torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        # On the CPU, so that the exchange does not wait for an accelerator.
        several = dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if several else None

    def _note(self, number: int, frame: Any) -> None:
        self._seen = number
        if number == signal.SIGINT:
            signal.signal(number, signal.default_int_handler)  # raises KeyboardInterrupt
            if os.environ.get("RANK", "0") == "0":
                # Not print, which the signal may have interrupted.
                os.write(2, b"stopping after this step; Ctrl-C again stops without a checkpoint\n")

    def agreed(self) -> str | None:
        """The name of a signal that some rank has received; the same on every rank."""
        orphaned = self._torchrun is not None and os.getppid() != self._torchrun
        seen = _ORPHANED if orphaned else self._seen
        if self._group is not None:
            flag = torch.tensor(seen)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            seen = int(flag)
            if self._limit is not None:
                dist.set_timeout(self._limit, self._group)  # type: ignore[attr-defined]
                self._limit = None
        if seen == _ORPHANED:
            return "the end of torchrun"
        return signal.Signals(seen).name if seen else None

    def close(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


def _is_ignored(number: signal.Signals) -> bool:
    return signal.getsignal(number) is signal.SIG_IGN
