"""Faults at random, after which runs must end as uninterrupted ones do, bit for bit.

    python -m scripts.torture --minutes 10 --seed 1

An episode is a tiny run on one or two processes to which up to four faults are done: signals,
kills, full disks, damaged files, second trainers (`scripts.torture.kinds`). Then it is resumed to
its end. metrics.jsonl (all but speed and memory), weights and optimizer must equal those of an
uninterrupted run on as many processes. Exit status 1 if one did not.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro

from scripts.torture.case import Case, TortureError
from scripts.torture.kinds import KINDS, NEEDS_DISK, NEEDS_ONE_PROCESS
from scripts.torture.runs import LIMIT, Tiny, difference, disk
from train.data.corpus import prepare_embedded
from train.progress import progress
from train.run.files import write_whole


@dataclass
class Tally:
    """What was tried, how often, with what result."""

    episodes: Counter[str] = field(default_factory=Counter)
    """By processes and way of saving."""
    faults: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    """By kind, what came of it."""
    failures: list[dict[str, Any]] = field(default_factory=list)

    def as_json(self, seed: int, seconds: float) -> str:
        content = {
            "seed": seed,
            "seconds": round(seconds),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "episodes": dict(self.episodes),
            "faults": {kind: dict(results) for kind, results in sorted(self.faults.items())},
            "failures": self.failures,
        }
        return json.dumps(content, indent=2) + "\n"

    def table(self) -> str:
        rows = [
            (kind, str(results.total()), ", ".join(f"{n} {r}" for r, n in results.most_common()))
            for kind, results in sorted(self.faults.items())
        ]
        width = max([len(kind) for kind, _, _ in rows], default=0)
        lines = [
            f"{kind.ljust(width)}  {count.rjust(5)}  {results}" for kind, count, results in rows
        ]
        episodes = ", ".join(f"{n} on {how}" for how, n in sorted(self.episodes.items()))
        total = sum(self.episodes.values())
        equal = total - len(self.failures)
        last = f"{equal} of {total} episodes end as uninterrupted runs ({episodes})"
        return "\n".join([*lines, last])


def episode(seed: int, number: int, root: Path, whole: Callable[[int], Tiny], tally: Tally) -> None:
    """One run and its faults; its folder stays if it fails."""
    draw = random.Random(f"{seed}-{number}")
    processes, mode = draw.choice([1, 2]), draw.choice(["disabled", "async"])
    place = root / f"episode-{number}"
    shutil.rmtree(place, ignore_errors=True)
    done: list[str] = []
    failure = None
    with disk(place) as own_disk:
        case = Case(Tiny(place / "run", processes, mode), draw, own_disk)
        weights = {
            kind: weight
            for kind, (weight, _) in KINDS.items()
            if (own_disk or kind not in NEEDS_DISK)
            and (processes == 1 or kind not in NEEDS_ONE_PROCESS)
        }
        kinds = draw.choices([*weights], [*weights.values()], k=draw.randint(1, 4))
        try:
            for kind in kinds:
                done.append(kind)
                tally.faults[kind][KINDS[kind][1](case)] += 1
            finish(case)
            failure = difference(case.run, whole(processes))
        except (TortureError, TimeoutError) as error:
            tally.faults[done[-1]]["FAILED"] += 1
            failure = str(error)
        if failure is not None:
            keep = root / f"failed-{number}"
            shutil.rmtree(keep, ignore_errors=True)
            shutil.copytree(place, keep)
            why = {"episode": number, "faults": done, "processes": processes, "save": mode}
            tally.failures.append({**why, "reason": failure, "folder": str(keep)})
    shutil.rmtree(place, ignore_errors=True)
    plural = "process" if processes == 1 else "processes"
    tally.episodes[f"{processes} {plural}, {'a' if mode == 'async' else ''}synchronous"] += 1


def finish(case: Case) -> None:
    """Resume the run to its end.

    Raises:
        TortureError: it does not end well.
    """
    done = case.run.start().wait(LIMIT)
    if done.returncode != 0:
        raise TortureError(f"resumed: exit status {done.returncode}: {done.stderr[-2000:]}")


def main(
    minutes: float = 10,
    seed: int = 1,
    episodes: int = sys.maxsize,
    first: int = 0,
    to: Path | None = None,
    folder: Path | None = None,
) -> int:
    """Do faults to tiny runs, and compare them with uninterrupted ones.

    Args:
        minutes: Begin no more episodes after this time.
        seed: Of all that is random but the moments, which depend on the machine.
        episodes: Begin no more than this number.
        first: Number of the first episode; with --episodes 1 it repeats one that failed.
        to: Write what was tried, how often and with what result to this JSON file.
        folder: Where the runs are; those that fail stay there (default: a temporary folder).
    """
    logging.getLogger().setLevel(logging.ERROR)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the ranks end as well
    folder = folder or Path(tempfile.gettempdir())
    folder.mkdir(parents=True, exist_ok=True)
    root = Path(tempfile.mkdtemp(prefix="torture-", dir=folder)).resolve()
    os.environ["MAXP_CACHE"] = str(root / "cache")
    prepare_embedded()

    @cache
    def whole(processes: int) -> Tiny:
        """The uninterrupted run."""
        run = Tiny(root / f"whole-{processes}", processes)
        finish(Case(run, random.Random(), False))
        return run

    tally, begin, total = Tally(), time.monotonic(), round(60 * minutes)
    with progress(total=total, unit="s", desc="torture") as bar:
        for number in range(first, first + episodes):
            episode(seed, number, root, whole, tally)
            seconds = time.monotonic() - begin
            bar.update(min(int(seconds), total) - bar.n)
            bar.set_postfix(episodes=sum(tally.episodes.values()), failed=len(tally.failures))
            if to is not None:
                write_whole(to, tally.as_json(seed, seconds))
            if seconds > total:
                break
    print(tally.table())
    for failure in tally.failures:
        repeat = f"python -m scripts.torture --seed {seed} --first {failure['episode']}"
        print(f"FAILED {failure}\n  repeat: {repeat} --episodes 1")
    if not tally.failures:
        shutil.rmtree(root)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    sys.exit(tyro.cli(main, prog="python -m scripts.torture"))
