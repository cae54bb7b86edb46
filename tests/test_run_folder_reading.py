"""Reading a run back from its folder, whatever state its files are in."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from run_cases import CONFIG
from run_cases import folder as folder  # a fixture

from train.run.folder import RunFolder, RunFolderError, load_run


def test_load_run_reads_what_was_written(folder: RunFolder) -> None:
    folder.set_status("completed", step=2)
    folder.metrics().append({"step": 1, "loss": 2.5})
    folder.metrics().append({"step": 2, "validation_loss": 2.25})
    run = load_run(folder.path)
    assert (run.path, run.config, run.skipped_lines) == (folder.path, CONFIG, 0)
    assert (run.status["state"], run.status["step"]) == ("completed", 2)
    assert run.metrics == [{"step": 1, "loss": 2.5}, {"step": 2, "validation_loss": 2.25}]


def test_load_run_counts_and_logs_corrupt_lines(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"step": 1}', b"\xff\xfe", b"[2]", b'{"step": 3}', b'{"step": 4, "lo']
    (folder.path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        run = load_run(folder.path)
    assert run.metrics == [{"step": 1}, {"step": 3}]
    assert run.skipped_lines == 3
    assert [" ".join(text.split()[1:3]) for text in caplog.messages] == [
        "line 2",
        "line 3",
        "line 5",
    ]
    assert all(text.startswith(str(folder.path / "metrics.jsonl")) for text in caplog.messages)


def test_load_run_of_a_run_that_has_only_begun_is_empty(folder: RunFolder) -> None:
    run = load_run(folder.path)
    assert (run.status, run.metrics, run.skipped_lines) == ({}, [], 0)


def test_load_run_leaves_the_metrics_unread_on_request(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\nnothing')
    run = load_run(folder.path, metrics=False)
    assert (run.metrics, run.skipped_lines) == ([], 0)


def test_load_run_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read"):
        load_run(tmp_path)
