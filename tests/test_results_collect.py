"""Reading many runs: a run's own summary, and what is read where there is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_runs import write_run
from pandas.testing import assert_frame_equal

from train.results.collect import collect
from train.results.formats import render
from train.run.folder import RunFolderError
from train.run.summary import SUMMARY, write_summary

RECORDS: list[dict[str, Any]] = [
    {"step": 360, "loss": 9.0, "tokens": 3600, "tokens_per_second": 1.0},
    {"step": 361, "loss": 4.0, "tokens": 3610, "tokens_per_second": 10.0},
    {"step": 380, "loss": 3.0, "tokens": 3800, "tokens_per_second": 50.0},
    {"step": 400, "loss": 2.0, "tokens": 4000, "tokens_per_second": 30.0},
]


# summary


def test_a_summary_says_which_run_it_is_and_how_it_ended(tmp_path: Path) -> None:
    folder = write_run(tmp_path, lr=0.02, seed=3, records=RECORDS, validation=2.5)
    write_summary(folder, parameters=123)
    assert json.loads((folder / SUMMARY).read_text()) == {
        "version": 2,
        "scale": "s1",
        "method": "maxP",
        "lr": 0.02,
        "seed": 3,
        "steps": 400,
        "parameters": 123,
        "state": "completed",
        "validation": 2.5,
        "accuracy": None,  # of images
        "train": 3.0,  # (4 + 3 + 2) / 3: steps 361 to 400
        "loss": 2.0,
        "step": 400,
        "tokens": 4000,
        "tokens_per_second": 30.0,  # the middle one of 10, 30, 50
        "skipped_lines": 0,
        "refused": None,
        "zero_terms": None,
        "bounded": None,
        "infeasible": None,
        "skipped_images": None,
        "metrics_bytes": (folder / "metrics.jsonl").stat().st_size,
    }


def test_a_run_without_a_result_gets_no_summary(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running")
    with pytest.raises(RunFolderError, match="has no result yet"):
        write_summary(folder)
    assert not (folder / SUMMARY).exists()


def test_a_summary_stands_for_metrics_that_were_deleted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, records=RECORDS, validation=2.5)
    write_summary(folder, parameters=7)
    (folder / "metrics.jsonl").unlink()
    (row,) = collect(tmp_path).to_dict("records")
    assert (row["validation"], row["train"], row["parameters"]) == (2.5, 3.0, 7)


def test_the_table_is_the_same_with_and_without_summaries(tmp_path: Path) -> None:
    folder = write_run(tmp_path, records=RECORDS, validation=2.5)
    write_run(tmp_path, seed=1, state="diverged", records=RECORDS[:1])
    before = collect(tmp_path)
    for path in before["path"]:
        write_summary(path)
    assert (folder / SUMMARY).exists()
    assert_frame_equal(collect(tmp_path), before)


def test_a_summary_of_an_earlier_version_is_worked_out_again(tmp_path: Path) -> None:
    """Version 1 held the mean training loss of the last 200 steps."""
    folder = write_run(tmp_path, records=RECORDS, validation=2.5)
    content = write_summary(folder) | {"version": 1, "train": 9.0}
    (folder / SUMMARY).write_text(json.dumps(content))
    assert collect(tmp_path)["train"].tolist() == [3.0]


def test_a_summary_of_an_earlier_version_without_metrics_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, records=RECORDS, validation=2.5)
    content = write_summary(folder) | {"version": 1}
    (folder / SUMMARY).write_text(json.dumps(content))
    (folder / "metrics.jsonl").unlink()
    reason = f"{folder / SUMMARY} is of another version, and there is no metrics.jsonl"
    assert reason in render(collect(tmp_path), "validation")


def test_a_summary_older_than_the_metrics_is_not_believed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=2.5)
    write_summary(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "validation_loss": 2.25}\n')
    assert collect(tmp_path)["validation"].tolist() == [2.25]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2, "state": "completed"}'])
def test_a_corrupt_summary_is_named_and_the_metrics_read(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path, validation=2.5)
    write_run(tmp_path, seed=1, validation=3.5)
    size = (folder / "metrics.jsonl").stat().st_size
    (folder / SUMMARY).write_text(text.replace("ted", f'ted", "metrics_bytes": {size}, "x": "'))
    runs = collect(tmp_path)
    assert runs["validation"].tolist() == [2.5, 3.5]
    note = "unusable summaries, metrics read instead: 1 ("
    assert f"{note}{folder / SUMMARY} is corrupt" in render(runs, "validation")


def test_a_corrupt_status_makes_one_run_unreadable_and_harms_no_other(tmp_path: Path) -> None:
    (write_run(tmp_path, seed=0, validation=9.0) / "status.json").write_text('{"state": "co')
    write_run(tmp_path, seed=1, validation=3.5)
    runs = collect(tmp_path)
    assert runs["state"].tolist() == ["unreadable", "completed"]
    text = render(runs, "validation")
    assert "3.5000 *" in text
    assert "unreadable folders: 1 (" in text


# collect


def test_a_run_that_was_moved_counts_where_a_link_to_it_is(tmp_path: Path) -> None:
    """As on a cluster, where a run goes to another disk when the first is full."""
    here, there = tmp_path / "here", tmp_path / "there"
    write_run(here, seed=1, validation=3.0)
    moved = write_run(there, seed=2, validation=4.0)
    (here / moved.name).symlink_to(moved)
    (here / "again").symlink_to(here)  # a circle
    assert sorted(collect(here)["validation"]) == [3.0, 4.0]


def test_reading_writes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0)
    before = sorted(tmp_path.rglob("*"))
    collect(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_unfinished_run_shows_how_far_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running", records=RECORDS[:2])
    status = json.loads((folder / "status.json").read_text()) | {"step": None}
    (folder / "status.json").write_text(json.dumps(status))
    (row,) = collect(tmp_path).to_dict("records")
    assert (row["step"], row["loss"], row["tokens"]) == (361, 4.0, 3610)
    assert pd.isna(row["train"])


@pytest.mark.parametrize("lr", [0, -1, None, "fast"])
def test_an_lr_that_is_not_a_positive_number_is_named(tmp_path: Path, lr: Any) -> None:
    write_run(tmp_path, lr=lr, validation=3.0)
    (row,) = collect(tmp_path).to_dict("records")
    assert row["state"] == "unreadable"
    assert "its lr is not a positive number" in row["description"]
