"""Two processes that share a model through FSDP over gloo."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from harness import Run, tiny, torchrun

from scripts.torture.ranks import run_ranks

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The tiny run of maxP, each rank with half of the batch."""
    folder = tmp_path_factory.mktemp("two") / "run"
    arguments = tiny(folder, "maxP", "--training.local_batch_size", "2")
    done = torchrun("tests/rank_worker.py", str(folder.parent), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(folder)


def test_two_ranks_complete_a_run(two: Run) -> None:
    assert two.record.status["state"] == "completed"


def test_the_weights_are_split_between_the_ranks(two: Run) -> None:
    for rank in (0, 1):
        seen = json.loads((two.folder.parent / f"rank{rank}.json").read_text())
        assert all("Shard(dim=0)" in placements for placements in seen["placements"].values())


def test_both_ranks_hold_the_same_c_and_lr(two: Run) -> None:
    first, second = (
        json.loads((two.folder.parent / f"rank{rank}.json").read_text()) for rank in (0, 1)
    )
    assert first["c"] == second["c"]
    assert first["lr"] == second["lr"]
    assert first["c"]["lm_head"] != 0.5  # it was measured and solved
    assert (first["disagreed"], second["disagreed"]) == (0, 0)


def test_a_rank_that_measures_something_else_takes_the_first_ranks_answer(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAMPER", "1")
    arguments = tiny(tmp_path / "run", "maxP", "--training.local_batch_size", "2")
    done = run_ranks("rank_worker", str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    untampered = json.loads((two.folder.parent / "rank0.json").read_text())
    assert second["disagreed"] > 0  # so it was noticed
    assert first["c"] == second["c"] == untampered["c"]
    assert first["lr"] == second["lr"] == untampered["lr"]


def test_two_ranks_train_as_one_does_at_the_same_global_batch(two: Run, maxp_run: Run) -> None:
    assert two.losses == pytest.approx(maxp_run.losses, rel=1e-5)
    assert two.validation_losses == pytest.approx(maxp_run.validation_losses, rel=1e-5)
    for step in (1, 5, 12, 24):
        for name, c in maxp_run.c[step - 1].items():
            assert two.steps[step]["sites"][name]["c"] == pytest.approx(c, abs=1e-3)


def test_a_completed_run_is_left_alone_by_every_rank(two: Run) -> None:
    before = two.record
    done = run_ranks(
        "train.__main__", *tiny(two.folder, "maxP", "--training.local_batch_size", "2")
    )
    assert done.returncode == 0
    assert done.stdout.count("already completed at step 24; nothing to do") == 1
    assert two.record == before


def test_bad_input_ends_every_rank_with_one_line(tmp_path: Path, corpus_cache: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    done = run_ranks("train.__main__", *tiny(tmp_path, "maxP", "--training.local_batch_size", "2"))
    assert done.returncode != 0
    assert len(re.findall("^.*error: --output-dir", done.stderr, re.M)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_two_ranks_resume_what_they_saved(two: Run, corpus_cache: Path, tmp_path: Path) -> None:
    flags = ("--training.local_batch_size", "2", "--checkpoint.enable")
    arguments = tiny(tmp_path / "run", "maxP", *flags, "--checkpoint.interval", "8")
    first = run_ranks("rank_worker", str(tmp_path), *arguments)
    assert first.returncode == 0
    # As a run that was killed after step 8 leaves it: no later checkpoint, no result.
    for step in (16, 24):
        (tmp_path / "run" / "checkpoint" / f"step-{step}" / ".metadata").unlink()
    (tmp_path / "run" / "status.json").write_text('{"state": "running"}')
    again = run_ranks("rank_worker", str(tmp_path), *arguments)
    assert again.returncode == 0
    assert Run(tmp_path / "run").losses == two.losses
    sites = [record["sites"] for record in Run(tmp_path / "run").steps.values()]
    assert sites == [record["sites"] for record in two.steps.values()]


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_the_run_goes_on(
    two: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--training.local_batch_size", "2", "--checkpoint.enable")
    arguments = tiny(tmp_path / "run", "maxP", *flags)
    monkeypatch.setenv("STOP", "7")
    run_ranks("rank_worker", str(tmp_path), *arguments)
    stopped = Run(tmp_path / "run")
    assert stopped.record.status["state"] == "preempted"
    assert stopped.record.status["step"] == 7
    monkeypatch.delenv("STOP")
    done = run_ranks("rank_worker", str(tmp_path), *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    assert stopped.losses == two.losses
