"""Faults of files, while nothing runs; each says what came of it."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from scripts.torture.case import Case, TortureError, wait_for_step
from scripts.torture.runs import LIMIT
from train.checkpoint_files import PREFIX
from train.data.cache import cache_root
from train.integrity import MANIFEST


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
