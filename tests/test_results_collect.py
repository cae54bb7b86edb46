"""Reading many runs: a run's own summary, and the cache at the runs' root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_runs import write_run
from pandas.testing import assert_frame_equal

from train.results import collect as collecting
from train.results.cache import CACHE
from train.results.collect import collect
from train.results.formats import render
from train.run.folder import RunFolderError
from train.run.summary import SUMMARY, finish, write_summary

RECORDS: list[dict[str, Any]] = [
    {"step": 100, "loss": 9.0, "tokens": 1000, "tokens_per_second": 1.0},
    {"step": 201, "loss": 4.0, "tokens": 2010, "tokens_per_second": 10.0},
    {"step": 300, "loss": 3.0, "tokens": 3000, "tokens_per_second": 50.0},
    {"step": 400, "loss": 2.0, "tokens": 4000, "tokens_per_second": 30.0},
]


def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that are read from now on."""
    names: list[str] = []
    read = collecting.read_run
    monkeypatch.setattr(
        collecting, "read_run", lambda folder: (names.append(folder.name), read(folder))[1]
    )
    return names


# summary


def test_a_summary_says_which_run_it_is_and_how_it_ended(tmp_path: Path) -> None:
    folder = write_run(tmp_path, lr=0.02, seed=3, records=RECORDS, validation=2.5)
    write_summary(folder, parameters=123)
    assert json.loads((folder / SUMMARY).read_text()) == {
        "version": 1,
        "scale": "s1",
        "method": "maxP",
        "lr": 0.02,
        "seed": 3,
        "steps": 400,
        "parameters": 123,
        "state": "completed",
        "validation": 2.5,
        "train": 3.0,  # (4 + 3 + 2) / 3: steps 201 to 400
        "loss": 2.0,
        "step": 400,
        "tokens": 4000,
        "tokens_per_second": 30.0,  # the middle one of 10, 30, 50
        "skipped_lines": 0,
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
    before = collect(tmp_path, cache=False)
    for path in before["path"]:
        write_summary(path)
    assert (folder / SUMMARY).exists()
    assert_frame_equal(collect(tmp_path, cache=False), before)


def test_a_summary_older_than_the_metrics_is_not_believed(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=2.5)
    write_summary(folder)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "validation_loss": 2.25}\n')
    assert collect(tmp_path)["validation"].tolist() == [2.25]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1, "state": "completed"}'])
def test_a_corrupt_summary_is_named_and_the_metrics_read(tmp_path: Path, text: str) -> None:
    folder = write_run(tmp_path, validation=2.5)
    write_run(tmp_path, seed=1, validation=3.5)
    size = (folder / "metrics.jsonl").stat().st_size
    (folder / SUMMARY).write_text(text.replace("ted", f'ted", "metrics_bytes": {size}, "x": "'))
    runs = collect(tmp_path)
    assert runs["validation"].tolist() == [2.5, 3.5]
    note = "summaries that could not be used, metrics read instead: 1 ("
    assert f"{note}{folder / SUMMARY} is corrupt" in render(runs, "validation")


def test_a_corrupt_status_makes_one_run_unreadable_and_harms_no_other(tmp_path: Path) -> None:
    (write_run(tmp_path, seed=0, validation=9.0) / "status.json").write_text('{"state": "co')
    write_run(tmp_path, seed=1, validation=3.5)
    runs = collect(tmp_path)
    assert runs["state"].tolist() == ["unreadable", "completed"]
    text = render(runs, "validation")
    assert "3.5000 *" in text
    assert "folders that are no readable runs: 1 (" in text


def test_finish_never_raises(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finish(tmp_path / "nowhere")
    assert "no summary of the finished run" in caplog.text
    assert "no HParams of the finished run" in caplog.text


# cache


def test_only_what_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        write_run(tmp_path, seed=seed, validation=3.0 + seed, name=f"run{seed}")
    first = collect(tmp_path)
    names = reads(monkeypatch)
    assert_frame_equal(collect(tmp_path), first)
    assert names == []
    with (tmp_path / "run1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "validation_loss": 2.0}\n')
    assert collect(tmp_path)["validation"].tolist() == [3.0, 2.0, 5.0]
    assert names == ["run1"]


def test_a_status_replaced_within_one_tick_and_of_the_same_size_is_seen(tmp_path: Path) -> None:
    status = write_run(tmp_path, state="queued", steps=0) / "status.json"
    assert collect(tmp_path)["state"].tolist() == ["queued"]
    times = status.stat()
    new = status.with_name("new")
    new.write_text(status.read_text().replace("queued", "failed"))
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(new, status)
    assert collect(tmp_path)["state"].tolist() == ["failed"]


def test_a_deleted_cache_changes_nothing(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0, records=RECORDS)
    write_run(tmp_path, seed=1, state="running", records=RECORDS[:2])
    first = collect(tmp_path)
    cached = collect(tmp_path)
    (tmp_path / CACHE).unlink()
    assert_frame_equal(cached, first)
    assert_frame_equal(collect(tmp_path), first)
    assert_frame_equal(collect(tmp_path, cache=False), first)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"rows": 1}', '{"version": 1, "rows": {"a": 1}}'])
def test_a_corrupt_cache_is_ignored_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    write_run(tmp_path, validation=3.0, name="a")
    (tmp_path / CACHE).write_text(text)
    assert collect(tmp_path)["validation"].tolist() == [3.0]
    names = reads(monkeypatch)
    collect(tmp_path)
    assert names == []


def test_a_cache_that_cannot_be_written_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, validation=3.0)

    def refuse(target: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("train.results.cache.write_whole", refuse)
    caplog.set_level("INFO")
    assert collect(tmp_path)["validation"].tolist() == [3.0]
    assert f"{CACHE} not written (Permission denied)" in caplog.text


def test_a_moved_sweep_is_read_from_its_cache_with_its_new_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "old", validation=3.0, name="a")
    collect(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "new")
    names = reads(monkeypatch)
    assert collect(tmp_path / "new")["path"].tolist() == [str(tmp_path / "new" / "a")]
    assert names == []


def test_nothing_is_written_into_a_run_or_an_empty_folder(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.0)
    (tmp_path / "empty").mkdir()
    before = sorted(folder.iterdir())
    collect(folder)
    collect(tmp_path / "empty")
    assert sorted(folder.iterdir()) == before
    assert not list((tmp_path / "empty").iterdir())


def test_an_unfinished_run_shows_how_far_it_is(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running", records=RECORDS[:2])
    status = json.loads((folder / "status.json").read_text()) | {"step": None}
    (folder / "status.json").write_text(json.dumps(status))
    (row,) = collect(tmp_path).to_dict("records")
    assert (row["step"], row["loss"], row["tokens"]) == (201, 4.0, 2010)
    assert pd.isna(row["train"])


@pytest.mark.parametrize("lr", [0, -1, None, "fast"])
def test_an_lr_that_is_no_positive_number_is_said(tmp_path: Path, lr: Any) -> None:
    write_run(tmp_path, lr=lr, validation=3.0)
    (row,) = collect(tmp_path).to_dict("records")
    assert row["state"] == "unreadable"
    assert "its lr is no positive number" in row["description"]


def test_reading_results_does_not_import_torch() -> None:
    modules = ("results.report", "results.collect", "results.formats", "run.summary", "run.hparams")
    code = "; ".join(f"import train.{name}" for name in modules)
    code += "; import train.table, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
