"""Accuracy and counts of images in tables, reports, summaries and estimates."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import write_run
from test_sweep import GPUS

from slurm.base import methods_to_run
from slurm.estimate import estimate
from slurm.sweep import expand, load_sweep
from train.model.image_costs import training_flops
from train.model.image_scales import IMAGE_SCALES
from train.model.scales import base_of, compute_steps
from train.results.collect import collect
from train.results.details import details
from train.results.formats import render
from train.results.grids import Table, run_grid
from train.run import tail

ROOT = Path(__file__).parents[1]


def image_run(root: Path, seed: int, accuracy: float) -> None:
    records = [
        {"step": 399, "loss": 0.5, "images": 25536, "images_per_second": 900.0},
        {"step": 400, "validation_loss": 0.4, "validation_accuracy": accuracy},
    ]
    write_run(root, scale="vit-s", seed=seed, records=records)


def grid_of(runs: pd.DataFrame) -> Table:
    return run_grid(runs, details(runs), [""] * len(runs))


def test_a_table_shows_accuracy_beside_the_loss(tmp_path: Path) -> None:
    image_run(tmp_path, 1, 0.90)
    image_run(tmp_path, 2, 0.92)
    runs = collect(tmp_path)
    assert "0.4000 ± 0.0000 91.0% *" in render(runs, "validation", "text")
    assert r"91.0\%" in render(runs, "validation", "latex")
    assert "%" not in render(runs, "train", "text").partition("\n\n")[2].partition("\n\n")[0]
    head, row = render(runs, "validation", "csv").splitlines()
    assert float(dict(zip(head.split(","), row.split(","), strict=True))["accuracy"]) == 0.91


def test_runs_on_text_have_no_accuracy_column(tmp_path: Path) -> None:
    write_run(tmp_path, validation=2.0)
    runs = collect(tmp_path)
    assert "accuracy" not in render(runs, "validation", "csv")
    assert "accuracy" not in grid_of(runs).heads
    assert "tokens/s" in grid_of(runs).heads


def test_a_report_lists_accuracy_and_images(tmp_path: Path) -> None:
    image_run(tmp_path, 1, 0.9)
    grid = grid_of(collect(tmp_path))
    shown = {head: cell.text for head, cell in zip(grid.heads, grid.rows[0], strict=True)}
    assert (shown["accuracy"], shown["images"], shown["images/s"]) == ("0.9000", "25,536", "900")


def test_a_run_that_goes_on_shows_its_images(tmp_path: Path) -> None:
    image_run(tmp_path, 1, 0.9)
    (file,) = tmp_path.glob("*/metrics.jsonl")
    now = tail.latest(file)
    assert (now.tokens, now.tokens_per_second) == (25536, 900.0)


@pytest.mark.parametrize(
    ("name", "jobs"),
    [("vit-s", 81), ("digits_vit", 135), ("digits_mlp", 135), ("vision_debug", 24)],
)
def test_the_sweeps_of_images_have_the_jobs_that_they_say(name: str, jobs: int) -> None:
    sweep = load_sweep(ROOT / f"configs/sweeps/{name}.toml")
    runs = expand(sweep)
    assert len(runs) == jobs
    assert all(run.steps == compute_steps(IMAGE_SCALES[run.scale]) for run in runs)


def test_a_sweep_runs_one_method_at_a_base_of_images() -> None:
    assert methods_to_run("vit-cpu32", ("sp", "maxP"), {}, base_of) == ("sp",)
    assert methods_to_run("vit-cpu64", ("sp", "maxP"), {}, base_of) == ("sp", "maxP")


def test_time_follows_from_the_flops_of_images() -> None:
    sweep = load_sweep(ROOT / "configs/sweeps/vit-s.toml", ["--methods", "mup-no"])
    [only] = estimate(sweep, expand(sweep), GPUS, {})
    size = IMAGE_SCALES["vit-s"]
    flops = size.steps * size.global_batch_size * training_flops(size)
    assert only.hours == pytest.approx(flops / (1e15 * 0.5) / 3600)
    [measured] = estimate(sweep, expand(sweep), GPUS, {"vit-s": 1000.0})
    assert measured.hours == pytest.approx(size.steps * size.global_batch_size / 1000 / 3600)


def test_the_best_lr_is_carried_within_a_ladder_alone(tmp_path: Path) -> None:
    for scale, base, loss in (("mlp-debug", "mlp-debug-base", 0.1), ("vit-debug", "x", 0.2)):
        settings = {"maxp": {"base_scale": base}}
        write_run(tmp_path, scale=scale, validation=loss, settings=settings)
    assert "->" not in render(collect(tmp_path), "validation", "text")
    settings = {"maxp": {"base_scale": "x"}}
    write_run(tmp_path, scale="vit-z", validation=0.3, settings=settings)
    assert "vit-debug -> vit-z" in render(collect(tmp_path), "validation", "text")


def test_the_debug_script_of_images_submits_and_shows_its_sweep(tmp_path: Path) -> None:
    (tmp_path / "env.sh").write_text(f"PATH={tmp_path}:$PATH\n")
    (tmp_path / "python").write_text('#!/bin/sh\nshift 2\necho "$@"\n')
    (tmp_path / "python").chmod(0o755)
    for name in ("run_debug.sh", "run_vision_debug.sh"):
        (tmp_path / name).write_text((ROOT / "scripts" / name).read_text())
    command = ["bash", str(tmp_path / "run_vision_debug.sh"), "--steps", "20"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    sweep = "configs/sweeps/vision_debug.toml"
    assert printed.splitlines() == [f"submit {sweep} --steps 20", f"table {sweep}"]
