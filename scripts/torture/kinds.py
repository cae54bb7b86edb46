"""The kinds of faults. Each is done to a run that may have begun, and says what came of it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import psutil

from scripts.torture.ranks import Ranks
from scripts.torture.runs import LIMIT, STEPS, Tiny
from train.checkpoint_files import METADATA, PREFIX
from train.data.cache import cache_root
from train.integrity import MANIFEST
from train.run.exit_status import BAD_INPUT, INTERRUPTED, PREEMPTED

SIGNALS = (signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


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


# Faults of processes


def kill_all(case: Case) -> str:
    ranks = started(case)
    over = ranks.ended()
    ranks.kill()
    return "had ended" if over else "killed"


def kill_one(case: Case) -> str:
    """The other ranks must end by themselves."""
    ranks = started(case)
    victim = case.draw.choice(ranks.processes)
    victim.kill()
    done = ranks.wait(LIMIT)
    others = {p.exitcode for p in ranks.processes if p is not victim}
    if not others <= {0, 1}:
        raise TortureError(f"exit codes {ranks.codes}: {done.stderr[-2000:]}")
    return "had ended" if victim.exitcode == 0 else "killed, the others ended"


def stop(case: Case) -> str:
    """Any signal to any rank: what says saved must be saved."""
    number = case.draw.choice(SIGNALS)
    ranks = started(case, early=False)
    with contextlib.suppress(ProcessLookupError):
        os.kill(case.draw.choice(ranks.processes).pid or 0, number)
    ended(ranks, INTERRUPTED if number == signal.SIGINT else PREEMPTED)
    return saved(case)


def saved(case: Case) -> str:
    """Check that the status of a stopped run is true.

    Raises:
        TortureError: it is not.
    """
    status = case.run.status
    if status["state"] == "completed":
        return "had ended"
    if status["state"] != "preempted":
        raise TortureError(f"status {status} after a signal")
    folder = case.run.checkpoints / f"{PREFIX}{status['step']}"
    if not (folder / MANIFEST).exists() or not (folder / METADATA).exists():
        raise TortureError(f"status {status}, but {folder.name} is not complete")
    return "saved"


def stop_twice(case: Case) -> str:
    """Ctrl-C twice at any moment, to all ranks."""
    ranks = started(case)
    for _ in range(2):
        for process in ranks.processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid or 0, signal.SIGINT)
        time.sleep(case.draw.uniform(0, 0.1))
    ended(ranks, 1, INTERRUPTED)
    return "ended"


def agent(case: Case) -> str:
    """Any signal to torchrun: no rank may go on for long."""
    number = case.draw.choice((*SIGNALS, signal.SIGKILL, signal.SIGQUIT))
    before, begun = case.run.inode(), next(iter(case.run.saved), 0)
    log = case.run.folder.parent / "torchrun.log"
    process = case.run.start_torchrun(log)
    ranks: list[psutil.Process] = []
    try:
        step = min(STEPS, begun + case.draw.randint(1, 12))
        wait_for_step(case, lambda: process.poll() is None, step, before)
        with contextlib.suppress(psutil.NoSuchProcess):
            ranks = process.children(recursive=True)
            process.send_signal(number)
        process.wait(LIMIT)
        _, alive = psutil.wait_procs(ranks, LIMIT)
        if alive:
            raise TortureError(f"ranks {alive} outlive torchrun after {number.name}")
    finally:
        for member in (process, *ranks):
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        log.unlink(missing_ok=True)
    # torchrun passes SIGQUIT on, which no rank handles.
    return "killed" if number == signal.SIGQUIT else saved(case)


def second_trainer(case: Case) -> str:
    """Another trainer on the same folder is refused, and the first one goes on."""
    before = case.run.inode()
    ranks = case.run.start()
    wait_for_step(case, lambda: ranks.ended() is None, 1, before)
    other = Tiny(case.run.folder, 1, case.run.mode).start()
    done = other.wait(LIMIT)
    refused = other.codes == [BAD_INPUT] and "another process is running this run" in done.stderr
    if not refused and ranks.ended() is None:
        raise TortureError(f"exit codes {other.codes}: {done.stderr[-2000:]}")
    if case.draw.random() < 0.5:
        ranks.kill()
    else:
        ended(ranks)
    return "refused" if refused else "had ended"


def two_at_once(case: Case) -> str:
    """Two trainers started in the same moment: at most one runs."""
    both = [Tiny(case.run.folder, 1, case.run.mode).start() for _ in range(2)]
    for ranks in both:
        done = ended(ranks, BAD_INPUT)
        if ranks.codes == [BAD_INPUT] and "another process is running this run" not in done.stderr:
            raise TortureError(done.stderr[-2000:])
    if all(ranks.codes == [BAD_INPUT] for ranks in both):
        raise TortureError("both were refused")
    return "one refused" if [BAD_INPUT] in [r.codes for r in both] else "one after the other"


def full_disk(case: Case) -> str:
    """The disk becomes full at a random moment: the run ends with one line and no traceback."""
    ballast = case.run.folder.parent / "ballast"
    ranks = started(case)
    free = case.draw.choice([0, 0, 1 << 12, 1 << 16, 1 << 20, 4 << 20])
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while (much := shutil.disk_usage(ballast.parent).free - free) > 0:
            file.write(b"\0" * much)
    try:
        done = ended(ranks, 1, BAD_INPUT)
    finally:
        ballast.unlink()
    if done.returncode == 0:
        return "had ended"
    if "cannot be" not in done.stderr:
        raise TortureError(f"exit codes {ranks.codes}: {done.stderr[-2000:]}")
    named = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if case.run.processes == 1 and ("Traceback" in done.stderr or len(named) != 1):
        raise TortureError(f"not one line: {done.stderr[-2000:]}")
    return "ended with one line"


# Faults of files, while nothing runs


def damage(case: Case, change: Callable[[Path, random.Random], None]) -> str:
    """Change one file of the newest checkpoint, after an intact one."""
    marks = case.run.folder.parent / "damaged"
    damaged = set(marks.read_text().split() if marks.exists() else [])
    if case.run.status.get("state") == "completed":
        return "had ended"
    if len(_intact(case, damaged)) < 2:
        ranks = case.run.start()
        limit = time.monotonic() + LIMIT
        while ranks.ended() is None and len(_intact(case, damaged)) < 2:
            if time.monotonic() > limit:
                raise TortureError(f"no two checkpoints within {LIMIT:g} s")
            time.sleep(0.01)
        over = ranks.ended()
        ranks.kill()
        if over:
            return "had ended"
    newest = _intact(case, damaged)[0]
    folder = case.run.checkpoints / f"{PREFIX}{newest}"
    files = sorted(file for file in folder.iterdir() if file.is_file() and file.stat().st_size)
    file = case.draw.choice(files)
    change(file, case.draw)
    marks.write_text(" ".join([*damaged, str(newest)]))
    return f"damaged {'distcp' if file.suffix == '.distcp' else file.name}"


def _intact(case: Case, damaged: set[str]) -> list[int]:
    """Steps of the checkpoints that a run can resume from, newest first."""
    folder = case.run.checkpoints
    sealed = [step for step in case.run.saved if (folder / f"{PREFIX}{step}" / MANIFEST).exists()]
    return [step for step in sealed if str(step) not in damaged]


def flip(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content)


def zero(file: Path, draw: random.Random) -> None:
    content = bytearray(file.read_bytes())
    start = draw.randrange(len(content))
    length = len(content[start : start + draw.randint(1, 4096)])
    content[start : start + length] = bytes(length)
    file.write_bytes(content)


def truncate(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def delete(file: Path, draw: random.Random) -> None:
    file.unlink()


def damage_cache(case: Case) -> str:
    """Flip a bit of the prepared corpus: a start prepares it again, several processes the next one.

    A process that starts after another has deleted it prepares it at once, and then waits for the
    others until the time limit.
    """
    files = sorted(f for f in cache_root().rglob("*") if f.is_file() and f.stat().st_size)
    flip(case.draw.choice(files), case.draw)
    before = case.run.inode()
    ranks = case.run.start()
    wait_for_step(case, lambda: ranks.ended() is None, 1, before)
    if ranks.ended() is None:
        ranks.kill()
        return "prepared again"
    done = ranks.wait(LIMIT)
    if done.returncode == 0:
        return "had ended"
    if "is deleted: run the same command again" not in done.stderr:
        raise TortureError(f"exit codes {ranks.codes}: {done.stderr[-2000:]}")
    return "refused once"


KINDS: dict[str, tuple[float, Callable[[Case], str]]] = {
    "SIGKILL to all ranks": (3, kill_all),
    "SIGKILL to one rank": (2, kill_one),
    "signal to one rank": (5, stop),
    "SIGINT twice": (1, stop_twice),
    "signal to torchrun": (0.7, agent),
    "second trainer": (1, second_trainer),
    "two trainers at once": (1, two_at_once),
    "full disk": (3, full_disk),
    "flipped bit in a checkpoint": (2, lambda case: damage(case, flip)),
    "zeroed range in a checkpoint": (1, lambda case: damage(case, zero)),
    "truncated file of a checkpoint": (1, lambda case: damage(case, truncate)),
    "deleted file of a checkpoint": (1, lambda case: damage(case, delete)),
    "flipped bit in the cache": (0.5, damage_cache),
}
"""Kind -> how often, relative to the others, and what does it."""

NEEDS_DISK = frozenset({"full disk"})
NEEDS_ONE_PROCESS = frozenset({"two trainers at once"})
