"""Sentences of docs/results.md on width and depth: what carries, at which loss, and why."""

import itertools

import numpy as np
import pandas as pd
import pytest
from sentences import CARRIED, DATA, interval, losses, said, tuned, with_half

from scripts.transfer import plan
from scripts.transfer.plan import ARMS, DEPTH_ARMS, DEPTHS, WIDEST
from scripts.transfer.results import needed, power, predicted


def test_a_sentence_that_is_gone_is_noticed() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        said("by about # for `nobody`")


def regret(arm: str) -> pd.Series:
    return (losses(arm)[CARRIED] - tuned(arm)).dropna()


def test_mup_full_alone_reaches_both_targets() -> None:
    assert said("Both targets of the design are reached by `mup-full`, by no other method.") == []
    (most,) = said("if the upper end of that interval at `cpu512` is below # nats")
    assert said("The target for the best method is that, and at most half of the regret of") == []
    carrying = {a for a in ARMS if not regret(a).any() or interval(regret(a))[1] < most}
    assert carrying == {"mup-full"}
    assert regret("mup-full").mean() <= regret("sp").mean() / 2


def test_carried_mup_full_beats_sp_tuned_at_the_widest_model() -> None:
    assert (
        said("Its loss there is lower than that of `sp` with a learning rate tuned at that") == []
    )
    (times,) = said("At # times the base's width, the carried learning rate is the best of the")
    assert times == plan.WIDTHS[WIDEST] / plan.WIDTHS[plan.BASE]
    assert interval(losses("mup-full")[CARRIED] - tuned("sp"))[1] < 0


def test_the_readme_says_what_carries_and_what_measuring_gives() -> None:
    readme = "../README.md"
    assert said("that of width 64 is also the best one of `mup-full` at width 512", readme) == []
    assert tuned("mup-full").name == CARRIED
    assert said("at the carried learning rate `maxP` was worse than `mup-full`", readme) == []
    assert interval(losses("maxP")[CARRIED] - losses("mup-full")[CARRIED])[0] > 0
    assert said("where both were tuned it was no better", readme) == []
    low, high = interval(tuned("maxP") - tuned("mup-full"))
    assert low < 0 < high


def test_measuring_is_worse_than_mup_full_and_not_told_from_mup_no() -> None:
    assert said("are worse than `mup-full`, and cannot be told from `mup-no`") == []
    for arm in ("maxP", "maxP-frozen"):
        assert interval(losses(arm)[CARRIED] - losses("mup-full")[CARRIED])[0] > 0
        low, high = interval(losses(arm)[CARRIED] - losses("mup-no")[CARRIED])
        assert low < 0 < high


def test_tuned_methods_but_sp_end_close_to_each_other() -> None:
    (most,) = said("all methods but `sp` end within # nats of each other")
    ends = [tuned(arm).mean() for arm in ARMS if arm != "sp"]
    assert most - 0.01 < max(ends) - min(ends) <= most
    assert tuned("sp").mean() > max(ends)


def test_tuned_methods_of_the_advice_cannot_be_told_apart() -> None:
    (most,) = said("`mup-full`, `mup-no` and `maxP` end within # nats of each other, which")
    pairs = list(itertools.combinations([tuned(a) for a in ("mup-full", "mup-no", "maxP")], 2))
    assert max(abs((one - other).mean()) for one, other in pairs) < most
    assert all(np.prod(interval(one - other)) < 0 for one, other in pairs)


def test_what_noise_does_to_the_regret_of_mup_full() -> None:
    found = said("the regret is #, # and # ± # at widths 128, 256 and 512: below 0.03 nats")
    regrets = [below_each_parabola(losses("mup-full", f"cpu{n}")) for n in (128, 256, 512)]
    assert [*(round(of.mean(), 3) for of in regrets), with_half(regrets[-1])[1]] == found
    beside = losses("mup-full")
    assert with_half(beside[1e-2] - beside[3e-3]) == tuple(
        said("At `cpu512`, the loss at 1e-2 minus that at 3e-3 is # ± #: three seeds cannot")
    )


def below_each_parabola(curve: pd.DataFrame) -> pd.Series:
    """By seed, the carried lr's loss minus the minimum of the parabola of that seed."""
    regrets = {}
    for seed, row in curve.loc[[1, 2, 3]].dropna(axis=1).iterrows():
        at = int(np.argmin(row))
        assert 0 < at < len(row) - 1
        logs = np.log(np.array(row.index[at - 1 : at + 2], dtype=float))
        second, first, constant = np.polyfit(logs - logs[1], row.iloc[at - 1 : at + 2], 2)
        regrets[seed] = row[CARRIED] - (constant - first**2 / (4 * second))
    return pd.Series(regrets)


def test_the_best_lr_falls_faster_than_predicted_by_what_the_page_says() -> None:
    (of_mup,) = said("by about # for `mup-full`")
    least, most = said("and by # to # for the other methods")
    gaps, forecasts = {}, {}
    for arm in ("sp", "mup-full", "mup-no", "maxP", "mup-no-head"):
        measured = DATA.alignment("width", arm, WIDEST, CARRIED)
        used = DATA.used("width", arm, WIDEST, CARRIED)
        forecasts[arm], _ = predicted(used, needed(measured, arm == "sp"))
        gaps[arm] = forecasts[arm] - power({n: losses(arm, s) for s, n in plan.WIDTHS.items()}).mean
    assert round(gaps.pop("mup-full"), 1) == of_mup
    assert (round(min(gaps.values()), 1), round(max(gaps.values()), 1)) == (least, most)
    assert said("The prediction is 0 by construction for two methods. `maxP` uses") == []
    assert {arm for arm, value in forecasts.items() if abs(value) < 0.005} == {"mup-full", "maxP"}
    assert said("For the others its order is right: it is lowest for `sp`.") == []
    assert min(forecasts, key=forecasts.__getitem__) == "sp"


def test_the_alignment_of_initial_weights_is_above_a_half_by_what_the_theory_says() -> None:
    least, most = said("above 1/2 by # to # in hidden layers", "theory.md")
    rows = DATA.frame[DATA.frame["part"].isin(["base", "width"])]
    last = rows["hidden_align_dZ_w0"].dropna().str.split().str[-1]
    excess = last[last != "-"].astype(float) - 0.5
    assert (round(excess.min(), 3), round(excess.max(), 3)) == (least, most)


def test_what_the_depth_ladder_shows() -> None:
    assert said("1e-2 stays the best of the grid under all three rules") == []
    best = {tuned(arm, scale, "depth").name for arm in DEPTH_ARMS for scale in DEPTHS}
    assert best == {CARRIED} == {1e-2}

    assert said("only (L / 2)^-1 tells it from both of its neighbors") == []
    deep = {arm: losses(arm, "cpu64-d16", "depth") for arm in DEPTH_ARMS}
    told = {
        arm: all(interval(curve[1e-2] - curve[other])[1] < 0 for other in (3e-3, 3e-2))
        for arm, curve in deep.items()
    }
    assert told == {"depth-0": False, "depth-1/2": False, "depth-1": True}
    below, half = said("there, (L / 2)^-1 ends # ± # nats below (L / 2)^-1/2")
    assert with_half(deep["depth-1/2"][1e-2] - deep["depth-1"][1e-2]) == (below, half)

    assert said("Only with it does the mean loss fall with each doubling of the depth") == []
    ladders = {
        arm: [losses(arm, scale, "depth")[CARRIED] for scale in DEPTHS] for arm in DEPTH_ARMS
    }
    falling = [a for a, of in ladders.items() if (np.diff([s.mean() for s in of]) < 0).all()]
    assert falling == ["depth-1"]
    assert said("three seeds cannot tell a single one of these steps from 0") == []
    steps = itertools.pairwise(ladders["depth-1"])
    assert all(np.prod(interval(deeper - less)) < 0 for less, deeper in steps)
