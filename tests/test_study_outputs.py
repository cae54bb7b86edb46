"""The study's command, its folder, and that the committed numbers can be measured again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.study import __main__ as command
from scripts.study import numbers, single_pass, sweep, training
from scripts.study.files import read_rows, write_rows
from scripts.study.plan import QUICK, SinglePass, Training
from scripts.study.summary import slopes, variations

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "study"
SUMMARY = json.loads((COMMITTED / "summary.json").read_text())
SMALL = SinglePass(widths=(128, 256), depths=(2, 4), seeds=2, inputs=8, outputs=3)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return single_pass.run(SMALL, workers=0)


def curve(method: str, seed: int, width: int, best: float) -> list[dict[str, object]]:
    about = {"method": method, "width": width, "seed": seed}
    return [{**about, "log2_lr": k, "loss": 2.0 ** ((k - best) ** 2)} for k in range(-12, 0)]


def test_rows_survive_the_folder_to_four_digits(rows: pd.DataFrame, tmp_path: Path) -> None:
    write_rows(tmp_path, "single", rows)
    read = read_rows(tmp_path, "single")
    keys = ["method", "optimizer", "width", "depth", "seed", "layer"]
    both = rows.merge(read, on=keys, suffixes=("", "_read"))
    assert len(both) == len(rows) == len(read)
    for column in rows.columns.difference(keys):
        np.testing.assert_allclose(both[column], both[f"{column}_read"], rtol=6e-4)


def test_the_number_of_workers_does_not_change_the_rows(tmp_path: Path) -> None:
    plan = SinglePass(widths=(64, 128), depths=(2,), seeds=2, inputs=8, outputs=3)
    written = []
    for workers in (0, 2):
        write_rows(tmp_path, "single", single_pass.run(plan, workers))
        written.append((tmp_path / "single.csv").read_text())
    assert written[0] == written[1]


def test_slopes_are_fitted_for_every_layer_and_near_what_is_derived(rows: pd.DataFrame) -> None:
    table = slopes(rows, SMALL)
    assert len(table) == 3 * 2 * (2 + 4) * 10
    # maxP's alignments, of two seeds, are not what they are on average.
    chosen = (table.optimizer == "adam") & (table.kind == "hidden") & (table.method != "maxP")
    adam = table[chosen]
    assert adam[adam.quantity.isin(["frobenius", "spectral"])].off.abs().max() < 0.1


def test_variation_over_widths_is_that_of_the_seeds_means(rows: pd.DataFrame) -> None:
    table = variations(rows, "width", "depth")
    one = table[(table.method == "mup") & (table.optimizer == "sgd") & (table.depth == 4)]
    mine = rows[(rows.method == "mup") & (rows.optimizer == "sgd") & (rows.depth == 4)]
    means = [mine[(mine.layer == 2) & (mine.width == w)].output.mean() for w in (128, 256)]
    expected = np.std(means) / np.mean(means)
    assert one[one.layer == 2].output.item() == pytest.approx(expected)


def test_a_best_lr_that_halves_with_each_doubling_moves_by_the_power_minus_one() -> None:
    table = pd.DataFrame(
        [r for s in (0, 1) for k in range(3) for r in curve("standard", s, 64 * 2**k, -4.3 - k)]
    )
    fit = sweep.movement(table, "standard")
    assert fit.slope == pytest.approx(-1)
    best = sweep.best(table)
    assert list(best.best) == [-4, -5, -6]
    assert list(best.between) == pytest.approx([-4.3, -5.3, -6.3])
    assert not best.at_edge.any()


def test_a_best_lr_at_the_edge_of_the_grid_is_marked() -> None:
    assert sweep.best(pd.DataFrame(curve("mup", 0, 64, 3.0))).at_edge.all()


def test_a_run_that_diverged_is_never_the_best() -> None:
    table = pd.DataFrame(curve("mup", 0, 64, -5.0))
    table.loc[table.log2_lr == -5, "loss"] = np.nan
    assert sweep.best(table).best.item() in (-4, -6)


def test_an_observer_sees_the_first_and_the_last_step() -> None:
    table = pd.DataFrame(training.measure(32, 3, 0, QUICK.training))
    assert {0, QUICK.training.steps - 1} <= set(table.step)
    assert (table.groupby("step").layer.nunique() == 3).all()
    assert (table[["activation", "gradient", "update"]] > 0).all().all()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "report", "--out", "{tmp}"], "run --part single first"),
        (["--workers", "-1", "--out", "{tmp}"], "--workers -1"),
        (["--out", "{tmp}/file"], "is not a folder"),
    ],
)
def test_bad_input_is_one_line_that_names_the_flag(
    flags: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (tmp_path / "file").write_text("")
    flags = [flag.replace("{tmp}", str(tmp_path)) for flag in flags]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    assert command.main() == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_committed_sweep_gives_the_committed_numbers() -> None:
    again = numbers.rounded(numbers.sweep_numbers(read_rows(COMMITTED, "sweep")))
    assert json.loads(json.dumps(again)) == SUMMARY["sweep"]


def test_the_committed_slopes_give_the_committed_counts() -> None:
    ratios = read_rows(COMMITTED, "slopes").query("quantity in @numbers.RATIOS")
    assert SUMMARY["single"]["close"]["all"] == len(ratios)
    assert SUMMARY["single"]["close"]["close"] == ratios.close.sum()


def test_committed_slopes_of_the_shallowest_models_are_measured_again() -> None:
    plan = SinglePass(depths=(2,))
    again = slopes(single_pass.run(plan, workers=0), plan)
    committed = read_rows(COMMITTED, "slopes").query("depth == 2")
    keys = ["method", "optimizer", "depth", "layer", "kind", "quantity"]
    both = again.merge(committed, on=keys, suffixes=("", "_then"))
    assert len(both) == len(again) == len(committed)
    for column in ("slope", "half", "derived", "finite"):
        np.testing.assert_allclose(both[column], both[f"{column}_then"], atol=2e-3)


def test_committed_training_runs_start_as_they_did() -> None:
    plan = Training(widths=(64,), depths=(4,), steps=1)
    again = training.cells(training.run(plan, workers=0)).loc[4, 64]
    cells = pd.DataFrame(SUMMARY["training"]["cells"]).set_index(["depth", "width"])
    for column in ("activation", "gradient", "update", "spread"):
        assert again[column] == pytest.approx(cells.loc[4, 64][column], rel=2e-3)


@pytest.mark.slow
def test_the_quick_study_writes_everything_and_agrees_with_the_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--quick", "--workers", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    assert command.main() == 0
    rows = {"single.csv", "training.csv"}
    here, there = (
        {p.name for p in folder.iterdir()} - {".gitignore"} for folder in (tmp_path, COMMITTED)
    )
    assert here == there | rows
    quick = json.loads((tmp_path / "summary.json").read_text())["single"]["slopes"]
    full = SUMMARY["single"]["slopes"]
    for method in quick:
        for quantity in ("frobenius", "spectral", "output"):
            mine, theirs = (s[method]["adam"]["hidden"][quantity]["slope"] for s in (quick, full))
            assert mine == pytest.approx(theirs, abs=0.1)
