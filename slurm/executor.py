"""One interface for the two ways to start runs: with Slurm, and on this machine."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

from slurm import show
from slurm.cluster import Cluster
from slurm.ledger import SweepFolder
from slurm.snapshot import Snapshot
from slurm.states import State, survey
from slurm.sweep import RunSpec


class SubmissionError(Exception):
    """Some jobs were not submitted; the message is one line."""


class Executor(ABC):
    """Starts runs of one sweep.

    Attributes:
        folder: the sweep's folder.
        cluster: where the runs are started.
        cwd: relative paths in the runs' arguments start here.
    """

    submits: ClassVar[frozenset[State]]
    """States of the runs that ``submit`` starts."""

    def __init__(self, folder: SweepFolder, cluster: Cluster) -> None:
        self.folder, self.cluster, self.cwd = folder, cluster, Path.cwd()

    @abstractmethod
    def plan(self, runs: Sequence[RunSpec]) -> Iterator[str]:
        """The lines that a dry run prints about ``runs``."""

    @abstractmethod
    def start(self, runs: Sequence[RunSpec], code: Snapshot, states: frozenset[State]) -> int:
        """Start those of ``runs`` that are in one of ``states``; returns an exit status.

        Raises:
            SubmissionError: Slurm refused jobs.
            LedgerError, OSError: the sweep's folder cannot be written.
        """

    def choose(self, runs: Sequence[RunSpec], states: frozenset[State]) -> list[RunSpec]:
        """The runs that are in one of ``states``; prints how many, and the states of the others."""
        standings = survey(self.folder, runs)
        chosen = [standing.run for standing in standings if standing.state in states]
        others = show.counted(standing for standing in standings if standing.state not in states)
        print(
            f"{self.folder.path}: {len(chosen)} of {len(runs)} runs to submit"
            + (f"; the others: {others}" if others else "")
        )
        return chosen
