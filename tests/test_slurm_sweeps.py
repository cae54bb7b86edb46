"""Sweeps from submission to table on a real Slurm, on one node per run and on two."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from harness import Run
from slurm_cluster import Cluster
from slurm_sweeps import sweep

pytestmark = pytest.mark.slurm

METHODS = ("maxP", "mup-full", "mup-no")
RUNS = [f"debug_{method}_lr1e-02_seed1" for method in METHODS]


def test_a_sweep_that_two_shells_submit_at_once_runs_each_run_once_and_has_a_table(
    idle: Cluster, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, methods=METHODS, steps=60)
    rivals = [tiny.start("submit") for _ in range(2)]
    told = [process.communicate() for process in rivals]
    assert [process.returncode for process in rivals] == [0, 0], told
    assert sorted(re.findall(r"(\d) of 3 runs to submit", "".join(out for out, _ in told))) == [
        "0",
        "3",
    ]

    tiny.wait_step(5)
    shown = r"running +\d+/60 +\d\.\d+ +[\d,]+ +\d:\d\d:\d\d "
    with tiny.held():
        assert re.search(shown, tiny.do("status"))
    assert "0 of 3 runs to submit" in tiny.do("submit")
    tiny.wait_completed(*RUNS)
    idle.wait_no_job()
    assert tiny.states() == dict.fromkeys(RUNS, "completed")
    assert tiny.logs("out").count("Starting with JobEnvironment(") == 3
    assert tiny.logs("out").count("Last step checkpoint completed") == 3
    for run in RUNS:
        steps = [r["step"] for r in tiny.run(run).record.metrics if "loss" in r]
        assert steps == list(range(1, 61))

    table = tiny.do("table")
    assert all(method in table for method in METHODS)
    assert f"{tiny.run().validation_losses[60]:.3f}" in table
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "tiny.toml", "two_nodes.toml"}


@pytest.mark.parametrize("launcher", ["torchrun", "srun"])
def test_a_job_of_two_nodes_is_the_run_of_one_process(
    launcher: Any, idle: Cluster, uninterrupted: Run, tmp_path: Path
) -> None:
    tiny = sweep(idle, tmp_path, nodes=2, launcher=launcher)
    tiny.do("submit")
    tiny.wait_completed()
    assert "node=1(2)" in tiny.logs("out")  # submitit tells of each task
    seen = tiny.run()
    assert seen.losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert seen.validation_losses == pytest.approx(uninterrupted.validation_losses, rel=1e-5)
