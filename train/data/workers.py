"""Processes that read data for a dataloader."""

import signal


def ignore_signals(worker: int) -> None:
    """For ``worker_init_fn`` of a dataloader: ignore the signals that stop a run.

    Slurm and terminals send them to all processes of a run. The training saves a checkpoint after
    its step (`train.preemption`), which needs the workers; they end with it.
    """
    for name in ("SIGUSR1", "SIGUSR2", "SIGTERM", "SIGHUP", "SIGINT"):
        signal.signal(signal.Signals[name], signal.SIG_IGN)
