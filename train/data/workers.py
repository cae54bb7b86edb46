"""Processes that read data for a dataloader."""

import copy
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import get_worker_info

from train.preemption import SIGNALS

_IGNORED = {*SIGNALS, signal.SIGUSR1} - {signal.SIGTERM}


@contextmanager
def signals_held() -> Iterator[None]:
    """Hold the signals that stop a run back while a dataloader starts its workers.

    A worker inherits this. Otherwise, a signal would end a worker that has not come to
    `ignore_signals` yet.
    """
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {*_IGNORED, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def ignore_signals(worker: int) -> None:
    """For ``worker_init_fn`` of a dataloader: ignore the signals that stop a run.

    Slurm and terminals send them to all processes of a run. The training saves a checkpoint after
    its step (`train.preemption`), which needs the workers. Only a SIGTERM from the training process
    itself, by which Python ends its workers, is obeyed.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class OwnData:
    """A dataset whose ``_data`` every worker has for itself.

    All workers of a loader share the epoch of a `datasets.IterableDataset` in memory: one that goes
    on to its next epoch would change the order of the others.
    """

    _data: Any
    _is_own = False

    def _own(self) -> None:
        """Copy ``_data``, once, in a worker; call it before the first row, and before loading."""
        if get_worker_info() is not None and not self._is_own:
            self._data, self._is_own = copy.deepcopy(self._data), True
