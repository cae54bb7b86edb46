"""Runs that differ in other settings than scale, method, lr and seed are never averaged."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run
from report_pages import rows

from train.results import curves, plots, style
from train.results.analysis import Results, loss_table
from train.results.collect import collect
from train.results.formats import render
from train.results.report import report
from train.run.identity import DATA_DIGEST, TABLE_DIGEST

GAMMAS = (0.3, 1, 3)


def gamma(value: float, **more: Any) -> dict[str, Any]:
    return {"maxp": {"lr_multipliers": {"embedding": value, "readout": 1.0}}, **more}


def tuned(root: Path) -> None:
    """maxP is best at gamma 3 and lr 1e-2, sp at gamma 0.3 and lr 1e-1; two seeds."""
    losses = {
        "maxP": {(0.3, 1e-2): 4.0, (0.3, 1e-1): 4.5, (1, 1e-2): 3.75, (3, 1e-2): 3.5},
        "sp": {(0.3, 1e-2): 4.0, (0.3, 1e-1): 3.25, (1, 1e-2): 5.0},
    }
    for method, table in losses.items():
        for (value, lr), loss in table.items():
            for seed, more in ((1, -0.0625), (2, 0.0625)):
                write_run(
                    *(root,),
                    method=method,
                    lr=lr,
                    seed=seed,
                    validation=loss + more,
                    name=f"{method}{value}-{lr}-{seed}",
                    settings=gamma(value),
                )


def analysed(root: Path) -> Results:
    return Results.of(collect(root), "validation")


# What is an axis


def test_runs_that_differ_in_a_setting_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path, seed=1, validation=3.0, settings={"clip": 1})
    write_run(tmp_path, seed=2, validation=4.0, settings={"clip": 2})
    cells = loss_table(collect(tmp_path), "validation")
    assert cells["mean"].tolist() == [3.0, 4.0]
    assert cells["combination"].tolist() == ["clip 1", "clip 2"]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"a": {"seed": 1}}, {"a": {"seed": 2}}),
        ({"optimizer": {"lr": 1}}, {"optimizer": {"lr": 2}}),
        ({"output_dir": "a"}, {"output_dir": "b"}),
        ({"training": {"local_batch_size": 1}}, {"training": {"local_batch_size": 2}}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": None}, {}),
    ],
)
def test_what_does_not_define_an_experiment_is_no_axis(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    write_run(tmp_path, seed=1, validation=3.0, settings=first)
    write_run(tmp_path, seed=2, validation=4.0, settings=second)
    (row,) = loss_table(collect(tmp_path), "validation").to_dict("records")
    assert (row["mean"], row["combination"]) == (3.5, "")


def test_what_a_scale_a_method_or_the_steps_bring_with_them_is_no_axis(tmp_path: Path) -> None:
    for scale, method, steps in (("s1", "maxP", 1), ("s2", "maxP", 2), ("s1", "sp", 3)):
        brought = {"model": {"dim": scale}, "maxp": {"probe": method, "measure_from": steps}}
        brought |= {"lr_scheduler": {"warmup_steps": steps}, "validator": {"freq": steps}}
        brought |= {TABLE_DIGEST: method}
        run: dict[str, Any] = {"scale": scale, "method": method, "steps": steps}
        write_run(tmp_path, **run, validation=3.0, settings=brought)
    assert analysed(tmp_path).axes == {}


def test_methods_that_differ_in_another_setting_are_not_on_one_line(tmp_path: Path) -> None:
    """As two sweeps in one folder: each method has only one value."""
    for method, batch in (("maxP", 8), ("mup-full", 4)):
        settings = {"training": {"global_batch_size": batch}}
        write_run(tmp_path, method=method, validation=3.0, settings=settings)
    assert analysed(tmp_path).axes == {"training.global_batch_size": "global_batch_size"}


def test_runs_of_other_lengths_that_differ_in_another_setting_are_not_averaged(
    tmp_path: Path,
) -> None:
    """As many tokens, in fewer and larger steps."""
    for seed, steps, batch in ((1, 100, 8), (2, 200, 4)):
        settings = {"training": {"global_batch_size": batch}}
        write_run(tmp_path, seed=seed, steps=steps, validation=3.0 + seed, settings=settings)
    assert analysed(tmp_path).cells["mean"].tolist() == [5.0, 4.0]


def test_a_setting_that_follows_from_another_is_no_second_axis(tmp_path: Path) -> None:
    for seed, (length, depth) in enumerate([(64, 1), (64, 1), (128, 2), (128, 2)]):
        settings = {"training": {"seq_len": length}, "maxp": {"depth": depth}}
        write_run(tmp_path, seed=seed, validation=3.0, settings=settings)
    assert analysed(tmp_path).axes == {"maxp.depth": "depth"}


def test_a_run_of_a_version_that_wrote_no_digest_is_a_seed_of_those_with_one(
    tmp_path: Path,
) -> None:
    for seed, settings in enumerate([{}, {DATA_DIGEST: "a"}, {DATA_DIGEST: "a"}]):
        data = {"dataloader": {"dataset": "local", **settings}}
        write_run(tmp_path / "one", seed=seed, validation=3.0, settings=data)
        write_run(tmp_path / "two", seed=seed, validation=3.0, settings=data)
    other = {"dataloader": {"dataset": "local", DATA_DIGEST: "b"}}
    write_run(tmp_path / "two", seed=3, validation=4.0, settings=other)
    assert analysed(tmp_path / "one").cells["seeds"].tolist() == [3]
    # It may be a seed of either.
    assert sorted(analysed(tmp_path / "two").cells["seeds"]) == [1, 1, 2]


def test_settings_in_lists_are_compared_one_by_one(tmp_path: Path) -> None:
    for seed, decay in enumerate([0.1, 0.2]):
        groups = {"groups": [{"lr": seed, "decay": decay}, {"decay": 0}]}
        write_run(tmp_path, seed=seed, validation=3.0, settings=groups)
    assert analysed(tmp_path).axes == {"groups.0.decay": "decay"}


def test_a_run_without_a_base_scale_has_none(tmp_path: Path) -> None:
    """Runs of earlier versions have no such setting."""
    write_run(tmp_path, seed=1, validation=3.0)
    write_run(tmp_path, seed=2, validation=4.0, settings={"maxp": {"base_scale": "none"}})
    write_run(tmp_path, seed=3, validation=9.0, settings={"maxp": {"base_scale": "s0"}})
    cells = loss_table(collect(tmp_path), "validation")
    assert dict(zip(cells["combination"], cells["mean"], strict=True)) == {
        "base_scale none": 3.5,
        "base_scale s0": 9.0,
    }


# Bests


def test_the_best_lr_is_found_per_combination_and_over_all(tmp_path: Path) -> None:
    tuned(tmp_path)
    results = analysed(tmp_path)
    best = results.cells[results.cells["best"]]
    assert {(r.method, r.combination): r.lr for r in best.itertuples()} == {
        **{("maxP", f"embedding {value}"): 1e-2 for value in GAMMAS},
        ("sp", "embedding 0.3"): 1e-1,
        ("sp", "embedding 1"): 1e-2,
    }
    of_all = results.methods.set_index("method")
    assert of_all.loc["maxP", ["best_loss", "best_lr", "combination"]].tolist() == [
        *(3.5, 1e-2, "embedding 3")
    ]
    assert of_all.loc["sp", ["best_loss", "best_lr", "combination"]].tolist() == [
        *(3.25, 1e-1, "embedding 0.3")
    ]


def test_combinations_are_ordered_by_value(tmp_path: Path) -> None:
    for seed, value in enumerate([10, 2, True, "b", 0.5]):
        write_run(tmp_path, seed=seed, validation=3.0, settings={"x": value})
    assert list(analysed(tmp_path).points) == ["x 0.5", "x 2", "x 10", "x b", "x true"]


# Outputs


def test_the_text_table_has_a_column_per_axis(tmp_path: Path) -> None:
    tuned(tmp_path)
    assert render(collect(tmp_path), "validation").splitlines()[:13] == [
        "s1: validation loss at the end (* best lr of a group, ** best lr and embedding, "
        "± standard deviation over seeds, n = 2)",
        "",
        "embedding   lr     maxP                 sp",
        "---------   ----   ------------------   ------------------",
        "0.3         1e-2   4.0000 ± 0.0884 *    4.0000 ± 0.0884",
        "            1e-1   4.5000 ± 0.0884      3.2500 ± 0.0884 **",
        "1           1e-2   3.7500 ± 0.0884 *    5.0000 ± 0.0884 *",
        "3           1e-2   3.5000 ± 0.0884 **   -",
        "",
        "best maxP   3.5000 at lr 1e-2, embedding 3",
        "best sp     3.2500 at lr 1e-1, embedding 0.3",
        "basin maxP   within 0.05 over >=0.00 decades (<=1e-2 to >=1e-2)",
        "basin sp     within 0.05 over >=0.07 decades (8.6e-2 to >=1e-1)",
    ]


def test_csv_has_a_column_per_axis_and_a_combinations_own_bests(tmp_path: Path) -> None:
    tuned(tmp_path)
    read = list(csv.DictReader(io.StringIO(render(collect(tmp_path), "validation", "csv"))))
    key = "maxp.lr_multipliers.embedding"
    got = {(r["method"], r[key], float(r["lr"])): float(r["best_loss"]) for r in read}
    assert got == {
        ("maxP", "0.3", 1e-2): 4.0,
        ("maxP", "0.3", 1e-1): 4.0,
        ("maxP", "1", 1e-2): 3.75,
        ("maxP", "3", 1e-2): 3.5,
        ("sp", "0.3", 1e-2): 3.25,
        ("sp", "0.3", 1e-1): 3.25,
        ("sp", "1", 1e-2): 5.0,
    }
    assert [float(r["mean"]) for r in read if r["best_of_all"] == "True"] == [3.25, 3.5]


def test_json_has_the_axes_of_each_cell_and_each_combination(tmp_path: Path) -> None:
    tuned(tmp_path)
    content = json.loads(render(collect(tmp_path), "validation", "json"))
    key = "maxp.lr_multipliers.embedding"
    assert content["axes"] == [key]
    (scale,) = content["scales"]
    assert {(c["method"], c["axes"][key], c["lr"]) for c in scale["cells"]} == {
        *(("maxP", value, 1e-2) for value in GAMMAS),
        ("maxP", 0.3, 1e-1),
        *(("sp", 0.3, 1e-2), ("sp", 0.3, 1e-1), ("sp", 1, 1e-2)),
    }
    first = content["combinations"][0]
    assert first["axes"] == {key: 0.3}
    assert [m["best_loss"] for m in first["scales"][0]["methods"]] == [4.0, 3.25]


def test_latex_groups_the_rows_of_a_combination(tmp_path: Path) -> None:
    tuned(tmp_path)
    lines = render(collect(tmp_path), "validation", "latex").splitlines()
    assert "embedding & lr & maxP & sp \\\\" in lines
    assert "0.3 & $10^{-2}$ & \\textbf{4.0000 $\\pm$ 0.0884} & 4.0000 $\\pm$ 0.0884 \\\\" in lines
    best = "\\underline{\\textbf{3.2500 $\\pm$ 0.0884}}"
    assert f" & $10^{{-1}}$ & 4.5000 $\\pm$ 0.0884 & {best} \\\\" in lines


def test_the_report_has_the_axes_in_its_tables(tmp_path: Path) -> None:
    tuned(tmp_path)
    page = report(collect(tmp_path), "t")
    assert {row[-2] for row in rows(page, "runs")} == {"0.3", "1", "3"}
    summary = rows(page, "validation-summary")
    assert [row[3] for row in summary] == [
        "1e-2 embedding 3, only lr of the grid",
        "1e-1 embedding 0.3, highest lr of the grid",
    ]
    assert page.count("<button>embedding</button>") == 2


def test_a_plot_shows_one_combination(tmp_path: Path) -> None:
    tuned(tmp_path)
    drawn = list(plots.each_figure(analysed(tmp_path)))
    losses = [figure for _, name, figure in drawn if name == "loss_against_lr"]
    assert [figure.get_suptitle() for figure in losses] == [f"embedding {v}" for v in GAMMAS]
    assert {figure._suptitle.get_color() for figure in losses} == {style.INK}
    assert losses[2].axes[0].get_lines()[0].get_xydata().tolist() == [[1e-2, 3.5]]
    files = plots.write_plots(analysed(tmp_path), tmp_path / "plots")
    assert {file.stem for file in files} >= {f"loss_against_lr_{number}" for number in (1, 2, 3)}


def test_the_curve_is_that_of_the_best_combination(tmp_path: Path) -> None:
    for seed, (value, loss) in enumerate([(1, 3.5), (2, 3.0)]):
        records = [{"step": 1, "loss": 9.0 + seed}]
        settings = {"x": value}
        write_run(tmp_path, seed=seed, validation=loss, records=records, settings=settings)
    (paths,) = curves.best_runs(analysed(tmp_path)).values()
    assert curves.read(paths)["loss", ""]["mean"].to_dict() == {1: 10.0}


# A base scale


def ladder(root: Path, *, methods: tuple[str, ...] = ("maxP", "mup-no")) -> None:
    """cpu64 is its own base and was run as mup-no; cpu128 was run with every method."""
    base = {"maxp": {"base_scale": "cpu64"}}
    for lr, loss in {1e-3: 4.0, 1e-2: 3.5, 1e-1: 3.75}.items():
        for seed in (1, 2):
            at = {"scale": "cpu64", "method": "mup-no", "lr": lr, "seed": seed}
            write_run(root, **at, validation=loss + seed / 8, settings=base)
    for position, method in enumerate(methods):
        for lr, loss in {1e-2: 3.25, 1e-1: 3.0}.items():
            for seed in (1, 2):
                at = {"scale": "cpu128", "method": method, "lr": lr, "seed": seed}
                more = position + seed / 8 + (seed - 1) * (lr == 1e-2) / 4
                write_run(root, **at, validation=loss + more, settings=base)


def test_the_run_at_a_base_scale_counts_for_every_method(tmp_path: Path) -> None:
    ladder(tmp_path)
    cells = analysed(tmp_path).cells.query("scale == 'cpu64'")
    means = cells.set_index(["method", "lr"])["mean"].to_dict()
    losses = {1e-3: 4.1875, 1e-2: 3.6875, 1e-1: 3.9375}
    assert means == {(m, lr): loss for m in ("maxP", "mup-no") for lr, loss in losses.items()}
    assert cells["at_base"].all()
    assert {m: {*rows["run_as"]} for m, rows in cells.groupby("method")} == {
        "maxP": {"mup-no"},
        "mup-no": {""},
    }


def test_a_shared_run_is_marked_and_no_gap(tmp_path: Path) -> None:
    ladder(tmp_path)
    lines = render(collect(tmp_path), "validation").splitlines()
    assert lines[0] == (
        "cpu64: validation loss at the end (* best lr, ± standard deviation over seeds, n = 2, "
        "= the run of mup-no: at its base scale one for all methods)"
    )
    assert "1e-2   3.6875 ± 0.0884 = *   3.6875 ± 0.0884 *" in lines
    assert "best of every method   3.6875 at lr 1e-2" in lines
    assert [line for line in lines if line.startswith("maxP - mup-no")] == [
        "maxP - mup-no: -1.0000, beyond one standard deviation over seeds (0.0884, n = 2)"
    ]
    assert not any("several runs with the same seed" in line for line in lines)


def test_every_method_carries_the_shared_best_lr(tmp_path: Path) -> None:
    ladder(tmp_path)
    moved = analysed(tmp_path).transfer
    assert moved["method"].tolist() == ["maxP", "mup-no"]
    assert {*moved["from_scale"]} == {"cpu64"}
    assert {*moved["lr"]} == {1e-2}
    # 0.25 and 0.5 above the best lr's seeds
    assert moved["regret"].tolist() == [0.375, 0.375]


def test_a_base_that_is_not_the_smallest_scale_is_still_where_the_lr_is_from(
    tmp_path: Path,
) -> None:
    base = {"maxp": {"base_scale": "s2"}}
    for scale, best in (("s1", 1e-3), ("s2", 1e-2), ("s3", 1e-3)):
        for lr in (1e-3, 1e-2):
            loss = 3.0 + (lr != best)
            write_run(tmp_path, scale=scale, lr=lr, validation=loss, settings=base)
    moved = analysed(tmp_path).transfer
    assert moved[["from_scale", "scale", "lr", "regret"]].to_numpy().tolist() == [
        ["s2", "s1", 1e-2, 1.0],
        ["s2", "s3", 1e-2, 1.0],
    ]


def test_plots_and_report_of_a_shared_base_are_made(tmp_path: Path) -> None:
    ladder(tmp_path)
    results = analysed(tmp_path)
    assert [name for name, *_ in plots.each_figure(results)] == [
        *("loss_against_lr", "transfer", "gap")
    ]
    losses, _ = plots.loss_against_lr(results).axes
    assert losses.get_title(loc="left") == "cpu64, one run for all methods"
    page = report(collect(tmp_path), "t")
    assert page.count("= mup-no") == 3
    assert "one run for all methods" in page


# The interval of a regret


def test_the_interval_of_a_regret_is_students_t_over_paired_seeds(tmp_path: Path) -> None:
    """Differences 0.1, 0.2, 0.6: mean 0.3, s 0.26458; t of 2 degrees of freedom is 4.302653."""
    write_run(tmp_path, scale="s1", lr=1e-2, validation=3.0)
    for seed, difference in enumerate([0.1, 0.2, 0.6]):
        offset = 5.0 * seed  # of a seed: it cancels
        for lr, more in ((1e-2, difference), (1e-1, 0.0)):
            loss = 3.0 + offset + more
            write_run(tmp_path, scale="s2", lr=lr, seed=seed, validation=loss)
    (row,) = analysed(tmp_path).transfer.to_dict("records")
    half = 4.302653 * math.sqrt(0.07) / math.sqrt(3)
    assert (row["regret"], row["seeds"]) == (pytest.approx(0.3), 3)
    assert (row["low"], row["high"]) == pytest.approx((0.3 - half, 0.3 + half), rel=1e-6)
    text = render(collect(tmp_path), "validation").splitlines()[-1]
    assert text == "maxP   s1 -> s2   lr 1e-2   regret 0.3000 (95% -0.3572 to 0.9572, n = 3)"


def test_only_seeds_of_both_lrs_are_paired(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s1", lr=1e-2, validation=3.0)
    for lr, losses in ((1e-2, {1: 3.5, 2: 3.5, 3: 9.0}), (1e-1, {1: 3.0, 2: 3.25, 4: 1.0})):
        for seed, loss in losses.items():
            write_run(tmp_path, scale="s2", lr=lr, seed=seed, validation=loss)
    (row,) = analysed(tmp_path).transfer.to_dict("records")
    assert (row["regret"], row["seeds"]) == (0.375, 2)


def test_one_seed_has_a_regret_and_no_interval(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s1", lr=1e-2, validation=3.0)
    for lr, loss in ((1e-2, 3.5), (1e-1, 3.0)):
        write_run(tmp_path, scale="s2", lr=lr, validation=loss)
    (row,) = analysed(tmp_path).transfer.to_dict("records")
    assert (row["regret"], row["seeds"]) == (0.5, 1)
    assert math.isnan(row["low"])


def test_a_regret_between_other_seeds_says_so(tmp_path: Path) -> None:
    base = {"maxp": {"base_scale": "s0"}}
    runs = [("s0", 0.01, 1, 3.0), ("s0", 0.1, 1, 3.5), ("s1", 0.01, 1, 3.0), ("s1", 0.1, 2, 2.75)]
    for scale, lr, seed, loss in runs:
        place: dict[str, Any] = {"scale": scale, "lr": lr, "seed": seed}
        write_run(tmp_path, **place, validation=loss, settings=base)
    last = render(collect(tmp_path), "validation").splitlines()[-1]
    assert last.endswith("regret 0.2500 (no seed in common)")
