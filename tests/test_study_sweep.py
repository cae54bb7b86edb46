"""The study's sweeps: tuned constants, regret, predicted powers, and rules for depth."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scripts.study import depths, numbers, sweep, tuning
from scripts.study.files import read_rows
from scripts.study.mlp import METHODS, build
from scripts.study.plan import FULL, QUICK
from scripts.study.sweep import Factors

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "study"
SUMMARY = json.loads((COMMITTED / "summary.json").read_text())
SHORT = replace(QUICK.sweep, steps=21, measure_every=10)
FACTORS = Factors(4.0, 16.0)


def test_at_the_base_width_all_methods_are_the_same_run() -> None:
    runs = [sweep.measure(method, 16, 32, -7, FACTORS, 0, SHORT)[0] for method in METHODS]
    assert all({**run, "method": ""} == {**runs[0], "method": ""} for run in runs)
    assert math.isfinite(runs[0]["hidden_alignment"])


def test_at_another_width_the_methods_differ() -> None:
    runs = [sweep.measure(method, 16, 64, -7, FACTORS, 0, SHORT)[0] for method in METHODS]
    assert len({run["loss"] for run in runs}) == 3
    assert all(0 < run["readout_alignment"] < 1.1 for run in runs)


def test_factors_multiply_the_lr_of_the_embedding_and_of_the_readout() -> None:
    _, p = build(
        *("mup", "adam", 64, 3, 3, 1, 0.5, 0),
        base_width=32,
        lr_multipliers=FACTORS._asdict(),
    )
    # With m = 2: gamma m^-c, and c = 1/2, 1, 1/2.
    expected = {"embedding": 2.0 / 2**0.5, "hidden.0": 0.25, "readout": 8.0 / 2**0.5}
    expected["rest"] = 0.5
    assert p.lrs() == pytest.approx(expected)


def test_the_tuned_factors_have_the_smallest_geometric_mean_over_batch_sizes() -> None:
    losses = {(16, 1.0): 0.4, (128, 1.0): 0.1, (16, 4.0): 0.3, (128, 4.0): 0.15}
    rows = [
        *(
            {"batch": b, "readout_factor": f, "log2_lr": lr, "loss": loss * (1 + (lr == -6))}
            for (b, f), loss in losses.items()
            for lr in (-7, -6)
        ),
        {"batch": 16, "readout_factor": 16.0, "log2_lr": -7, "loss": math.nan},
        {"batch": 128, "readout_factor": 16.0, "log2_lr": -7, "loss": 0.01},
    ]
    table = pd.DataFrame(rows).assign(embedding_factor=1.0, seed=0)
    assert tuning.chosen(table) == Factors(1.0, 1.0)  # 0.4 * 0.1 < 0.3 * 0.15
    assert set(tuning.cells(table).log2_lr) == {-7}


def fake(method: str, best: dict[int, int], alignment: tuple[float, float]) -> pd.DataFrame:
    """Losses with the minimum at a given lr for each width, and measured alignment there."""
    return pd.DataFrame(
        {"method": method, "width": width, "seed": seed, "log2_lr": lr}
        | {"loss": 1.0 + seed + (1 + seed) * abs(lr - best[width])}
        | dict(
            zip(
                ("hidden_alignment", "readout_alignment"),
                alignment if lr == best[width] else (0.0, 0.0),
                strict=True,
            )
        )
        for width in best
        for seed in (0, 1)
        for lr in (-9, -8, -7, -6)
    )


def test_regret_is_the_mean_over_seeds_of_what_the_carried_lr_costs() -> None:
    regret = sweep.regret(fake("standard", {64: -6, 128: -8}, (0.8, 0.7)), "standard")
    assert regret.slope == pytest.approx(3.0)  # 2 and 4
    assert regret.half == pytest.approx(12.706, rel=1e-3)


def test_the_carried_difference_is_paired_over_seeds() -> None:
    one = fake("maxP", {64: -7, 128: -8}, (0.8, 0.7))
    other = fake("mup", {64: -7, 128: -7}, (0.8, 0.7))
    fit = sweep.carried_difference(pd.concat([one, other]), "maxP", "mup")
    assert fit.slope == pytest.approx(1.5)  # 1 and 2
    assert fit.half == pytest.approx(12.706 / 2, rel=1e-3)


def test_a_method_without_regret_has_none() -> None:
    assert sweep.regret(fake("mup", {64: -7, 128: -7}, (0.8, 0.7)), "mup").slope == 0


@pytest.mark.parametrize(
    ("method", "alignment", "power", "decides"),
    [
        ("standard", (0.8, 0.7), -0.8, "hidden"),
        ("standard", (0.3, 0.7), -0.7, "readout"),
        ("standard", (0.3, 0.2), -0.5, "hidden"),  # bounded by 1/2
        ("mup", (0.8, 0.7), 0.0, "embedding"),
        ("maxP", (0.8, 0.7), 0.0, "embedding"),
    ],
)
def test_the_predicted_power_is_the_c_used_minus_the_c_needed(
    method: str, alignment: tuple[float, float], power: float, decides: str
) -> None:
    said = sweep.prediction(fake(method, {64: -6, 128: -8}, alignment), method)
    assert said["power"] == pytest.approx(power)
    assert said["decides"] == decides
    assert (said["hidden"], said["readout"]) == pytest.approx(alignment)


def test_layers_of_mup_predict_one_minus_their_alignment() -> None:
    said = sweep.prediction(fake("mup", {64: -7, 128: -7}, (0.8, 0.7)), "mup")
    assert said["layers"] == pytest.approx({"embedding": 0, "hidden": 0.2, "readout": 0.3})


def test_growth_of_a_factor_that_is_a_power_times_a_constant_is_the_power() -> None:
    rows = fake("mup", {64: -7, 128: -7, 256: -7}, (0.0, 0.0))
    rows["hidden_alignment"] = np.log(0.2 * rows.width) / np.log(rows.width)
    said = sweep.prediction(rows, "mup")
    assert said["growth"]["hidden"] == pytest.approx(1)
    assert said["hidden"] < 0.7


def test_a_residual_layer_adds_to_its_input() -> None:
    model, _ = build("standard", "adam", 8, 3, 3, 1, 0.1, 0, base_width=8, residual=True)
    first, second, _ = model.outputs(torch.randn(2, 3))
    torch.testing.assert_close(second, first + first.relu() @ model.layers[1].weight.T)


def test_at_the_base_depth_all_rules_are_the_same_run() -> None:
    plan = replace(QUICK.depths, steps=10)
    runs = [
        depths.measure(arm, plan.blocks[0], -7, 0, FACTORS, plan, SHORT)[0]["loss"]
        for arm in ("residual", "half", "one")
    ]
    assert runs[0] == runs[1] == runs[2]


def test_a_rule_for_depth_sets_the_multiplier_and_the_lr_of_the_branches() -> None:
    plan = replace(QUICK.depths, steps=1)
    deeper = 2 * plan.blocks[0]
    runs = {
        arm: depths.measure(arm, deeper, -7, 0, FACTORS, plan, SHORT)[0]["loss"]
        for arm in depths.ARMS
    }
    assert len(set(runs.values())) == 4


@pytest.mark.parametrize("part", ["tuning", "sweep", "depths"])
def test_the_committed_rows_give_the_committed_numbers(part: str) -> None:
    compute = getattr(numbers, f"{part.removesuffix('s')}_numbers")
    again = numbers.rounded(compute(read_rows(COMMITTED, part)))
    assert json.loads(json.dumps(again)) == SUMMARY[part]


def test_the_committed_sweep_uses_the_committed_factors_and_sizes() -> None:
    rows = read_rows(COMMITTED, "sweep")
    assert set(rows.width) == set(FULL.sweep.widths)
    assert rows.groupby(["method", "batch", "width", "log2_lr"]).seed.nunique().eq(5).all()
    base = rows[rows.width == FULL.sweep.widths[0]].set_index(["batch", "log2_lr", "seed"])
    mup, adapted = (base[base.method == method].loss for method in ("mup", "maxP"))
    np.testing.assert_array_equal(mup, adapted)


def test_a_committed_run_of_the_base_width_is_trained_again() -> None:
    factors = tuning.chosen(read_rows(COMMITTED, "tuning"))
    rows = read_rows(COMMITTED, "sweep").query(
        "method == 'mup' and width == 64 and batch == 128 and log2_lr == -11 and seed == 0"
    )
    again = sweep.measure("mup", 128, 64, -11, factors, 0, FULL.sweep)[0]
    assert again["loss"] == pytest.approx(rows.loss.item(), rel=0.02)


def test_what_the_report_says_in_words_of_the_widths_holds() -> None:
    for batch in ("small", "large"):
        fits = SUMMARY["sweep"][batch]
        standard, mup = fits["standard"], fits["mup"]
        assert standard["regret"] > standard["regret_half"]
        assert mup["moved"] <= 1
        assert abs(mup["power"]) < mup["half"]
        assert mup["predicted"]["power"] == 0
        for fit in (standard, mup):  # the interval contains what is predicted
            assert abs(fit["power"] - fit["predicted"]["power"]) < fit["half"]
            assert abs(fit["power"] - fit["predicted"]["by_growth"]) < fit["half"]
        assert not any(best["at_edge"] for fit in fits.values() for best in fit["best"])
    small, large = SUMMARY["sweep"]["small"]["maxP"], SUMMARY["sweep"]["large"]["maxP"]
    assert small["moved"] == 0
    assert small["minus_mup"] + small["minus_mup_half"] < 0
    assert abs(large["minus_mup"]) < large["minus_mup_half"]
    assert abs(large["power"]) > large["half"]
    assert abs(large["power"] - large["predicted"]["by_growth"]) < large["half"]
    assert abs(small["power"] - small["predicted"]["by_growth"]) > small["half"]
    growths = [
        SUMMARY["sweep"][b][m]["predicted"]["growth"]["hidden"]
        for b in ("small", "large")
        for m in METHODS
    ]
    assert min(growths) == large["predicted"]["growth"]["hidden"]
    assert max(growths) == SUMMARY["sweep"]["small"]["mup"]["predicted"]["growth"]["hidden"]


def test_what_the_report_says_in_words_of_the_depths_holds() -> None:
    fits = SUMMARY["depths"]
    assert fits["residual"]["power"] + fits["residual"]["half"] < depths.DERIVED["residual"]
    assert fits["chain"]["power"] - fits["chain"]["half"] > depths.DERIVED["chain"]
    for rule in ("half", "one"):
        assert abs(fits[rule]["power"]) < fits[rule]["half"]
    assert not any(best["at_edge"] for fit in fits.values() for best in fit["best"])
