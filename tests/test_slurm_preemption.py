"""Jobs that Slurm stops, on a real one: they go on, and end as the uninterrupted run does."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Run
from slurm_cluster import Cluster
from slurm_sweeps import MAXP, same, sweep
from waiting import wait_until

pytestmark = pytest.mark.slurm


def test_a_job_signalled_by_scancel_saves_and_is_queued_again(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path)
    tiny.do("submit")
    for target in (10, 25):  # as often as the cluster likes
        tiny.wait_step(target)
        with tiny.held():
            idle.run("scancel", "--signal=USR2", tiny.job())
        tiny.wait_said("preempted")
        tiny.wait_said("running")
    tiny.wait_completed()
    assert tiny.restarts() == 2
    assert tiny.logs("out").count("preempted by SIGUSR2 at step") == 2
    assert same(tiny.run(), uninterrupted)


def test_a_job_of_two_nodes_is_queued_again_after_both_have_saved(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, nodes=2)
    tiny.do("submit")
    tiny.wait_step(10)
    with tiny.held():
        idle.run("scancel", "--signal=USR2", tiny.job())
    tiny.wait_said("preempted")
    stopped = tiny.run().record.status["step"]
    assert (tiny.folder / MAXP / "checkpoint" / f"step-{stopped}" / ".metadata").exists()
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert tiny.run().losses == pytest.approx(uninterrupted.losses, rel=1e-5)


def test_a_requeued_job_goes_on(idle: Cluster, uninterrupted: Run, tmp_path: Path) -> None:
    tiny = sweep(idle, tmp_path)
    tiny.do("submit")
    tiny.wait_step(10)
    with tiny.held():
        idle.run("scontrol", "requeue", tiny.job())
    tiny.wait_said("preempted")
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert same(tiny.run(), uninterrupted)


def test_ranks_that_are_told_to_end_past_slurm_are_queued_again(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path)
    tiny.do("submit")
    tiny.wait_step(10)
    with tiny.held():
        idle.run("scancel", "--signal=TERM", tiny.job())
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert same(tiny.run(), uninterrupted)


def test_a_job_of_a_partition_that_comes_first_displaces_it_for_a_while(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, sbatch="exclusive = true")
    tiny.do("submit")
    tiny.wait_step(10)
    tiny.stop()
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\n")
    other = idle.sbatch(urgent, "--partition=urgent", "--nodes=2", "--exclusive")
    idle.wait_state(other, "COMPLETED")
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert "preempted by SIGUSR2 at step" in tiny.logs("out")
    assert same(tiny.run(), uninterrupted)


def test_a_job_goes_on_after_its_time_limit(
    idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, lead=180)
    tiny.do("submit")
    tiny.wait_step(10)
    # Two to three minutes before the limit. Slurm looks at it every 30 s: it signals when it next
    # looks, and not after the limit. The trainer stays where it is until then.
    tiny.stop()
    minutes = 3 + tiny.minutes()
    idle.run("scontrol", "update", f"JobId={tiny.job()}", f"TimeLimit={minutes}")
    # Before the trainer has saved: Slurm refuses to change a job that is completing.
    wait_until("the signal", lambda: "Caught signal SIGUSR2" in tiny.logs(), tiny.over)
    idle.run("scontrol", "update", f"JobId={tiny.job()}", "TimeLimit=60")
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert "preempted by SIGUSR2 at step" in tiny.logs("out")
    assert same(tiny.run(), uninterrupted)


@pytest.mark.parametrize("nodes", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_a_job_that_loses_a_node_goes_on_when_there_is_one(
    nodes: int, idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    only = 'nodelist = "n2"' if nodes == 1 else ""
    tiny = sweep(idle, tmp_path, nodes=nodes, sbatch=only)
    tiny.do("submit")
    tiny.wait_step(10)
    with tiny.held():
        idle.control("kill-node", "n2")
    try:
        idle.wait_state(tiny.job(), "PENDING")
        assert tiny.states() == {MAXP: "queued"}
    finally:
        idle.control("start-node", "n2")
    tiny.wait_completed()
    assert tiny.restarts() == 1
    assert tiny.run().losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert nodes == 2 or same(tiny.run(), uninterrupted)
