"""A sweep of image classifiers from submission to table on a real Slurm."""

from __future__ import annotations

from pathlib import Path

import pytest
from slurm_cluster import Cluster
from slurm_sweeps import sweep

pytestmark = pytest.mark.slurm

STEPS = 6
BASE = "vit-debug-base_mup-full_lr1e-02_seed1"
RUNS = (BASE, *(f"vit-debug_{method}_lr1e-02_seed1" for method in ("maxP", "mup-full")))
SWEEP = f"""
scales = ["vit-debug-base", "vit-debug"]
methods = ["maxP", "mup-full"]
lrs = [1e-2]
seeds = [1]
steps = {STEPS}

[resources]
time = "00:10:00"

[flags]
training.global_batch_size = 32
training.local_batch_size = 32
maxp.measure_from = 1
maxp.solve_interval = 2
"""


def test_a_sweep_of_images_has_a_table_with_accuracy(idle: Cluster, tmp_path: Path) -> None:
    tiny = sweep(idle, tmp_path)
    tiny.file.write_text(SWEEP)
    assert "3 of 3 runs to submit" in tiny.do("submit")
    tiny.wait_completed(*RUNS)
    idle.wait_no_job()
    assert tiny.states() == dict.fromkeys(RUNS, "completed")
    table = tiny.do("table")
    for name in RUNS:
        run = tiny.run(name)
        assert [r["images"] for r in run.steps.values()] == [32 * n for n in range(1, STEPS + 1)]
        (measured,) = [
            r for r in run.record.metrics if r["step"] == STEPS and "validation_loss" in r
        ]
        shown = f"{measured['validation_loss']:.4f} {measured['validation_accuracy']:.1%}"
        assert shown in table
    assert "vit-debug-base -> vit-debug" in table
