"""Processes that read data for a dataloader."""

import os
import signal
import threading


def ignore_signals(worker: int) -> None:
    """For ``worker_init_fn`` of a dataloader: ignore the signals that stop a run.

    Slurm and terminals send them to all processes of a run. The training saves a checkpoint after
    its step (`train.preemption`), which needs the workers. Only a SIGTERM from the training process
    itself, by which Python ends its workers, is obeyed.
    """
    for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGINT"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
