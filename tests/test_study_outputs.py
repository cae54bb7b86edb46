"""The study's command, its folder, and that the committed rows can be measured again."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scripts.study import __main__ as command
from scripts.study import numbers, single_pass, sweep, training
from scripts.study.files import read_rows, read_single, write_rows, write_single
from scripts.study.plan import FULL, QUICK, SinglePass
from scripts.study.summary import slopes, variations

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "study"
SMALL = SinglePass(widths=(128, 256), depths=(2, 4), seeds=2, inputs=8, outputs=3)


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return single_pass.run(SMALL, workers=0)


def curve(method: str, seed: int, width: int, best: float) -> list[dict[str, object]]:
    about = {"method": method, "width": width, "seed": seed}
    return [{**about, "log2_lr": k, "loss": 2.0 ** ((k - best) ** 2)} for k in range(-12, 0)]


def test_rows_survive_the_folder_to_four_digits(rows: pd.DataFrame, tmp_path: Path) -> None:
    write_single(tmp_path, rows)
    read = read_single(tmp_path)
    keys = ["method", "optimizer", "width", "depth", "seed", "layer"]
    both = rows.merge(read, on=keys, suffixes=("", "_read"))
    assert len(both) == len(rows) == len(read)
    for column in rows.columns.difference(keys):
        np.testing.assert_allclose(both[column], both[f"{column}_read"], rtol=6e-4)


def test_the_json_holds_the_same_rows_as_the_csv(tmp_path: Path) -> None:
    table = pd.DataFrame({"method": ["a", "a", "b"], "seed": [0, 1, 1], "loss": [1.0, 2.0, 0.5]})
    write_rows(tmp_path, "sweep", table)
    found = json.loads((tmp_path / "sweep.json").read_text())
    assert found["runs"] == {"method": [["a", 2], ["b", 1]], "seed": [[0, 1], [1, 2]]}
    assert found["values"] == {"loss": [1.0, 2.0, 0.5]}


def test_slopes_are_fitted_for_every_layer_and_near_what_is_derived(rows: pd.DataFrame) -> None:
    found = slopes(rows, SMALL)
    assert len(found) == 3 * 2 * (2 + 4) * 10
    # maxP's alignments, of two seeds, are not what they are on average.
    chosen = (found.optimizer == "adam") & (found.kind == "hidden") & (found.method != "maxP")
    adam = found[chosen]
    assert adam[adam.quantity.isin(["frobenius", "spectral"])].off.abs().max() < 0.1


def test_variation_over_widths_is_that_of_the_seeds_means(rows: pd.DataFrame) -> None:
    found = variations(rows, "width", "depth")
    one = found[(found.method == "mup") & (found.optimizer == "sgd") & (found.depth == 4)]
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
    found = pd.DataFrame(training.measure(32, 3, 0, QUICK.training))
    assert {0, QUICK.training.steps - 1} <= set(found.step)
    assert (found.groupby("step").layer.nunique() == 3).all()
    assert (found[["activation", "gradient", "update"]] > 0).all().all()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--part", "report", "--out", "{tmp}"], "run --part all first"),
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


def test_the_committed_summary_is_that_of_the_committed_rows() -> None:
    single = read_single(COMMITTED)
    trained, swept = read_rows(COMMITTED, "training"), read_rows(COMMITTED, "sweep")
    found = numbers.all_numbers(FULL, single, slopes(single, FULL.single), trained, swept)
    committed = json.loads((COMMITTED / "summary.json").read_text())
    assert json.loads(json.dumps(found)) == committed


def test_committed_rows_are_measured_again() -> None:
    committed = read_single(COMMITTED)
    for width, depth in ((64, 8), (256, 4)):
        again = pd.DataFrame(single_pass.measure(width, depth, 3, FULL.single))
        keys = ["method", "optimizer", "width", "depth", "seed", "layer"]
        both = again.merge(committed, on=keys, suffixes=("", "_then"))
        assert len(both) == len(again)
        for column in ("gradient", "frobenius", "spectral", "output", "total", "z", "weight_2"):
            np.testing.assert_allclose(both[column], both[f"{column}_then"], rtol=2e-3)


def test_a_committed_training_run_starts_as_it_did() -> None:
    committed = read_rows(COMMITTED, "training")
    plan = training.Training(steps=1)
    again = pd.DataFrame(training.measure(64, 4, 1, plan))
    both = again.merge(committed, on=["width", "depth", "seed", "step", "layer"])
    assert len(both) == 4
    for column in ("loss", "activation", "gradient", "update"):
        np.testing.assert_allclose(both[f"{column}_x"], both[f"{column}_y"], rtol=2e-3)


@pytest.mark.slow
def test_the_quick_study_writes_everything_and_agrees_with_the_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--quick", "--workers", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    assert command.main() == 0
    here, there = ({p.name for p in folder.iterdir()} for folder in (tmp_path, COMMITTED))
    assert here == there
    quick, full = (
        json.loads((folder / "summary.json").read_text())["single"]["slopes"]
        for folder in (tmp_path, COMMITTED)
    )
    for method in quick:
        for quantity in ("frobenius", "spectral", "output"):
            mine, theirs = (s[method]["adam"]["hidden"][quantity]["slope"] for s in (quick, full))
            assert mine == pytest.approx(theirs, abs=0.1)
