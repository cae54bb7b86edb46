"""Basin, transfer and gaps, against numbers worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run

from train.results.analysis import Results
from train.results.basin import basin
from train.results.collect import collect
from train.run.summary import write_summary

INF, NAN = math.inf, math.nan


def analysed(root: Path) -> Results:
    return Results.of(collect(root), "validation")


# basin: lrs a decade apart, so that decades can be read off


def test_the_basin_ends_where_the_interpolated_loss_crosses_the_tolerance() -> None:
    # Left: 3.0 -> 3.2, 0.05 is a quarter of the way. Right: 3.0 -> 3.1, half of it.
    around = basin([1e-3, 1e-2, 1e-1], [3.2, 3.0, 3.1], best=1)
    assert math.log10(around.low) == pytest.approx(-2.25)
    assert math.log10(around.high) == pytest.approx(-1.5)
    assert around.decades == pytest.approx(0.75)
    assert (around.low_end, around.high_end, around.lower_bound) == (
        "crossed",
        "crossed",
        False,
    )


def test_lrs_within_the_tolerance_belong_to_the_basin_whole() -> None:
    # The crossing is between 1e-1 and 1: 3.04 -> 3.08 passes 3.05 after a quarter.
    around = basin([1e-3, 1e-2, 1e-1, 1.0], [4.0, 3.0, 3.04, 3.08], best=1)
    assert math.log10(around.high) == pytest.approx(-0.75)


def test_a_second_valley_behind_a_ridge_is_not_in_the_basin() -> None:
    around = basin([1e-3, 1e-2, 1e-1, 1.0], [3.5, 3.0, 3.1, 3.01], best=1)
    assert math.log10(around.high) == pytest.approx(-1.5)


def test_an_end_of_the_grid_inside_the_basin_is_open() -> None:
    around = basin([1e-3, 1e-2], [3.0, 3.02], best=0)
    assert (around.low, around.high, around.low_end, around.high_end) == (
        1e-3,
        1e-2,
        "open",
        "open",
    )
    assert around.decades == pytest.approx(1.0)
    assert around.lower_bound


def test_a_diverged_lr_ends_the_basin_at_the_last_that_trained() -> None:
    around = basin([1e-3, 1e-2, 1e-1], [3.5, 3.0, INF], best=1)
    assert (around.high, around.high_end) == (1e-2, "diverged")
    assert not around.lower_bound


def test_an_lr_not_finished_yet_leaves_the_basin_open() -> None:
    around = basin([1e-3, 1e-2, 1e-1, 1.0], [3.5, 3.0, NAN, 9.0], best=1)
    assert (around.high, around.high_end) == (1e-2, "open")
    assert around.lower_bound


def test_one_lr_alone_has_a_basin_of_no_known_width() -> None:
    around = basin([1e-2], [3.0], best=0)
    assert (around.decades, around.lower_bound) == (0.0, True)


def test_an_lr_of_other_methods_only_is_interpolated_across(tmp_path: Path) -> None:
    for lr, loss in {1e-3: 3.5, 1e-2: 3.0, 1.0: 3.1}.items():
        write_run(tmp_path, method="maxP", lr=lr, validation=loss)
    write_run(tmp_path, method="sp", lr=1e-1, validation=3.3)
    (row,) = analysed(tmp_path).methods.query("method == 'maxP'").to_dict("records")
    # 0.05 is half of the rise over the two decades to 1.0, and a tenth of that to 1e-3.
    assert math.log10(row["basin_high"]) == pytest.approx(-1.0)
    assert row["basin_decades"] == pytest.approx(1.1)


def test_a_cell_with_one_diverged_seed_ends_the_basin(tmp_path: Path) -> None:
    write_run(tmp_path, lr=1e-2, seed=0, validation=3.0)
    write_run(tmp_path, lr=1e-1, seed=0, validation=3.01)
    write_run(tmp_path, lr=1e-1, seed=1, state="diverged")
    (row,) = analysed(tmp_path).methods.to_dict("records")
    assert (row["basin_high"], row["basin_high_end"]) == (1e-2, "diverged")


# transfer


def ladder(root: Path, here: dict[float, Any]) -> dict[str, Any]:
    """s1 is best at 1e-2; the runs of s2 are given, None for one that diverged."""
    for lr, loss in {1e-3: 3.5, 1e-2: 3.0, 1e-1: 3.4}.items():
        write_run(root, scale="s1", lr=lr, validation=loss)
    for lr, loss in here.items():
        state = "completed" if loss else "diverged"
        write_run(root, scale="s2", lr=lr, validation=loss, state=state)
    (row,) = analysed(root).transfer.to_dict("records")
    return row


def test_regret_is_the_loss_at_the_small_scales_best_lr_less_the_best(tmp_path: Path) -> None:
    row = ladder(tmp_path, {1e-3: 2.75, 1e-2: 2.875, 1e-1: 3.0})
    assert (row["from_scale"], row["scale"], row["lr"]) == ("s1", "s2", 1e-2)
    assert (row["regret"], row["outcome"]) == (0.125, "measured")


def test_a_best_lr_that_transfers_has_no_regret(tmp_path: Path) -> None:
    assert ladder(tmp_path, {1e-3: 2.9, 1e-2: 2.8})["regret"] == 0.0


def test_the_regret_of_an_lr_that_diverges_is_infinite_and_marked(tmp_path: Path) -> None:
    row = ladder(tmp_path, {1e-3: 2.75, 1e-2: None})
    assert (row["regret"], row["outcome"]) == (INF, "diverged")


def test_the_regret_of_an_lr_that_was_not_run_is_missing(tmp_path: Path) -> None:
    row = ladder(tmp_path, {1e-3: 2.75})
    assert math.isnan(row["regret"])
    assert row["outcome"] == "missing"


def test_the_smallest_scale_is_the_one_of_fewest_parameters_where_all_are_known(
    tmp_path: Path,
) -> None:
    for scale, size in (("wide", 10), ("deep", 20)):
        write_summary(write_run(tmp_path, scale=scale, validation=3.0), parameters=size)
    assert analysed(tmp_path).scales == ["wide", "deep"]
    (tmp_path / "wide-maxP-0.01-0" / "summary.json").unlink()
    assert analysed(tmp_path).scales == ["deep", "wide"]


# gaps


def gap(root: Path, ours: list[float], reference: list[float]) -> dict[str, Any]:
    for method, losses in (("maxP", ours), ("mup-full", reference)):
        for seed, loss in enumerate(losses):
            write_run(root, method=method, seed=seed, validation=loss)
    (row,) = analysed(root).gaps.to_dict("records")
    return row


def test_a_gap_below_the_seeds_spread_is_called_noise(tmp_path: Path) -> None:
    row = gap(tmp_path, [3.0, 3.5], [3.25, 3.5])  # std 0.354 and 0.177, gap 0.125
    assert row["gap"] == -0.125
    assert row["noise"] == pytest.approx(0.25 * math.sqrt(2))
    assert row["verdict"] == "within noise"


def test_a_gap_above_the_seeds_spread_has_a_side(tmp_path: Path) -> None:
    row = gap(tmp_path, [3.0, 3.25], [3.5, 3.75])
    assert (row["gap"], row["verdict"]) == (-0.5, "lower")
    assert (row["seeds"], row["reference_seeds"]) == (2, 2)


def test_one_seed_says_nothing_about_noise(tmp_path: Path) -> None:
    row = gap(tmp_path, [3.0], [3.5, 3.75])
    assert math.isnan(row["noise"])
    assert row["verdict"] == "noise unknown"


def test_runs_of_one_seed_repeated_do_not_measure_the_noise_of_seeds(tmp_path: Path) -> None:
    for method, losses in (("maxP", [3.0, 3.25]), ("mup-full", [3.5, 3.75])):
        for number, loss in enumerate(losses):
            write_run(tmp_path, method=method, validation=loss, name=f"{method}{number}")
    (row,) = analysed(tmp_path).gaps.to_dict("records")
    assert (row["seeds"], row["verdict"]) == (1, "noise unknown")


def test_methods_are_compared_with_both_references_and_those_once(tmp_path: Path) -> None:
    for method, losses in {
        "maxP": [3.0, 3.25],
        "mup-full": [3.5, 3.75],
        "mup-no": [3.125, 3.125],
    }.items():
        for seed, loss in enumerate(losses):
            write_run(tmp_path, method=method, seed=seed, validation=loss)
    gaps = analysed(tmp_path).gaps
    rows = gaps[["method", "reference", "gap", "verdict"]].itertuples(index=False, name=None)
    assert list(rows) == [
        ("maxP", "mup-full", -0.5, "lower"),
        ("mup-no", "mup-full", -0.5, "lower"),
        ("maxP", "mup-no", 0.0, "within noise"),
    ]


def test_without_a_mup_method_sp_is_the_reference(tmp_path: Path) -> None:
    for method, loss in (("maxP", 3.0), ("sp", 3.5)):
        write_run(tmp_path, method=method, validation=loss)
    (row,) = analysed(tmp_path).gaps.to_dict("records")
    assert (row["method"], row["reference"], row["gap"]) == ("maxP", "sp", -0.5)


# edge


@pytest.mark.parametrize(
    ("losses", "edge"),
    [
        ({1e-3: 3.0, 1e-2: 3.5, 1e-1: 4.0}, "lowest"),
        ({1e-3: 4.0, 1e-2: 3.5, 1e-1: 3.0}, "highest"),
        ({1e-3: 4.0, 1e-2: 3.0, 1e-1: 4.0}, ""),
        ({1e-2: 3.0}, "only"),
        ({1e-3: 4.0, 1e-2: 3.0, 1e-1: math.inf}, ""),  # diverged there: that is a result
        ({1e-3: 4.0, 1e-2: 3.0, 1e-1: None}, "highest"),  # still running there
    ],
)
def test_a_best_lr_at_an_end_of_the_results_is_flagged(
    tmp_path: Path, losses: dict[float, float | None], edge: str
) -> None:
    for lr, loss in losses.items():
        if loss is None or math.isinf(loss):
            write_run(tmp_path, lr=lr, state="running" if loss is None else "diverged")
        else:
            write_run(tmp_path, lr=lr, validation=loss)
    assert analysed(tmp_path).methods["edge"].tolist() == [edge]
