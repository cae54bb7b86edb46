"""A run's status.json: what it says, that it is replaced whole, and its words."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from run_cases import contents
from run_cases import folder as folder  # a fixture

from train.run.folder import RunFolder, describe_status, load_run


def test_status_says_state_step_reason_and_time(folder: RunFolder) -> None:
    folder.set_status("failed", step=3, reason="out of memory")
    status = json.loads((folder.path / "status.json").read_text())
    updated = datetime.fromisoformat(status.pop("updated"))
    assert updated.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - updated) < timedelta(minutes=1)
    assert status == {"state": "failed", "step": 3, "reason": "out of memory"}


def test_a_running_run_says_on_which_host_and_as_which_process(folder: RunFolder) -> None:
    folder.set_status("running")
    status = load_run(folder.path).status
    assert (status["host"], status["pid"]) == (os.uname().nodename, os.getpid())
    folder.set_status("completed", step=400)
    assert not {"host", "pid"} & load_run(folder.path).status.keys()


def test_an_unknown_state_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="'done', expected one of queued, running"):
        folder.set_status("done")  # type: ignore[arg-type]


def test_a_crash_while_the_status_is_written_leaves_the_old_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.set_status("running", step=5)
    before = contents(folder.path)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        folder.set_status("completed", step=10)
    assert contents(folder.path) == before


def test_who_reads_while_the_status_is_replaced_reads_the_old_one_whole(folder: RunFolder) -> None:
    folder.set_status("running", step=5)
    with (folder.path / "status.json").open() as reader:
        folder.set_status("completed", step=10)
        assert json.load(reader)["step"] == 5
    assert load_run(folder.path).status["step"] == 10


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "no status yet"),
        ({"state": "queued", "step": None, "reason": None}, "queued"),
        ({"state": "running", "step": 0}, "running at step 0"),
        ({"state": "diverged", "step": 12}, "diverged at step 12"),
        ({"state": "failed", "reason": "out of\n  memory"}, "failed: out of memory"),
        ({"state": "failed", "step": 3, "reason": "bad"}, "failed at step 3: bad"),
    ],
)
def test_a_status_in_words(status: dict[str, Any], words: str) -> None:
    assert describe_status(status) == words


def test_a_folder_describes_its_own_status(folder: RunFolder) -> None:
    folder.set_status("diverged", step=12)
    assert folder.describe() == "diverged at step 12"
