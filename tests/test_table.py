"""The loss table, against folders written by hand and numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tyro
from fake_runs import write_run

from train.results.analysis import loss_table
from train.results.collect import collect
from train.results.formats import render
from train.results.names import Format, Metric
from train.results.report import main as report
from train.table import main


def cell(runs: pd.DataFrame, metric: Metric = "validation") -> dict[str, Any]:
    (row,) = loss_table(runs, metric).to_dict("records")
    return row


# collect


def test_collect_finds_runs_at_any_depth_with_their_configuration(tmp_path: Path) -> None:
    write_run(tmp_path / "a" / "b", lr=0.003, seed=7, validation=3.5)
    write_run(tmp_path, scale="s2", method="sp", state="failed")
    rows = collect(tmp_path).set_index("scale")
    assert rows.loc["s1", ["method", "lr", "seed", "steps", "state"]].tolist() == [
        "maxP",
        0.003,
        7,
        400,
        "completed",
    ]
    assert rows.loc["s1", "validation"] == 3.5
    assert rows.loc["s2", "description"] == "failed at step 400"


def test_collect_does_not_search_a_run_for_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.5)
    write_run(folder / "checkpoint", validation=9.0)
    assert collect(tmp_path)["validation"].tolist() == [3.5]


def test_collect_of_a_folder_without_runs_is_empty(tmp_path: Path) -> None:
    assert collect(tmp_path).empty


@pytest.mark.parametrize("text", ["{", '{"model_type": "llama"}', '{"config": {"lr": 1}}'])
def test_collect_says_why_a_folder_is_no_readable_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    (row,) = collect(tmp_path).to_dict("records")
    assert row["state"] == "unreadable"
    assert str(tmp_path / "config.json") in row["description"]


# loss_table


def test_a_cell_is_the_mean_and_sample_standard_deviation_over_seeds(tmp_path: Path) -> None:
    for seed, loss in enumerate([1.0, 2.0, 6.0]):  # mean 3, variance (4 + 1 + 9) / 2
        write_run(tmp_path, seed=seed, validation=loss)
    values = cell(collect(tmp_path))
    assert values["mean"] == pytest.approx(3.0)
    assert values["std"] == pytest.approx(math.sqrt(7.0))
    assert (values["finished"], values["diverged"], values["runs"]) == (3, 0, 3)


def test_one_seed_has_no_standard_deviation(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0)
    assert math.isnan(cell(collect(tmp_path))["std"])


def test_diverged_runs_are_counted_beside_the_mean_of_the_others(tmp_path: Path) -> None:
    write_run(tmp_path, seed=0, validation=3.0)
    write_run(tmp_path, seed=1, state="diverged")
    values = cell(collect(tmp_path))
    assert (values["mean"], values["finished"], values["diverged"], values["runs"]) == (
        3.0,
        1,
        1,
        2,
    )


def test_the_best_lr_is_that_of_the_lowest_mean_of_each_method_and_scale(tmp_path: Path) -> None:
    losses = {
        ("s1", "maxP"): {0.001: 3.2, 0.01: 3.0, 0.1: 3.1},
        ("s1", "sp"): {0.001: 3.4, 0.01: 3.6, 0.1: 3.5},
        ("s2", "maxP"): {0.001: 2.9, 0.01: 2.8, 0.1: 2.7},
    }
    for (scale, method), by_lr in losses.items():
        for lr, loss in by_lr.items():
            write_run(tmp_path, scale=scale, method=method, lr=lr, validation=loss)
    cells = loss_table(collect(tmp_path), "validation")
    best = cells[cells["best"]].set_index(["scale", "method"])["lr"].to_dict()
    assert best == {("s1", "maxP"): 0.01, ("s1", "sp"): 0.001, ("s2", "maxP"): 0.1}


def test_an_lr_at_which_a_seed_diverged_is_never_best(tmp_path: Path) -> None:
    write_run(tmp_path, lr=0.01, validation=3.5)
    write_run(tmp_path, lr=0.1, seed=0, validation=3.0)
    write_run(tmp_path, lr=0.1, seed=1, state="diverged")
    runs = collect(tmp_path)
    cells = loss_table(runs, "validation")
    assert cells.loc[cells["best"], "lr"].tolist() == [0.01]
    assert "best maxP   3.5000 at lr 1e-2 (lower only where a seed diverged)" in render(
        runs, "validation"
    )


# render


def sweep(root: Path) -> None:
    """Two lrs, three methods; sp diverges, mup-no is half missing."""
    for seed, loss in enumerate([3.0, 3.5]):  # mean 3.25, std 0.25 * sqrt(2) = 0.3536
        write_run(root, method="maxP", lr=0.003, seed=seed, validation=loss)
    write_run(root, method="maxP", lr=0.01, validation=12.00004)
    write_run(root, method="mup-no", lr=0.0003, validation=4.0)
    write_run(root, method="mup-no", lr=0.003, state="running")
    write_run(root, method="sp", lr=0.003, seed=0, validation=5.0)
    write_run(root, method="sp", lr=0.003, seed=1, state="diverged")
    write_run(root, method="sp", lr=0.01, state="diverged")


def test_the_text_table_is_aligned_and_says_everything(tmp_path: Path) -> None:
    sweep(tmp_path)
    assert render(collect(tmp_path), "validation").splitlines() == [
        "s1: validation loss at the end (* best lr, ± standard deviation over seeds, n = 1 to 2)",
        "",
        "lr     maxP                 mup-no            sp",
        "----   ------------------   ---------------   ---------------------------",
        "3e-4   -                     4.0000 (n=1) *   -",
        "3e-3    3.2500 ± 0.3536 *   -                  5.0000 (n=1, diverged 1/2)",
        "1e-2   12.0000 (n=1)        -                 diverged 1/1",
        "",
        "best maxP     3.2500 at lr 3e-3",
        "best mup-no   4.0000 at lr 3e-4",
        "best sp       none (lower only where a seed diverged)",
        # maxP: 0.05 of the 8.75 nats up to the next lr, half a decade away: 0.0030 decades.
        "basin maxP     within 0.05 over >=0.00 decades (<=3e-3 to 3e-3)",
        "basin mup-no   within 0.05 over >=0.00 decades (<=3e-4 to >=3e-4)",
        "maxP - mup-no: -0.7500, too few seeds to tell it from noise (n = 1 and 2)",
        "not finished: 1 running",
    ]


def test_the_markdown_table_has_the_same_cells(tmp_path: Path) -> None:
    sweep(tmp_path)
    assert render(collect(tmp_path), "validation", "markdown").splitlines()[2:9] == [
        "| lr   | maxP               | mup-no          | sp                          |",
        "| ---- | ------------------ | --------------- | --------------------------- |",
        "| 3e-4 | -                  |  4.0000 (n=1) * | -                           |",
        "| 3e-3 |  3.2500 ± 0.3536 * | -               |  5.0000 (n=1, diverged 1/2) |",
        "| 1e-2 | 12.0000 (n=1)      | -               | diverged 1/1                |",
        "",
        "- best maxP     3.2500 at lr 3e-3",
    ]


def test_columns_are_in_the_fixed_order_and_unknown_methods_follow(tmp_path: Path) -> None:
    for method in ("zeta", "sp", "maxP-frozen", "mup-no", "alpha", "mup-full", "maxP"):
        write_run(tmp_path, method=method, validation=3.0)
    header = render(collect(tmp_path), "validation").splitlines()[2]
    assert header.split() == [
        *("lr", "maxP", "mup-full", "mup-no", "maxP-frozen", "sp", "alpha", "zeta")
    ]


def test_scales_come_in_natural_order(tmp_path: Path) -> None:
    for scale in ("w1024", "w256", "debug"):
        write_run(tmp_path, scale=scale, validation=3.0)
    lines = render(collect(tmp_path), "validation").splitlines()
    titles = [line.split(":")[0] for line in lines if "validation loss" in line]
    assert titles == ["debug", "w256", "w1024"]


def test_runs_that_have_not_finished_are_counted_by_state(tmp_path: Path) -> None:
    for seed, state in enumerate(["running", "failed", "failed", None]):
        write_run(tmp_path, seed=seed, state=state)
    lines = render(collect(tmp_path), "validation").splitlines()
    assert lines[4] == "1e-2   -"
    assert lines[-1] == "not finished: 1 running, 2 failed, 1 no status"


@pytest.mark.parametrize("format", ["csv", "latex"])
def test_formats_without_a_place_for_notes_have_them_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: Format
) -> None:
    runs = tmp_path / "runs"
    for seed, steps in enumerate((100, 200)):
        write_run(runs, scale="debug", seed=seed, steps=steps, validation=3.0)
    write_run(runs, scale="s1", state="failed")
    unreadable = runs / "broken"
    unreadable.mkdir()
    (unreadable / "config.json").write_text("{")
    for to in (None, tmp_path / "table"):
        main(runs, format=format, to=to)
        printed = capsys.readouterr()
        assert printed.err.splitlines()[:2] == [
            "note: debug: runs of different lengths: 100, 200 steps",
            "note: s1: not finished: 1 failed",
        ]
        assert printed.err.splitlines()[2].startswith("note: unreadable folders: 1 ")
        assert "note" not in printed.out


def test_runs_of_different_versions_are_noted(tmp_path: Path) -> None:
    """Seeds that were added after an update may have been made with other numerics."""
    for seed, commit, torch in ((1, "0123456789", "2.13.0"), (2, "0123456789+dirty", "2.15.0")):
        made_with = {"git_commit": commit, "versions": {"torch": torch, "python": "3.11.7"}}
        write_run(tmp_path, seed=seed, validation=3.0, settings=made_with)
        if seed == 1:
            write_run(tmp_path, seed=3, validation=3.0, settings=made_with | {"git_commit": None})
            write_run(tmp_path, seed=4, validation=3.0)  # of an early version
            assert "versions" not in render(collect(tmp_path), "validation")
    note = "runs of different versions: commit 0123456 and 0123456+dirty, torch 2.13.0 and 2.15.0"
    assert render(collect(tmp_path), "validation").splitlines()[-1] == note


def test_a_completed_run_without_the_metric_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path, steps=1, records=[{"step": 1, "loss": 3.0}])
    runs = collect(tmp_path)
    note = f"completed without a validation loss: 1 ({folder})"
    assert render(runs, "validation").splitlines()[-1] == note
    assert "without a train loss" not in render(runs, "train")


def test_runs_that_are_not_seeds_of_one_experiment_are_pointed_out(tmp_path: Path) -> None:
    paths = [
        write_run(tmp_path, steps=steps, validation=3.0, name=str(steps)) for steps in (100, 200)
    ]
    assert render(collect(tmp_path), "validation").splitlines()[-2:] == [
        f"several runs with the same seed, all in the mean: 2 ({paths[0]}; {paths[1]})",
        "runs of different lengths: 100, 200 steps",
    ]


def test_skipped_lines_are_counted_below_the_table(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.0)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("nothing\nat all\n")
    note = f"corrupt lines of metrics skipped: 2, in 1 ({folder})"
    assert render(collect(tmp_path), "validation").splitlines()[-1] == note


def test_unreadable_folders_are_counted_and_the_first_named(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0)
    for number in range(5):
        (tmp_path / f"x{number}").mkdir()
        (tmp_path / f"x{number}" / "config.json").write_text("{")
    last = render(collect(tmp_path), "validation").splitlines()[-1]
    assert last.startswith("unreadable folders: 5 (")
    assert last.count("is corrupt") == 3
    assert last.endswith("; ...)")


@pytest.mark.parametrize(
    ("lr", "text"), [(0.0003, "3e-4"), (0.1, "1e-1"), (1, "1e0"), (0.0125, "1.25e-2"), (30, "3e1")]
)
def test_an_lr_is_written_with_its_power_of_ten(tmp_path: Path, lr: float, text: str) -> None:
    write_run(tmp_path, lr=lr, validation=3.0)
    assert render(collect(tmp_path), "validation").splitlines()[4].split()[0] == text


# the command


def test_the_command_prints_the_chosen_scale_and_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for scale in ("s1", "s2"):
        write_run(tmp_path, scale=scale, validation=3.0, records=[{"step": 1, "loss": 2.5}])
    main(tmp_path, metric="train", scale="s2")
    printed = capsys.readouterr().out
    assert printed.startswith(
        "s2: training loss, mean over the last 10% of the steps (* best lr, one seed)\n"
    )
    assert "2.5000 *" in printed
    assert "s1" not in printed


def test_the_command_without_runs_says_so_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        main(tmp_path)
    assert str(caught.value).startswith(f"RUNS_DIR {tmp_path} holds no runs: pass a folder")
    assert "\n" not in str(caught.value)


def test_the_command_names_the_scales_there_are(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0)
    with pytest.raises(SystemExit, match=r"--scale s9: .* has only s1"):
        main(tmp_path, scale="s9")


def test_the_command_refuses_a_path_that_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"RUNS_DIR .*missing is not a folder"):
        main(tmp_path / "missing")


@pytest.mark.parametrize("command", [main, report])
def test_help_gives_an_example_and_no_defaults_that_say_nothing(
    command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        tyro.cli(command, args=["--help"])
    text = capsys.readouterr().out
    assert "For example: python -m train." in text
    assert "None" not in text
