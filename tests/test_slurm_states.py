"""What is said of a run, from its folder, its job and Slurm's queue."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from slurm_cases import command, job, spec

from slurm import squeue
from slurm.ledger import SweepFolder
from slurm.squeue import QueueEntry, QueueError
from slurm.states import State, judge, last_error, survey
from train.run.folder import RunFolder, read_status

PENDING = QueueEntry("7_0", "PENDING", "Priority", "1:00:00", "", "t1")
RUNNING = QueueEntry("7_0", "RUNNING", "None", "1:00:00", "n1", "t1")


@pytest.mark.parametrize(
    ("status", "entry", "state", "detail"),
    [
        ({"state": "completed"}, None, State.COMPLETED, ""),
        ({"state": "completed"}, RUNNING, State.COMPLETED, ""),
        ({"state": "diverged", "step": 7}, None, State.DIVERGED, "at step 7"),
        ({"state": "queued"}, PENDING, State.QUEUED, "Priority"),
        ({"state": "preempted", "step": 9}, PENDING, State.QUEUED, "preempted at step 9, Priority"),
        ({"state": "queued"}, RUNNING, State.RUNNING, "on n1"),
        ({"state": "failed", "reason": "x"}, RUNNING, State.RUNNING, "on n1"),
        ({"state": "failed", "reason": "no memory"}, None, State.FAILED, "no memory"),
        ({"state": "running"}, None, State.VANISHED, "job 7_0 is gone"),
        ({"state": "queued"}, None, State.VANISHED, "job 7_0 is gone"),
        ({"state": "preempted", "step": 9}, None, State.VANISHED, "job 7_0 is gone"),
    ],
)
def test_a_run_of_a_job(
    status: dict[str, object], entry: QueueEntry | None, state: State, detail: str
) -> None:
    assert judge(status, job(), entry) == (state, detail)


def test_a_run_that_was_never_submitted_is_missing() -> None:
    assert judge({}, None, None) == (State.MISSING, "")


def test_a_cancelled_run_whose_job_is_gone_is_cancelled_not_vanished() -> None:
    assert judge({"state": "preempted", "step": 3}, job(cancelled=True), None)[0] is State.CANCELLED


def test_a_local_run_is_running_while_its_process_lives_and_vanished_after() -> None:
    child = subprocess.Popen(["sleep", "60"])
    record = job(kind="local", job_id=None).owned_by(psutil.Process(child.pid))
    try:
        assert judge({"state": "running"}, record, None)[0] is State.RUNNING
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie: dead, not reaped
        assert judge({"state": "running"}, record, None)[0] is State.VANISHED
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def stranger() -> Iterator[psutil.Process]:
    """A process that has been given the id of one that ended."""
    child = subprocess.Popen(["sleep", "60"])
    yield psutil.Process(child.pid)
    child.kill()
    child.wait()


def ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()


def status_of(process: psutil.Process, **changes: object) -> dict[str, object]:
    here = {"state": "running", "host": socket.gethostname(), "pid": process.pid}
    return {**here, "updated": ago(0), **changes}


def test_a_run_started_by_hand_runs_while_its_process_lives(tmp_path: Path) -> None:
    RunFolder(tmp_path).set_status("running", step=1)
    assert judge(read_status(tmp_path), None, None) == (State.RUNNING, "here")


def test_a_reused_process_id_is_not_the_run(stranger: psutil.Process) -> None:
    earlier = stranger.create_time() - 1000
    assert judge(status_of(stranger, started=earlier), None, None)[0] is State.VANISHED
    record = replace(job(kind="local").owned_by(stranger), started=earlier)
    assert judge({"state": "running"}, record, None)[0] is State.VANISHED


def test_without_a_start_time_only_a_process_from_before_the_status_is_the_run(
    stranger: psutil.Process,
) -> None:
    assert judge(status_of(stranger), None, None)[0] is State.RUNNING
    assert judge(status_of(stranger, updated=ago(1000)), None, None)[0] is State.VANISHED
    record = replace(job(kind="local").owned_by(stranger), started=None)
    for submitted, state in ((ago(0), State.RUNNING), (ago(1000), State.VANISHED)):
        given = replace(record, submitted=submitted)
        assert judge({"state": "running"}, given, None)[0] is state


def test_of_a_process_on_another_machine_nothing_is_concluded() -> None:
    record = job(kind="local", job_id=None, host="elsewhere", pid=1)
    assert judge({"state": "running"}, record, None)[0] is State.RUNNING


# The queue


def test_each_task_of_an_array_is_an_entry_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "7_0|RUNNING|None|59:00|n1|t1\n7_1|PENDING|JobArrayTaskLimit|1:00:00||t1"
    command(tmp_path / "bin", "squeue", f"printf '{lines}'", monkeypatch)
    entries = squeue.jobs()
    assert {id: entry.state for id, entry in entries.items()} == {
        "7_0": "RUNNING",
        "7_1": "PENDING",
    }
    assert entries["7_1"].waiting
    assert not entries["7_0"].waiting


def test_a_job_that_has_ended_but_is_still_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path / "bin", "squeue", "echo '7_0|CANCELLED|None|0:00|n1|t1'", monkeypatch)
    assert squeue.jobs() == {}


def test_no_answer_is_not_an_empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1"
    command(tmp_path / "bin", "squeue", refusal, monkeypatch)
    with pytest.raises(QueueError, match=r"squeue failed: .*Unable to contact"):
        squeue.jobs()


def test_without_accounting_how_a_job_ended_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(tmp_path / "bin", "sacct", "echo 'storage is disabled' >&2; exit 1", monkeypatch)
    assert squeue.endings(["7_0"]) == {}


# Put together


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    sweep = SweepFolder(tmp_path / "runs" / "s")
    sweep.path.mkdir(parents=True)
    return sweep


def test_an_interrupted_submission_is_found_again_by_its_token(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.give("a", job(job_id=None))
    command(tmp_path / "bin", "squeue", "echo '9|PENDING|None|1:00||t1'", monkeypatch)
    (standing,) = survey(folder, [spec("a")])
    assert standing.state is State.QUEUED


def test_slurm_is_not_asked_where_all_runs_have_their_result(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.give("a", job())
    (folder.run("a") / "status.json").write_text('{"state": "completed", "step": 24}')
    command(tmp_path / "bin", "squeue", "exit 1", monkeypatch)
    (standing,) = survey(folder, [spec("a")])
    assert (standing.state, standing.step) == (State.COMPLETED, 24)


def test_where_slurm_does_not_answer_no_run_is_called_vanished(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.give("a", job())
    command(tmp_path / "bin", "squeue", "exit 1", monkeypatch)
    with pytest.raises(QueueError):
        survey(folder, [spec("a")])


def test_accounting_says_why_a_job_vanished(
    folder: SweepFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.give("a", job())
    command(tmp_path / "bin", "squeue", "true", monkeypatch)
    command(tmp_path / "bin", "sacct", "echo '7_0|NODE_FAIL'", monkeypatch)
    (standing,) = survey(folder, [spec("a")])
    assert standing.detail == "job 7_0 ended as NODE_FAIL"


def test_a_corrupt_status_spoils_its_own_run_alone(folder: SweepFolder) -> None:
    for name, text in (("a", "{"), ("b", '{"state": "completed", "step": 24}')):
        folder.run(name).mkdir()
        (folder.run(name) / "status.json").write_text(text)
    states = [standing.state for standing in survey(folder, [spec("a"), spec("b")])]
    assert states == [State.UNREADABLE, State.COMPLETED]


# What runs and jobs last said


def test_the_last_line_that_speaks_of_an_error_is_preferred(tmp_path: Path) -> None:
    log = tmp_path / "7_0_0_log.err"
    log.write_text("starting\nRuntimeError: out of memory\nsrun: task 0 exited\n")
    folder = SweepFolder(tmp_path)
    assert last_error(folder, job(log=str(log))) == "RuntimeError: out of memory"
    log.write_text("killed\n\n")
    assert last_error(folder, job(log=str(log))) == "killed"
    assert last_error(folder, job(log=str(tmp_path / "none"))) == ""
