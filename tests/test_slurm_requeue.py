"""Which job in Slurm's queue is a run's, and when a job asks to be queued again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from slurm_cases import command, job, spec

from slurm import job as jobs
from slurm.ledger import SweepFolder
from slurm.states import Standing, State, last_error, survey
from train.run.folder import RunFolder, read_status

OURS, ANOTHER = "0123456789ab", "ba9876543210"


def standing(
    comment: str, job_id: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Standing:
    """Of a run that was given to a job, with job 7_0 of this comment in the queue."""
    script = f"echo '7_0|PENDING|Priority|1:00||{comment}'"
    command(tmp_path / "bin", "squeue", script, monkeypatch)
    command(tmp_path / "bin", "sacct", "exit 1", monkeypatch)
    folder = SweepFolder(tmp_path / "s")
    folder.give("a", job(token=OURS, job_id=job_id))
    return survey(folder, [spec("a")])[0]


def test_a_number_that_was_given_to_another_submission_since_is_not_the_runs_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for comment in (ANOTHER, ""):
        run = standing(comment, "7_0", tmp_path, monkeypatch)
        assert (run.state, run.entry) == (State.VANISHED, None)


@pytest.mark.parametrize("comment", [OURS, "project 12"])
def test_a_job_is_known_by_its_number_where_the_site_changes_comments(
    comment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert standing(comment, "7_0", tmp_path, monkeypatch).state is State.QUEUED


def test_a_job_whose_number_was_lost_stands_for_its_whole_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = standing(OURS, None, tmp_path, monkeypatch)
    assert run.state is State.QUEUED
    assert run.entry is not None
    assert run.entry.job_id == "7"


@pytest.mark.parametrize(
    ("state", "asks"), [("RUNNING", True), ("COMPLETING", False), ("PENDING", False)]
)
def test_a_preempted_job_asks_to_be_queued_again_unless_slurm_has_decided(
    state: str, asks: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_REQUEUE_SECONDS", 0)
    command(tmp_path, "squeue", f"echo '7_0|{state}|None|1:00|n1|{OURS}'", monkeypatch)
    command(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/asked', monkeypatch)
    jobs._requeue_unless_decided("7_0")
    asked = tmp_path / "asked"
    assert (asked.read_text() if asked.exists() else "") == ("requeue 7_0\n" if asks else "")


@pytest.mark.parametrize(
    "lines",
    [
        # a rank that was killed could say nothing
        ["RuntimeError: a: training ended with status -9", "srun: error: n1: task 0: Exited"],
        ["error: --lr", "RuntimeError: a: training ended with status 2", "srun: error: n1"],
        ["slurmstepd-n1: error: *** STEP 1.0 CANCELLED DUE TO TIME LIMIT ***"],
        ["srun: error: n1: task 0: Exited with exit code 1"],
    ],
)
def test_the_last_error_is_what_the_others_follow_from(lines: list[str], tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "\n".join(["a warning", lines[0], "raise RuntimeError(", "raise error", *lines[1:], ""])
    )
    assert last_error(SweepFolder(tmp_path), job(log=str(log))) == lines[0]


@pytest.mark.parametrize(
    ("before", "after"), [("queued", "failed"), ("preempted", "failed"), ("running", "running")]
)
def test_a_run_that_the_trainer_refused_has_failed_unless_another_process_is_in_it(
    before: Any, after: str, tmp_path: Path
) -> None:
    RunFolder(tmp_path).set_status(before)
    jobs.tell_failure(tmp_path, 2)
    assert read_status(tmp_path)["state"] == after
