"""The transfer experiment of docs/results.md: its plan, its numbers, and its page."""

import math
import re
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from scripts.marked import fill
from scripts.transfer import plan, report, results, runs
from scripts.transfer.added import LARGE_BATCH, all_runs, method_arm, seeds_of
from scripts.transfer.objectives import objective_runs, read_solutions
from scripts.transfer.plan import ARMS, BASE, Choice, Run, choice
from train.cli import parse

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "results"


def bowl(best: dict[str, float]) -> dict[Run, float]:
    """Losses of all runs, with the smallest at the lr of the arm or the scale in ``best``."""
    losses: dict[Run, float] = {}
    for _ in count():
        todo = [run for run in all_runs(losses, "t.json") if run not in losses]
        if not todo:
            return losses
        for run in todo:
            distance = math.log10(run.lr / best.get(run.arm, best.get(run.scale, 1e-2)))
            factors = 0.0 if "lr_multipliers.readout=3" in run.flags else 0.1
            losses[run] = 5 + distance**2 + factors
    raise AssertionError


def test_the_plan_carries_the_best_lr_and_factors_of_the_base():
    losses = bowl({BASE: 3e-3})
    assert choice(losses) == Choice(3e-3, 1 / 3, 3.0)
    wide = {run for run in losses if run.part == "width" and run.scale == "cpu128"}
    assert {run.lr for run in wide} >= {1e-3, 3e-3, 1e-2}
    assert all("readout=3" in run.flags for run in wide if run.arm != "mup-no-head")


def test_the_grid_is_extended_until_the_best_lr_is_inside():
    losses = bowl({"cpu256": 1e-4})
    lrs = {run.lr for run in losses if run.part == "width" and run.scale == "cpu256"}
    assert (min(lrs), max(lrs)) == (3e-5, 3e-2)


def test_no_run_of_a_larger_scale_is_planned_before_the_base_is_complete():
    assert {run.scale for run in all_runs({}, "t.json")} == {BASE}


def test_a_run_that_two_parts_share_is_planned_once():
    planned = all_runs(bowl({}), "t.json")
    assert len(planned) == len(set(planned))


def test_lengths_and_muon_are_tuned_in_factors_of_2_from_the_carried_lr():
    losses = bowl({"cpu256": 4e-3})

    def lrs(part: str, *where: str) -> list[float]:
        chosen = [r for r in losses if r.part == part and {r.arm, r.scale} >= set(where)]
        return sorted({run.lr for run in chosen})

    assert lrs("horizon", "x4") == [2.5e-3, 5e-3, 1e-2, 2e-2, 4e-2]
    assert lrs("muon", "cpu64") == [5e-3, 1e-2, 2e-2]
    assert lrs("muon", "cpu256") == [2.5e-3, 5e-3, 1e-2, 2e-2]


def test_methods_with_muon_are_tuned_around_the_lr_that_muon_carries():
    losses = bowl({LARGE_BATCH: 4e-2, "cpu256": 4e-2})
    some = {run for run in losses if run.arm == method_arm("maxP")}
    assert {(run.method, run.scale, run.lr) for run in some} == {
        ("maxP", "cpu256", lr) for lr in (2e-2, 4e-2, 8e-2)
    }
    assert all("--optimizer=muon" in run.flags and "batch_size=16" in run.flags for run in some)


def test_a_table_is_measured_under_the_recipe_before_its_runs_are_planned():
    losses = bowl({})
    measuring = [run for run in losses if run.arm == "bfloat16-table"]
    using = {run for run in losses if run.arm == "bfloat16-maxP-frozen"}
    assert all("dtype=bfloat16" in run.flags for run in (*measuring, *using))
    assert all("--alignment-table=t_bfloat16.json" in run.flags for run in using)
    known = {run: loss for run, loss in losses.items() if run != measuring[-1]}
    assert not using & set(all_runs({k: v for k, v in known.items() if k not in using}, "t.json"))


def test_passive_runs_measure_at_the_best_lr_of_their_own_method():
    losses = bowl({"cpu256": 1e-3})
    measuring = [run for run in losses if run.arm == "passive-table"]
    assert {(run.method, run.scale, run.lr) for run in measuring} == {("mup-no", "cpu256", 1e-3)}


def test_the_head_of_one_arm_learns_more_slowly_by_the_published_power():
    wide = plan.run_of("width", ARMS, "mup-no-head", "cpu512", Choice(1e-2), "", 1)
    [flag] = [word for word in wide.flags.split() if "readout" in word]
    assert float(flag.split("=")[1]) == pytest.approx(8**-0.228, rel=1e-5)


def test_the_trainer_takes_the_arguments_of_every_arm(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    table = str(FOLDER / "alignment.json")
    planned = [*bowl({}), *objective_runs(table, Choice(1e-2))]
    some = {(run.part, run.arm): run for run in planned if run.part != "base"}
    for run in some.values():
        given = f"--alignment-table={table}"
        run = run._replace(flags=re.sub(r"--alignment-table=\S+", given, run.flags))
        config = parse(runs.arguments(run, tmp_path / run.arm.replace("/", "-")))
        assert (config.scale, config.maxp.method) == (run.scale, run.method)
        assert config.maxp.optimizer == ("muon" if run.part == "muon" else "adamw")
        assert config.training.steps == {"x2": 300, "x4": 600}.get(run.arm, plan.STEPS)


def test_an_interval_is_students_t():
    values = [1.0, 1.5, 1.2, 0.9]
    ours = results.Interval.of(values)
    low, high = scipy.stats.t.interval(0.95, 3, loc=np.mean(values), scale=scipy.stats.sem(values))
    assert (ours.low, ours.high) == pytest.approx((low, high))


def test_the_best_lr_is_that_of_the_parabola():
    lrs = [1e-3, 3e-3, 1e-2]
    losses = [(math.log(lr) - math.log(4e-3)) ** 2 for lr in lrs]
    assert results.optimum(lrs, losses) == pytest.approx(4e-3)


def test_the_power_is_the_slope_of_the_best_lr():
    def curve(best: float) -> pd.DataFrame:
        lrs = [best / 3, best, best * 3]
        rows = {seed: {lr: (math.log(lr / best)) ** 2 for lr in lrs} for seed in (1, 2, 3)}
        return pd.DataFrame(rows).T

    of = results.power({width: curve(width**-0.5) for width in (64, 128, 512)})
    assert of.mean == pytest.approx(-0.5)


def test_alignment_is_averaged_by_layer_type_and_fifth():
    sites = {"layers.0.wo": 0.5, "layers.1.wo": 0.7, "lm_head": 0.9}
    measured = [
        {
            "step": step,
            "sites": {s: {"align_z0_dW": v + 0.01 * (step // 20)} for s, v in sites.items()},
        }
        for step in range(0, 100, 10)
    ]
    cells = runs.by_type([{"step": 0, "loss": 1.0}, *measured], steps=99)
    assert cells["hidden_align_z0_dW"] == "0.6000 0.6100 0.6200 0.6300 0.6400"
    assert cells["readout_align_z0_dW"].startswith("0.9000 ")
    assert cells["embedding_align_z0_dW"] == cells["hidden_align_dZ_dW"] == ""


def test_the_predicted_power_is_the_smallest_slack():
    measured = pd.DataFrame(
        [(1, of, term, 4, value)
         for of, value in (("hidden", 0.6), ("readout", 0.7)) for term in runs.TERMS],
        columns=["seed", "type", "term", "fifth", "value"],
    )  # fmt: skip
    required = results.needed(measured, standard=False)
    assert required == pytest.approx({"embedding": 0.5, "hidden": 0.6, "readout": 0.2})
    used = {"embedding": 0.5, "hidden": 0.5, "readout": 0.5}
    assert results.predicted(used, required) == (pytest.approx(-0.1), "hidden")


def test_the_page_has_the_numbers_of_the_runs():
    page = (ROOT / "docs" / "results.md").read_text()
    data = results.Data(runs.read(FOLDER / "runs.csv"))
    texts = report.texts(data, read_solutions(str(FOLDER / "alignment.json")))
    assert fill(page, "results", texts) == page
    readme = (ROOT / "README.md").read_text()
    assert fill(readme, "results", {"headline": report.headline(data)}) == readme


def test_the_shortest_runs_of_the_horizon_are_those_of_the_base():
    data = results.Data(runs.read(FOLDER / "runs.csv"))
    lr = data.choice.lr
    ours, base = data.curve("horizon", "x1", BASE)[lr], data.curve("width", "mup-full", BASE)[lr]
    assert ours.to_dict() == base.to_dict()


def test_as_many_seeds_count_as_all_curves_have():
    def curve(seeds: int) -> pd.DataFrame:
        losses = {lr: [5.0] * seeds for lr in (5e-3, 1e-2, 2e-2)}
        return pd.DataFrame(losses, index=range(1, seeds + 1))

    assert seeds_of({150: curve(3), 300: curve(3)}) == 3
    assert seeds_of({150: curve(3), 300: curve(1)}) == 1


def test_a_diverged_run_is_never_the_best():
    curve = pd.DataFrame({1e-3: [5.0] * 3, 1e-2: [4.0, 4.0, math.inf]}, index=[1, 2, 3])
    assert results.best_lr(curve) == 1e-3
    assert results.regret(curve, 1e-2).mean == math.inf
