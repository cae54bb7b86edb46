"""A run that faults are done to: started, waited for, ended."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from subprocess import CompletedProcess

from scripts.torture.ranks import Ranks
from scripts.torture.runs import LIMIT, STEPS, Tiny


class TortureError(Exception):
    """A promise that was not kept."""


@dataclass
class Case:
    """A run that faults are done to.

    Attributes:
        run: the run.
        draw: what decides everything that is random.
        own_disk: the run's folder is on a disk of its own, which may be filled.
    """

    run: Tiny
    draw: random.Random
    own_disk: bool


def wait_for_step(case: Case, running: Callable[[], bool], step: int, before: int) -> None:
    """Wait until a run that was started has made ``step``, or has ended.

    Args:
        running: whether it has not ended.
        before: the inode of metrics.jsonl before the start.
    """
    limit = time.monotonic() + LIMIT
    while running() and (case.run.inode() == before or case.run.step < step):
        if time.monotonic() > limit:
            raise TortureError(f"step {step} was not made within {LIMIT:g} s")
        time.sleep(0.01)


def started(case: Case, *, early: bool = True) -> Ranks:
    """The run's ranks at a random moment: in training, and a few while they start.

    Args:
        early: whether they may still start; they handle signals only in training.
    """
    before, begun = case.run.inode(), next(iter(case.run.saved), 0)
    ranks = case.run.start()
    if early and case.draw.random() < 0.25:
        time.sleep(case.draw.uniform(0, 3))
    else:
        step = min(STEPS, begun + case.draw.randint(1, 12))
        wait_for_step(case, lambda: ranks.ended() is None, step, before)
        time.sleep(case.draw.uniform(0, 0.2))  # in a step, a measurement, or a checkpoint
    return ranks


def ended(ranks: Ranks, *allowed: int) -> CompletedProcess[str]:
    """The ranks' end; the exit status of each must be allowed, and there must be no traceback."""
    done = ranks.wait(LIMIT)
    if not set(ranks.codes) <= {0, *allowed}:
        raise TortureError(f"exit codes {ranks.codes}: {done.stderr[-2000:]}")
    return done
