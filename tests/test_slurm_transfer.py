"""``python -m slurm transfer``: what the base's best lr and constants predict and cost."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run

from slurm import __main__ as cli
from slurm.ledger import SweepFolder
from slurm.sweep import RunSpec, expand, load_sweep

SWEEP = """
name = "s"
scales = ["cpu64", "cpu128", "cpu256"]
methods = ["maxP", "mup-no"]
lrs = [1e-3, 1e-2, 1e-1]
seeds = [1, 2, 3]
[flags]
maxp.base_scale = "cpu64"
[axes]
maxp.lr_multipliers.embedding = [1, 3]
"""
GAMMA = "maxp.lr_multipliers.embedding"


def loss(run: RunSpec) -> float:
    """The base is best at 1e-2 and gamma 3; maxP keeps that lr, mup-no's falls by ten."""
    best = 1e-3 if (run.scale, run.method) == ("cpu128", "mup-no") else 1e-2
    away = abs(math.log10(run.lr / best))
    noise = (0.125, 0.25, 0.625)[run.seed - 1] if away else 0.0  # paired differences
    return 3.0 + run.seed + away * noise + (run.axes[GAMMA] != 3)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    (tmp_path / "s.toml").write_text(SWEEP)
    folder = SweepFolder(tmp_path / "runs" / "s")
    with folder.lock():
        folder.enter("s", expand(load_sweep(tmp_path / "s.toml")))
    return folder


def finish(folder: SweepFolder, chosen: Callable[[RunSpec], bool]) -> None:
    for run in filter(chosen, folder.runs()):
        maxp = {"base_scale": "cpu64", "lr_multipliers": {"embedding": run.axes[GAMMA]}}
        place: dict[str, Any] = {k: getattr(run, k) for k in ("scale", "method", "lr", "seed")}
        write_run(
            folder.path,
            **place,
            steps=run.steps,
            validation=loss(run),
            name=run.name,
            settings={"maxp": maxp},
        )


def transfer(folder: SweepFolder, *more: str) -> int:
    return cli.main(["transfer", str(folder.path), *more])


def read_csv(text: str) -> dict[tuple[str, str], dict[str, str]]:
    return {(r["scale"], r["method"]): r for r in csv.DictReader(io.StringIO(text))}


def test_without_a_finished_base_run_it_ends_with_one_line(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert transfer(folder) == 1
    finish(folder, lambda run: run.scale != "cpu64")
    assert transfer(folder) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    line = f"error: {folder.path}: no finished run at the base scale cpu64: wait for one, or see "
    assert printed.err.splitlines() == [line + "`python -m slurm status`"] * 2


def test_a_base_scale_that_the_sweep_lacks_is_named(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    place: dict[str, Any] = {"scale": "cpu128", "method": "maxP", "name": "r"}
    write_run(folder.path, **place, validation=3.0, settings={"maxp": {"base_scale": "s1"}})
    assert transfer(folder) == 1
    assert capsys.readouterr().err == (
        f"error: {folder.path}: no finished run at the base scale s1: add it to the sweep's "
        "scales\n"
    )


def test_a_finished_base_predicts_the_runs_elsewhere(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, lambda run: run.scale == "cpu64")
    assert transfer(folder) == 0
    assert capsys.readouterr().out.splitlines() == [
        "base cpu64, every method: validation loss 5.0000 ± 1.0000 (n = 3) at lr 1e-2, embedding 3",
        "",
        "scale    method   lr     embedding   runs        loss   best here   regret   95% interval",
        "------   ------   ----   ---------   ---------   ----   ---------   ------   ------------",
        "cpu128   maxP     1e-2   3           3 missing   -      -           -        -",
        "cpu128   mup-no   1e-2   3           3 missing   -      -           -        -",
        "cpu256   maxP     1e-2   3           3 missing   -      -           -        -",
        "cpu256   mup-no   1e-2   3           3 missing   -      -           -        -",
        "",
        f"start missing runs: python -m slurm resume {folder.path}",
    ]


def test_the_regret_is_shown_once_the_runs_are_done(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, lambda run: run.scale == "cpu64" or (run.scale, run.seed) != ("cpu256", 3))
    transfer(folder)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[4:8]]
    # mup-no at cpu128: differences 0.125, 0.25, 0.625
    mean, half = 1 / 3, 4.302653 * math.sqrt(0.0677083333) / math.sqrt(3)
    interval = [f"{mean - half:.4f}", "to", f"{mean + half:.4f},", "n", "=", "3"]
    at = ["5.0000", "at", "lr"]
    done = ["3", "completed"]
    assert lines[0][4:] == [
        *done,
        "5.0000",
        *at,
        "1e-2,",
        "embedding",
        "3",
        "0.0000",
        *(["0.0000", "to", "0.0000,", "n", "=", "3"]),
    ]
    assert lines[1][4:] == [
        *(*done, "5.3333", *at, "1e-3,", "embedding", "3", f"{mean:.4f}", *interval)
    ]
    assert lines[2][4:8] == ["2", "completed,", "1", "missing"]


def test_csv_has_the_same_numbers_with_every_digit(
    folder: SweepFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, lambda run: run.scale != "cpu256")
    transfer(folder, "--format", "csv")
    rows = read_csv(capsys.readouterr().out)
    row = rows["cpu128", "mup-no"]
    assert (row["from_scale"], float(row["lr"]), row[GAMMA]) == ("cpu64", 1e-2, "3")
    assert float(row["regret"]) == pytest.approx(1 / 3, rel=1e-12)
    assert (row["seeds"], row["completed"], row["missing"]) == ("3", "3", "0")
    assert float(row["best_lr"]) == 1e-3
    assert rows["cpu256", "maxP"]["outcome"] == "missing"
    assert rows["cpu256", "maxP"]["missing"] == "3"


def test_json_has_the_base_and_the_names_of_the_predicted_runs(
    folder: SweepFolder, tmp_path: Path
) -> None:
    finish(folder, lambda run: run.scale == "cpu64")
    to = tmp_path / "t.json"
    assert transfer(folder, "--format", "json", "--to", str(to)) == 0
    content = json.loads(to.read_text())
    assert (content["metric"], content["base"]) == ("validation", "cpu64")
    assert {(b["method"], b["lr"], b["axes"][GAMMA]) for b in content["best"]} == {
        ("maxP", 1e-2, 3),
        ("mup-no", 1e-2, 3),
    }
    first = content["carried"][0]
    assert first["runs"] == {
        f"cpu128_maxP_lr1e-02_seed{seed}_embedding3": "missing" for seed in (1, 2, 3)
    }
    assert first["regret"] is None


def test_markdown_is_a_table(folder: SweepFolder, capsys: pytest.CaptureFixture[str]) -> None:
    finish(folder, lambda run: run.scale == "cpu64")
    transfer(folder, "--format", "markdown")
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("| scale  | method |")
    assert lines[3].startswith("| ------ | ------ |")


def test_without_a_base_each_method_carries_from_the_smallest_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SWEEP.split("[axes]")[0].replace('"cpu64", "cpu128", "cpu256"', '"cpu128", "cpu64"')
    text = text.replace('base_scale = "cpu64"', 'base_scale = "none"')
    (tmp_path / "s.toml").write_text(text)
    folder = SweepFolder(tmp_path / "s")
    with folder.lock():
        folder.enter("s", expand(load_sweep(tmp_path / "s.toml")))
    for run in folder.runs():
        best = {"maxP": 1e-2, "mup-no": 1e-1}[run.method]
        place: dict[str, Any] = {k: getattr(run, k) for k in ("scale", "method", "lr", "seed")}
        write_run(folder.path, **place, validation=3.0 + (run.lr != best), name=run.name)
    assert transfer(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        "base cpu64, maxP: validation loss 3.0000 ± 0.0000 (n = 3) at lr 1e-2",
        "base cpu64, mup-no: validation loss 3.0000 ± 0.0000 (n = 3) at lr 1e-1",
    ]
    assert [line.split()[:3] for line in lines[5:]] == [
        ["cpu128", "maxP", "1e-2"],
        ["cpu128", "mup-no", "1e-1"],
    ]


def test_a_carried_lr_that_the_sweep_does_not_have_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SWEEP.split("[axes]")[0]
    (tmp_path / "s.toml").write_text(text)
    folder = SweepFolder(tmp_path / "s")
    with folder.lock():
        runs = expand(load_sweep(tmp_path / "s.toml", ["--scales", "cpu64"]))
        folder.enter("s", runs)
        others = ["--scales", "cpu128", "--lrs", "1e-3", "--seeds", "1", "--methods", "mup-no"]
        folder.enter("s", expand(load_sweep(tmp_path / "s.toml", others)))
    base = {"maxp": {"base_scale": "cpu64"}}
    for run in runs:
        place: dict[str, Any] = {k: getattr(run, k) for k in ("scale", "method", "lr", "seed")}
        write_run(folder.path, **place, validation=abs(run.lr - 1e-2), name=run.name, settings=base)
    assert transfer(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[4].split()[:6] == ["cpu128", "mup-no", "1e-2", "not", "in", "the"]
    assert lines[-1] == (
        "not in the sweep: python -m slurm submit SWEEP.toml --scales cpu128 --methods mup-no "
        "--lrs 0.01"
    )


def test_a_file_that_cannot_be_written_is_named(
    folder: SweepFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(folder, lambda run: run.scale == "cpu64")
    assert transfer(folder, "--to", str(tmp_path / "missing" / "t")) == 1
    assert "missing/t" in capsys.readouterr().err
