"""The two metrics of a run, read from the end of its metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run

from train.results.collect import collect
from train.results.formats import render
from train.run import tail
from train.run.summary import write_summary


def test_the_validation_metric_is_the_last_record_that_has_one(tmp_path: Path) -> None:
    records = [
        {"step": 200, "validation_loss": 4.0},
        {"step": 400, "validation_loss": 3.5},
        {"step": 400, "loss": 3.25},
    ]
    write_run(tmp_path, records=records)
    assert collect(tmp_path)["validation"].tolist() == [3.5]


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_metrics_that_were_cut_give_no_numbers_of_an_earlier_step(
    tmp_path: Path, kept: int
) -> None:
    """As in a copy of a folder that was made while its run wrote the end of its metrics."""
    records: list[dict[str, Any]] = [
        {"step": 200, "loss": 5.0},
        {"step": 200, "validation_loss": 4.0},
        {"step": 400, "loss": 3.25},
    ]
    folder = write_run(tmp_path, records=records, validation=3.5)
    write_summary(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:kept]))
    runs = collect(tmp_path)
    assert math.isnan(runs["validation"].item())
    assert runs["train"].fillna(0).tolist() == [3.25 if kept == 3 else 0]
    assert "completed without a validation loss: 1" in render(runs, "validation")


def test_the_train_metric_is_the_mean_over_the_last_tenth_of_the_steps(tmp_path: Path) -> None:
    losses = {100: 9.0, 360: 8.0, 361: 4.0, 380: 3.0, 400: 2.0}  # the window is 361..400
    records: list[dict[str, Any]] = [{"step": step, "loss": loss} for step, loss in losses.items()]
    records.insert(4, {"step": 380, "validation_loss": 7.0})
    write_run(tmp_path, records=records)
    assert collect(tmp_path)["train"].tolist() == [3.0]


def test_the_start_of_a_short_run_is_not_in_its_train_metric(tmp_path: Path) -> None:
    """With a window of 200 steps, a run that learns fast at first had a worse mean."""
    records = [{"step": step, "loss": 11.0 if step < 100 else 4.0} for step in range(1, 201)]
    write_run(tmp_path, records=records, steps=200)
    assert collect(tmp_path)["train"].tolist() == [4.0]


def test_the_train_metric_of_a_very_short_run_is_its_last_loss(tmp_path: Path) -> None:
    write_run(tmp_path, records=[{"step": 1, "loss": 4.0}, {"step": 2, "loss": 3.0}], steps=2)
    assert collect(tmp_path)["train"].tolist() == [3.0]


def test_the_train_metric_of_a_run_that_logs_rarely_is_its_last_loss(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 5 - step / 100} for step in (100, 200, 300)]
    write_run(tmp_path, records=records, steps=300)
    assert collect(tmp_path)["train"].tolist() == [2.0]


def test_a_loss_that_was_not_finite_is_not_averaged_away(tmp_path: Path) -> None:
    write_run(tmp_path, records=[{"step": 19, "loss": None}, {"step": 20, "loss": 3.0}])
    assert math.isnan(collect(tmp_path)["train"].item())


def test_only_a_completed_run_has_metrics(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 3.0}]
    for seed, state in enumerate(["running", "preempted", "failed", "diverged", None]):
        write_run(tmp_path, seed=seed, state=state, validation=3.0, records=records)
    assert collect(tmp_path)[["validation", "train"]].isna().all(axis=None)


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_metrics_are_the_same_however_the_file_is_cut_into_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(tail, "_BLOCK", block)
    records: list[dict[str, Any]] = [{"step": s, "loss": s / 8} for s in range(1, 401)]
    records.insert(0, {"step": 400, "validation_loss": 5.5})
    write_run(tmp_path, records=records)
    (row,) = collect(tmp_path).to_dict("records")
    assert row["validation"] == 5.5
    assert row["train"] == (361 + 400) / 2 / 8


def test_a_line_that_a_run_is_writing_is_not_corrupt(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running", records=[{"step": 6, "loss": 2.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert tail.last_record(folder / "metrics.jsonl") == ({"step": 6, "loss": 2.0}, 0)
    assert collect(tmp_path)["skipped_lines"].tolist() == [0]


def test_a_corrupt_line_before_the_last_record_of_a_run_is_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running", records=[{"step": 4, "loss": 3.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo\n{"step": 6, "loss": 2.0}\n')
    assert tail.last_record(folder / "metrics.jsonl") == ({"step": 6, "loss": 2.0}, 1)


def test_corrupt_lines_of_metrics_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_run(tmp_path, records=[{"step": 1, "loss": 3.0}], validation=3.5)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('nothing\n{"loss": 2.0}\n{"step": 400, "valid')
    (row,) = collect(tmp_path).to_dict("records")
    assert (row["skipped_lines"], row["validation"], row["train"]) == (3, 3.5, 3.0)
    assert "metrics.jsonl: 3 corrupt lines skipped" in caplog.text
