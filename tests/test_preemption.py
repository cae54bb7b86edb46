"""A run that is signalled stops with a checkpoint, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from harness import STEPS, Run, run, tiny
from torch.distributed.checkpoint import FileSystemWriter

from train import preemption
from train.run.exit_status import INTERRUPTED, PREEMPTED
from train.trainer import MaxPTrainer

CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "1000")


def signal_at(step: int, number: signal.Signals) -> Callable[[MaxPTrainer], None]:
    """Send this process a signal when the given step begins."""

    def before_step(trainer: MaxPTrainer) -> None:
        if trainer.step == step:
            os.kill(os.getpid(), number)

    return before_step


@pytest.fixture(scope="module")
def stopped(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("run") / "stopped"
    return run(tiny(folder, "maxP", *CHECKPOINTS), before_step=signal_at(9, signal.SIGUSR2))


def test_a_signalled_run_ends_after_the_step_that_it_was_in(stopped: Run) -> None:
    assert stopped.code == PREEMPTED
    assert len(stopped.lrs) == 9
    assert (stopped.folder / "checkpoint" / "step-9" / ".metadata").exists()


def test_without_checkpoints_it_stops_as_well_and_its_status_says_preempted(
    corpus_cache: Path, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no")
    seen = run(arguments, before_step=signal_at(2, signal.SIGTERM))
    assert seen.record.status["state"] == "preempted"
    assert seen.record.status["step"] == 2
    assert seen.code == PREEMPTED


def test_started_again_it_ends_as_the_uninterrupted_run_bit_for_bit(
    stopped: Run, maxp_run: Run
) -> None:
    again = run(tiny(stopped.folder, "maxP", *CHECKPOINTS))
    assert again.code == 0
    assert again.losses == maxp_run.losses
    assert again.c == maxp_run.c[9:]
    assert again.lrs == maxp_run.lrs[9:]
    assert all(map(torch.equal, again.batches, maxp_run.batches[9:]))


def test_a_signal_in_the_last_step_does_not_keep_a_run_from_completing(
    corpus_cache: Path, tmp_path: Path
) -> None:
    seen = run(tiny(tmp_path / "run", "mup-no"), before_step=signal_at(STEPS, signal.SIGUSR2))
    assert seen.code == 0
    assert seen.record.status["state"] == "completed"


def test_the_former_handlers_are_back_after_a_run(stopped: Run) -> None:
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


def test_an_asynchronous_checkpoint_is_complete_when_the_run_says_saved(
    corpus_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = FileSystemWriter.finish

    def slow_finish(*arguments: object, **named: object) -> None:
        time.sleep(1)
        finish(*arguments, **named)

    monkeypatch.setattr(FileSystemWriter, "finish", slow_finish)
    flags = (*CHECKPOINTS, "--checkpoint.async_mode", "async")
    seen = run(tiny(tmp_path / "run", "mup-no", *flags), before_step=signal_at(5, signal.SIGTERM))
    assert seen.code == PREEMPTED
    checkpoint = seen.folder / "checkpoint" / "step-5"
    assert {path.name for path in checkpoint.iterdir()} >= {".metadata", "manifest.json"}


def test_a_lost_terminal_stops_a_run_with_a_checkpoint(corpus_cache: Path, tmp_path: Path) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
    arguments = tiny(tmp_path / "run", "mup-no", *CHECKPOINTS)
    seen = run(arguments, before_step=signal_at(3, signal.SIGHUP))
    assert seen.code == PREEMPTED
    assert seen.record.status["state"] == "preempted"
    assert (seen.folder / "checkpoint" / "step-3" / ".metadata").exists()


def test_under_nohup_a_lost_terminal_changes_nothing(corpus_cache: Path, tmp_path: Path) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        seen = run(tiny(tmp_path / "run", "mup-no"), before_step=signal_at(2, signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, former)
    assert seen.record.status["state"] == "completed"


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT as a terminal's process has it; the tests may run where it is ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


def test_ctrl_c_stops_a_run_with_a_checkpoint_and_the_same_command_resumes_it(
    ctrl_c: None, corpus_cache: Path, tmp_path: Path, mup_no_run: Run
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no", *CHECKPOINTS)
    seen = run(arguments, before_step=signal_at(3, signal.SIGINT))
    assert seen.code == INTERRUPTED
    assert (seen.record.status["state"], seen.record.status["step"]) == ("preempted", 3)
    assert (seen.folder / "checkpoint" / "step-3" / "manifest.json").exists()
    assert run(arguments).losses == mup_no_run.losses


def test_a_second_ctrl_c_stops_a_run_at_once(
    ctrl_c: None, corpus_cache: Path, tmp_path: Path
) -> None:
    def twice(trainer: MaxPTrainer) -> None:
        if trainer.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    seen = run(tiny(tmp_path / "run", "mup-no", *CHECKPOINTS), before_step=twice)
    assert seen.code == INTERRUPTED
    assert (seen.record.status["state"], seen.record.status["reason"]) == ("failed", "interrupted")
    assert list(seen.steps) == [1, 2]
    assert not (seen.folder / "checkpoint").exists()


def test_where_ctrl_c_is_ignored_it_stays_so(corpus_cache: Path, tmp_path: Path) -> None:
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell script's background job
    try:
        seen = run(tiny(tmp_path / "run", "mup-no"), before_step=signal_at(2, signal.SIGINT))
    finally:
        signal.signal(signal.SIGINT, former)
    assert seen.record.status["state"] == "completed"


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)


def test_the_end_of_torchrun_stops_its_ranks(
    one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    flag = preemption.StopFlag()
    try:
        assert flag.agreed() is None
        monkeypatch.setattr(os, "getppid", lambda: 0)  # no process has this id
        assert flag.agreed() == "the end of torchrun"
    finally:
        flag.close()


def test_without_torchrun_a_run_outlives_the_shell_that_started_it(
    one_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    flag = preemption.StopFlag()
    try:
        monkeypatch.setattr(os, "getppid", lambda: 1)
        assert flag.agreed() is None
    finally:
        flag.close()
