"""scripts/local_slurm.sh: a Slurm that behaves as a cluster's, and leaves nothing behind."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from slurm_cluster import (
    MISSING,
    SKIP_REASON,
    STARTING,
    Cluster,
    local_slurm,
    running_cluster,
)
from waiting import wait_until

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=SKIP_REASON),
]

# Writes a line for its start and for each signal, and runs on until it is killed.
RECORDER = f"""{sys.executable} -c '
import os, signal, sys, time
def say(*words):
    with open(sys.argv[1], "a") as log:
        print(*words, file=log)
signal.signal(signal.SIGUSR2, lambda number, frame: say("USR2"))
say("start", os.environ["SLURM_JOB_ID"], os.environ.get("SLURM_RESTART_COUNT", 0))
while True:
    time.sleep(0.05)
' """


def batch(folder: Path, body: str) -> Path:
    script = folder / "job.sh"
    script.write_text(f"#!/bin/bash\n{body}\n")
    return script


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def node_states(cluster: Cluster) -> list[str]:
    output = cluster.run("sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
    return output.splitlines()


def test_two_nodes_are_idle(idle: Cluster) -> None:
    wait_until("idle nodes", lambda: node_states(idle) == ["n1 idle", "n2 idle"])


def test_srun_runs_a_task_on_each_node(idle: Cluster) -> None:
    command = ["srun", "--nodes=2", "--ntasks=2", "printenv", "SLURMD_NODENAME"]
    assert sorted(idle.run(*command).split()) == ["n1", "n2"]


def test_a_job_and_its_tasks_see_the_gpus_it_asked_for(idle: Cluster, tmp_path: Path) -> None:
    said = f"printenv CUDA_VISIBLE_DEVICES SLURM_JOB_GPUS >> {tmp_path}/said"
    job = idle.sbatch(batch(tmp_path, f"{said}\nsrun bash -c '{said}'"), "--gpus-per-node=2")
    idle.wait_state(job, "COMPLETED")
    assert lines(tmp_path / "said") == ["0,1"] * 4


def test_each_task_of_an_array_runs_once(idle: Cluster, tmp_path: Path) -> None:
    script = batch(tmp_path, f"echo $SLURM_ARRAY_TASK_ID >> {tmp_path}/ran")
    job = idle.sbatch(script, "--array=0-1")
    wait_until("array", lambda: idle.state(job).split() == ["COMPLETED"] * 2)
    assert sorted(lines(tmp_path / "ran")) == ["0", "1"]


def test_scancel_signal_reaches_the_tasks_and_not_the_batch_shell(
    idle: Cluster, tmp_path: Path
) -> None:
    task, shell = tmp_path / "task", tmp_path / "shell"
    body = f"trap 'echo USR2 >> {shell}' USR2\nsrun {RECORDER} {task} &\nwait; wait"
    job = idle.sbatch(batch(tmp_path, body))
    wait_until("the task", lambda: bool(lines(task)))
    idle.run("scancel", "--signal=USR2", job)
    wait_until("the task's signal", lambda: "USR2" in lines(task))
    assert not lines(shell)
    idle.run("scancel", "--batch", "--signal=USR2", job)
    wait_until("the shell's signal", lambda: lines(shell) == ["USR2"])
    assert lines(task).count("USR2") == 1


def test_scancel_full_reaches_the_children_of_the_batch_shell(
    idle: Cluster, tmp_path: Path
) -> None:
    child = tmp_path / "child"
    job = idle.sbatch(batch(tmp_path, f"trap : USR2\n{RECORDER} {child} &\nwait; wait"))
    wait_until("the child", lambda: bool(lines(child)))
    idle.run("scancel", "--full", "--signal=USR2", job)
    wait_until("the child's signal", lambda: "USR2" in lines(child))


def test_a_requeued_job_keeps_its_id(idle: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = idle.sbatch(batch(tmp_path, f"srun {RECORDER} {log}"))
    wait_until("the first start", lambda: len(lines(log)) == 1)
    idle.run("scontrol", "requeue", job)
    wait_until("the second start", lambda: len(lines(log)) == 2)
    assert lines(log) == [f"start {job} 0", f"start {job} 1"]


def test_an_urgent_job_preempts_with_the_signal_that_was_asked_for(
    idle: Cluster, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    main = batch(tmp_path, f"srun {RECORDER} {log}")
    job = idle.sbatch(main, "--nodes=2", "--exclusive", "--time=10", "--signal=USR2@60")
    wait_until("the first start", lambda: bool(lines(log)))
    urgent = tmp_path / "urgent.sh"
    urgent.write_text("#!/bin/bash\n")
    other = idle.sbatch(urgent, "--partition=urgent", "--nodes=2", "--exclusive")
    wait_until("the warning", lambda: "USR2" in lines(log))
    idle.wait_state(other, "COMPLETED")
    wait_until("the second start", lambda: f"start {job} 1" in lines(log))


def test_a_job_of_a_killed_node_is_requeued(idle: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    job = idle.sbatch(batch(tmp_path, f"srun {RECORDER} {log}"), "--nodelist=n2")
    wait_until("the first start", lambda: len(lines(log)) == 1)
    idle.control("kill-node", "n2")
    wait_until("the node down", lambda: "n2 down" in node_states(idle)[1])
    assert idle.state(job) == "PENDING"
    idle.control("start-node", "n2")
    wait_until("the second start", lambda: f"start {job} 1" in lines(log))


def test_a_node_that_is_back_gets_no_job_before_it_was_told_what_it_missed(
    idle: Cluster, tmp_path: Path
) -> None:
    # A step fails on one node, and slurmctld cannot tell the dead node to end it there. The job is
    # queued again, and the step of its second start has the same name.
    fails, up = tmp_path / "fails", tmp_path / "up"
    task = (
        f'touch {up}$SLURM_PROCID; if [ "$SLURM_PROCID$SLURM_RESTART_COUNT" = 0 ]; then '
        f"until [ -e {fails} ]; do sleep 0.1; done; exit 1; fi; sleep infinity"
    )
    script = batch(tmp_path, f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(task)}")
    job = idle.sbatch(script, "--nodes=2", "--ntasks=2", "--requeue")
    wait_until("both tasks", lambda: all(Path(f"{up}{n}").exists() for n in (0, 1)))
    idle.control("kill-node", "n2")
    fails.touch()
    idle.wait_state(job, "PENDING")
    idle.control("start-node", "n2")
    assert re.search(r"^Agent queue size: +0$", idle.run("sdiag"), re.MULTILINE)
    idle.wait_state(job, "RUNNING")


def test_a_restarted_controller_keeps_queue_and_running_jobs(idle: Cluster, tmp_path: Path) -> None:
    log = tmp_path / "log"
    running = idle.sbatch(batch(tmp_path, f"srun {RECORDER} {log}"))
    wait_until("the start", lambda: bool(lines(log)))
    held = idle.sbatch(batch(tmp_path, "true"), "--hold", "--job-name=held-one")
    idle.wait_saved("held-one")
    idle.control("restart-controller")
    assert [idle.state(running), idle.state(held)] == ["RUNNING", "PENDING"]
    assert lines(log) == [f"start {running} 0"]


def test_starting_twice_says_that_it_runs(idle: Cluster) -> None:
    again = local_slurm("start", folder=idle.folder)
    assert again.returncode == 0
    assert "already running" in again.stderr
    assert again.stdout == f"export SLURM_CONF={idle.folder}/slurm.conf\n"


def test_it_does_not_start_beside_a_foreign_controller(tmp_path: Path) -> None:
    folder = tmp_path.parent / "new"  # tmp_path itself is too long for Slurm's sockets
    foreign = tmp_path / "slurmctld"
    shutil.copy(shutil.which("sleep") or "", foreign)
    with STARTING:
        process = subprocess.Popen([foreign, "infinity"])
        try:
            refused = local_slurm("start", folder=folder)
            assert refused.returncode == 1
            assert f"process {process.pid} is a slurmctld that this script did not start" in (
                refused.stderr
            )
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()


def test_it_does_not_write_into_a_folder_that_holds_other_files() -> None:
    # Not tmp_path, which can be too long for Slurm's sockets.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "thesis.tex").touch()
        refused = local_slurm("start", folder=folder)
        assert refused.returncode == 1
        assert "holds other files" in refused.stderr
        assert [path.name for path in folder.iterdir()] == ["thesis.tex"]


def test_stop_leaves_no_process_and_start_after_a_crash_works(tmp_path: Path) -> None:
    with running_cluster(tmp_path / "slurm-log") as crashed:
        left = f"setsid sleep 600 &\nsrun {RECORDER} {tmp_path}/log"
        crashed.sbatch(batch(tmp_path, left))
        wait_until("the start", lambda: bool(lines(tmp_path / "log")))
        for daemon in ("slurmctld", "n1", "n2", "munged"):
            pid = (crashed.folder / f"{daemon}.pid").read_text().strip()
            subprocess.run(["kill", "-KILL", pid], check=True)
        assert local_slurm("start", folder=crashed.folder).returncode == 0
        assert len(crashed.processes()) >= 4
        assert local_slurm("stop", folder=crashed.folder).returncode == 0
        wait_until("no process", lambda: not crashed.processes())
        assert local_slurm("start", folder=crashed.folder).returncode == 0
    assert not crashed.processes()
