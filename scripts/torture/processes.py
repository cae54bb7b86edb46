"""Faults of processes, and of the disk that they write to; each says what came of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time

import psutil

from scripts.torture.case import Case, TortureError, ended, started, wait_for_step
from scripts.torture.runs import LIMIT, STEPS, Tiny
from train.checkpoint_files import METADATA, PREFIX
from train.integrity import MANIFEST
from train.preemption import SIGNALS
from train.run.exit_status import BAD_INPUT, INTERRUPTED, PREEMPTED


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
