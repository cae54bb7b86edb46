"""Runs whose jobs are lost, cancelled, failed or refused, on a real Slurm, and their repair."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
import slurm_sweeps
from harness import Run
from slurm_cluster import SCRIPT, Cluster
from slurm_sweeps import MAXP, Sweep, same, sweep

from train.run.folder import read_status

pytestmark = pytest.mark.slurm

MUP = "debug_mup-no_lr1e-02_seed1"
BOTH = ("maxP", "mup-no")


def test_runs_killed_behind_the_sweeps_back_have_vanished_and_go_on(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, methods=BOTH)
    tiny.do("submit")
    tiny.wait_step(1, MUP)
    with tiny.held(MUP):
        tiny.wait_step(10, MAXP)
        os.kill(read_status(tiny.folder / MAXP)["pid"], signal.SIGKILL)
        idle.run("scancel", tiny.job(MUP))
    idle.wait_no_job()
    assert tiny.said(MAXP) == "running"  # it could not say anything else
    assert tiny.states() == {MAXP: "vanished", MUP: "vanished"}
    assert "status -9" in tiny.do("status")
    assert "0 of 2 runs to submit" in tiny.do("submit")
    assert "2 of 2 runs to submit" in tiny.do("resume")
    tiny.wait_completed(MAXP, MUP)
    assert same(tiny.run(), uninterrupted)


def test_a_cancelled_run_stays_cancelled_until_it_is_resumed(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path)
    tiny.do("submit")
    tiny.wait_step(10)
    with tiny.held():
        assert "1 job" in tiny.do("cancel")
    idle.wait_no_job()
    assert idle.state(tiny.job()) == "CANCELLED"  # one that was queued again would be PENDING
    assert tiny.states() == {MAXP: "cancelled"}
    assert tiny.step() < slurm_sweeps.STEPS
    assert "0 of 1 runs to submit" in tiny.do("submit")
    tiny.do("resume")
    tiny.wait_completed()
    assert same(tiny.run(), uninterrupted)


def test_a_failed_run_says_why_and_is_begun_again_by_retry_alone(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, setup="export MAXP_CACHE=/dev/null/cache")
    tiny.do("submit")
    idle.wait_no_job()
    assert tiny.said() == "failed"
    assert tiny.states() == {MAXP: "failed"}
    assert "/dev/null/cache" in tiny.do("status")
    assert "0 of 1 runs to submit" in tiny.do("resume")
    sweep(idle, tmp_path)  # the cluster file is corrected
    assert "1 of 1 runs to submit" in tiny.do("retry")
    tiny.wait_completed()
    assert same(tiny.run(), uninterrupted)


def test_jobs_that_sbatch_refuses_are_told_in_a_line_and_leave_the_others_alone(
    idle: Cluster, tmp_path: Path
) -> None:
    waiting = sweep(idle, tmp_path, sbatch="hold = true")
    waiting.do("submit")
    refused = sweep(idle, tmp_path, methods=BOTH, partition="nowhere")
    printed = refused.do("submit", code=1)
    (line,) = [line for line in printed.splitlines() if line.startswith("error:")]
    assert "invalid partition specified: nowhere" in line
    assert refused.states() == {MAXP: "queued", MUP: "missing"}
    assert not (refused.folder / MUP).exists()
    assert "1 of 2 runs to submit" in sweep(idle, tmp_path, methods=BOTH).do("submit")


# The controller crashes just before it is asked, just after it has answered, and in between.
CRASHES = {
    "before": '"$restart" & while kill -0 $controller; do sleep 0.1; done; exec "$sbatch" "$@"',
    "between": '"$sbatch" "$@" > /dev/null; "$restart"; echo "sbatch: error: lost" >&2; exit 1',
    "after": 'told=$("$sbatch" "$@"); "$restart"; echo "$told"',
}


@pytest.mark.parametrize(
    "moment",
    ["between", *(pytest.param(x, marks=pytest.mark.exhaustive) for x in ("before", "after"))],
)
def test_a_controller_that_crashes_while_it_is_asked_loses_no_run_and_runs_none_twice(
    moment: str, idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = replace(sweep(idle, tmp_path, methods=BOTH), programs=crashing(idle, tmp_path, moment))
    # No job starts before the crash. A controller that loses its record of a start starts the job
    # again; the node, where it runs, refuses it, and Slurm drains the node for its administrator.
    nodes = ("scontrol", "update", "nodename=n1,n2")
    idle.run(*nodes, "state=drain", "reason=before the crash")
    tiny.start("submit").communicate()
    while "drain" in idle.run("sinfo", "--noheader", "--format=%T"):
        with contextlib.suppress(subprocess.CalledProcessError):  # the controller lost it as well
            idle.run(*nodes, "state=resume")
        time.sleep(1)  # each look is a process
    tiny = replace(tiny, programs=None)
    repair(tiny)
    assert tiny.states() == {MAXP: "completed", MUP: "completed"}
    assert tiny.logs("out").count("Last step checkpoint completed") == 2
    assert same(tiny.run(), uninterrupted)


def crashing(cluster: Cluster, folder: Path, moment: str) -> Path:
    """A folder with an sbatch during which the controller is killed, and started again."""
    programs = folder / "programs"
    programs.mkdir()
    control = f"bash {SCRIPT} restart-controller --dir {cluster.folder}"
    real = cluster.run("which", "sbatch")
    controller = (cluster.folder / "slurmctld.pid").read_text().strip()
    known = f"restart={programs}/restart sbatch={real} controller={controller}"
    for name, text in (
        ("restart", f"{control} > /dev/null 2>&1 < /dev/null"),
        (
            "sbatch",
            f"{known}\n{CRASHES[moment]}",
        ),
    ):
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)
    return programs


def repair(tiny: Sweep) -> None:
    """What somebody does who comes back to a sweep: look, and resume what has vanished."""

    while (states := set(tiny.states().values())) != {"completed"}:
        assert "failed" not in states, tiny.do("status")
        if states & {"missing", "vanished"}:
            tiny.do("resume")
        time.sleep(3)  # each look is a process
