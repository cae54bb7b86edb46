"""Processes that are killed again and again, and resumed, end as the uninterrupted run does."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import psutil
import pytest
from harness import ROOT, Run, tiny
from waiting import ended, wait_until

from scripts.torture.ranks import Ranks, run_ranks
from train.run.exit_status import INTERRUPTED, PREEMPTED

pytestmark = pytest.mark.slow

STEPS = 24
CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "3")


def arguments(folder: Path, sequences: int = 2, steps: int = STEPS) -> list[str]:
    batch = ("--training.local_batch_size", str(sequences))
    return tiny(folder, "maxP", *CHECKPOINTS, *batch, "--steps", str(steps))


def start(folder: Path, steps: int = STEPS) -> Ranks:
    """Two ranks."""
    return Ranks("train.__main__", *arguments(folder, steps=steps))


def last_step(folder: Path) -> int:
    """As a reader of a file that is being written sees it."""
    try:
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        return max((json.loads(x)["step"] for x in lines if x.endswith("}")), default=0)
    except (FileNotFoundError, ValueError):
        return 0


@pytest.fixture(scope="module")
def whole(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Run]:
    """The uninterrupted run of a number of steps."""

    @cache
    def run(steps: int) -> Run:
        folder = tmp_path_factory.mktemp("whole") / "run"
        done = run_ranks("train.__main__", *arguments(folder, steps=steps))
        assert done.returncode == 0, done.stderr[-2000:]
        return Run(folder)

    return run


@pytest.fixture
def uninterrupted(whole: Callable[[int], Run]) -> Run:
    return whole(STEPS)


def same_but_for_speed(run: Run) -> dict[int, tuple[object, ...]]:
    return {step: (r["loss"], r["grad_norm"], r["sites"]) for step, r in run.steps.items()}


@pytest.mark.parametrize(
    ("kills", "steps"), [(3, STEPS), pytest.param(10, 60, marks=pytest.mark.exhaustive)]
)
def test_kills_at_arbitrary_steps_leave_the_loss_curve_as_it_is(
    kills: int, steps: int, whole: Callable[[int], Run], tmp_path: Path
) -> None:
    folder, draw = tmp_path / "run", random.Random(7)
    killed_at = []
    for _ in range(kills):
        begun = max((int(p.parent.name[5:]) for p in folder.glob("checkpoint/step-*/.metadata")),
                    default=0)  # fmt: skip
        target = begun + draw.randint(1, 4)
        ranks = start(folder, steps)
        # Until it has resumed the file still holds later steps of the process before.
        resumed = False
        while not (resumed and last_step(folder) >= target):
            resumed = resumed or last_step(folder) <= begun + 1
            assert ranks.ended() is None
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.1))  # in a step, a measurement, or a checkpoint
        ranks.kill()
        killed_at.append(last_step(folder))
    assert max(killed_at) < steps
    assert start(folder, steps).wait().returncode == 0
    seen, uninterrupted = Run(folder), whole(steps)
    assert seen.record.status["state"] == "completed"
    assert same_but_for_speed(seen) == same_but_for_speed(uninterrupted)
    assert seen.validation_losses == uninterrupted.validation_losses


@pytest.mark.parametrize("processes", [1, 4])
def test_a_run_goes_on_with_another_number_of_processes(
    processes: int, uninterrupted: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    ranks = start(folder)
    saved = folder / "checkpoint" / "step-9" / ".metadata"
    wait_until("a checkpoint", saved.exists, ranks.ended)
    ranks.kill()
    done = run_ranks("train.__main__", *arguments(folder, 4 // processes), processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = Run(folder)
    assert seen.losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert seen.validation_losses == pytest.approx(uninterrupted.validation_losses, rel=1e-5)
    steps = seen.steps
    for step, record in uninterrupted.steps.items():
        assert steps[step]["tokens"] == record["tokens"]
        for site, values in record["sites"].items():
            assert steps[step]["sites"][site] == pytest.approx(values, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    "number", ["SIGUSR2", pytest.param("SIGINT", marks=pytest.mark.exhaustive)]
)
def test_a_signal_leaves_a_complete_asynchronous_checkpoint(
    number: str,
    uninterrupted: Run,
    corpus_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    command = (*arguments(folder), "--checkpoint.async_mode", "async")
    monkeypatch.setenv("STOP", "7")
    monkeypatch.setenv("STOP_SIGNAL", number)
    stopped = run_ranks("rank_worker", str(tmp_path), *command)
    assert stopped.returncode == (INTERRUPTED if number == "SIGINT" else PREEMPTED)
    status = Run(folder).record.status
    assert (status["state"], status["step"]) == ("preempted", 7)
    names = {path.name for path in (folder / "checkpoint" / "step-7").iterdir()}
    assert names == {".metadata", "manifest.json", "__0_0.distcp", "__1_0.distcp"}
    monkeypatch.delenv("STOP")
    done = run_ranks("rank_worker", str(tmp_path), *command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert same_but_for_speed(Run(folder)) == same_but_for_speed(uninterrupted)


def test_ranks_stop_with_a_checkpoint_when_torchrun_is_gone(
    corpus_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    agent = psutil.Popen([*command, "-m", "train", *arguments(folder)], cwd=ROOT)
    wait_until("step 3", lambda: last_step(folder) >= 3, ended([agent]))
    ranks = agent.children(recursive=True)
    agent.send_signal(signal.SIGUSR2)  # torchrun has no handler for it
    agent.wait()
    psutil.wait_procs(ranks)
    status = Run(folder).record.status
    assert status["state"] == "preempted"
    assert (folder / "checkpoint" / f"step-{status['step']}" / "manifest.json").exists()
