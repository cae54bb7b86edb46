"""Processes that are killed again and again, and resumed, end as the uninterrupted run does."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import ROOT, Run, tiny, torchrun

pytestmark = pytest.mark.slow

STEPS = 60
KILLS = 10
CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "3", "--steps", str(STEPS))


def arguments(folder: Path, sequences: int = 2) -> list[str]:
    batch = ("--training.local_batch_size", str(sequences))
    return tiny(folder, "maxP", *CHECKPOINTS, *batch)


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Two ranks, in a process group of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.Popen(
        [*command, "-m", "train", *arguments(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def last_step(folder: Path) -> int:
    """As a reader of a file that is being written sees it."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(x)["step"] for x in lines if x.endswith("}")), default=0)
    except (FileNotFoundError, ValueError):
        return 0


def family(pid: int) -> list[int]:
    """A process and all its descendants; torchrun starts its ranks in sessions of their own."""
    stats = [file.read_text() for file in Path("/proc").glob("[0-9]*/stat") if file.exists()]
    # "PID (NAME) STATE PARENT ...", where the name may hold anything
    parents = {int(x.split()[0]): int(x.rpartition(")")[2].split()[1]) for x in stats}
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found


def kill(process: subprocess.Popen[bytes]) -> None:
    for pid in family(process.pid):
        os.kill(pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def uninterrupted(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("whole") / "run"
    done = torchrun("-m", "train", *arguments(folder))
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(folder)


def same_but_for_speed(run: Run) -> dict[int, tuple[object, ...]]:
    return {step: (r["loss"], r["grad_norm"], r["sites"]) for step, r in run.steps.items()}


def test_ten_kills_at_arbitrary_steps_leave_the_loss_curve_as_it_is(
    uninterrupted: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    folder, draw = tmp_path / "run", random.Random(7)
    killed_at = []
    for _ in range(KILLS):
        begun = max((int(p.parent.name[5:]) for p in folder.glob("checkpoint/step-*/.metadata")),
                    default=0)  # fmt: skip
        target = begun + draw.randint(1, 6)
        process = start(folder)
        deadline = time.monotonic() + 90
        # Until it has resumed the file still holds later steps of the process before.
        resumed = False
        while not (resumed and last_step(folder) >= target):
            resumed = resumed or last_step(folder) <= begun + 1
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))  # in a step, a measurement, or a checkpoint
        kill(process)
        killed_at.append(last_step(folder))
    assert max(killed_at) < STEPS
    assert start(folder).wait(timeout=120) == 0
    seen = Run(folder)
    assert seen.record.status["state"] == "completed"
    assert same_but_for_speed(seen) == same_but_for_speed(uninterrupted)
    assert seen.validation_losses == uninterrupted.validation_losses


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(
    processes: int, uninterrupted: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    process = start(folder)
    deadline = time.monotonic() + 90
    while not (folder / "checkpoint" / "step-21" / ".metadata").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    kill(process)
    done = torchrun("-m", "train", *arguments(folder, 4 // processes), processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = Run(folder)
    assert seen.losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert seen.validation_losses == pytest.approx(uninterrupted.validation_losses, rel=1e-5)
    for step, record in uninterrupted.steps.items():
        for site, values in record["sites"].items():
            assert seen.steps[step]["sites"][site] == pytest.approx(values, rel=1e-4, abs=1e-4)
