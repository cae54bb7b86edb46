"""The sentences of docs/results.md say what docs/results/runs.csv has: figures and verdicts.

Numbers are read from the sentences, and computed anew from the losses of the runs.
"""

import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from scripts.transfer import plan, report, runs
from scripts.transfer.added import (
    LARGE_BATCH,
    LAW,
    horizon_curves,
    muon_curves,
    seeds_of,
)
from scripts.transfer.objectives import OBJECTIVES, read_solutions
from scripts.transfer.plan import ABLATED, ABLATIONS, ARMS, DEPTH_ARMS, DEPTHS, STEPS, WIDEST
from scripts.transfer.recipes import BATCH, RECIPES, table_of
from scripts.transfer.results import (
    Data,
    best_lr,
    needed,
    optima,
    power,
    predicted,
)
from train.model.scales import get_scale

DOCS = Path(__file__).parents[1] / "docs"
DATA = Data(runs.read(DOCS / "results" / "runs.csv"))
CARRIED = DATA.choice.lr
NUMBER = r"(-?\d[\d,]*(?:\.\d+)?)"


def said(sentence: str, page: str = "results.md") -> list[float]:
    """The numbers of a sentence of the page, where ``sentence`` has a #."""
    text = " ".join((DOCS / page).read_text(encoding="utf-8").split())
    pattern = re.escape(sentence).replace(r"\#", NUMBER)
    (match,) = re.finditer(pattern, text)
    return [float(number.replace(",", "")) for number in match.groups()]


def losses(arm: str, scale: str = WIDEST, part: str = "width") -> pd.DataFrame:
    return DATA.curve(part, arm, scale)


def tuned(arm: str, scale: str = WIDEST, part: str = "width") -> pd.Series:
    return at_its_best(losses(arm, scale, part))


def at_its_best(curve: pd.DataFrame) -> pd.Series:
    """Losses by seed at the lr with the smallest mean over the first three seeds."""
    first = curve.loc[[1, 2, 3]].dropna(axis=1)
    return curve[first.mean().idxmin()].dropna()


def interval(differences: pd.Series) -> tuple[float, float]:
    values = differences.dropna()
    low, high = scipy.stats.t.interval(
        0.95, len(values) - 1, loc=values.mean(), scale=scipy.stats.sem(values)
    )
    return float(low), float(high)


def with_half(differences: pd.Series) -> tuple[float, float]:
    """The mean, and half of its 95% interval, as the page has them."""
    low, high = interval(differences)
    return round((low + high) / 2, 3), round((high - low) / 2, 3)


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


def ablated() -> dict[str, pd.Series]:
    """The loss of each ablation minus that of maxP, by seed."""
    ours = losses("maxP", ABLATED)[CARRIED]
    changed = {a: losses(a, ABLATED, "ablation")[CARRIED] - ours for a in ABLATIONS}
    lr = tuned("no-base", plan.BASE, "ablation").name
    return changed | {"no-base": losses("no-base", ABLATED, "ablation")[lr] - ours}


def test_no_ablation_loses_more_than_that_without_a_base() -> None:
    assert said("`maxP` loses more than any other change of its settings costs") == []
    means = {arm: of.mean() for arm, of in ablated().items()}
    assert max(means, key=means.__getitem__) == "no-base"


def test_what_the_page_makes_of_the_ablations_whose_interval_leaves_out_0() -> None:
    (once,) = said("leaves out 0 by chance once in # comparisons, and the table has ten")
    assert once == 1 / 0.05  # of intervals with 95%
    by_arm = ablated()
    chances = {arm: scipy.stats.ttest_1samp(of.dropna(), 0).pvalue for arm, of in by_arm.items()}
    below = {arm: chance for arm, chance in chances.items() if chance < 0.05}
    assert len(chances) == 10
    assert list(below) == ["c-ema", "no-base"]
    assert [round(chance, 2) for chance in below.values()] == said("for that (p = # and #)")
    assert min(below.values()) > 0.05 / len(chances)

    (least,) = said("by its size: at least # nats in each seed, and on the mean more than seven")
    without = by_arm.pop("no-base")
    assert least <= without.min() < least + 0.01
    assert without.mean() > 7 * max(abs(of.mean()) for of in by_arm.values())
    assert said("at `cpu256`, 1e-1 is the best learning rate of its grid as well") == []
    assert {tuned("no-base", s, "ablation").name for s in (plan.BASE, ABLATED)} == {1e-1}


def test_coupled_decay_changes_the_loss_by_less_than_its_interval() -> None:
    assert said("changes the loss of `maxP` by less than its interval") == []
    low, high = interval(ablated()["coupled-decay"])
    assert low < 0 < high


def test_a_smaller_lr_of_the_head_explains_a_part_only() -> None:
    below, half = said("beats `mup-no` by # ± # nats where each has its best learning rate")
    assert with_half(tuned("mup-no") - tuned("mup-no-head")) == (below, half)
    assert half < below
    assert said("and not at the carried one") == []
    low, high = interval(losses("mup-no-head")[CARRIED] - losses("mup-no")[CARRIED])
    assert low < 0 < high
    (excess,) = said("published table amounts to `mup-no` with a c of the head that is # larger")
    assert excess == plan.READOUT_EXCESS


def test_what_the_other_objectives_show() -> None:
    assert said("Neither is better or worse than the sum by more than its interval") == []
    assert said("The solution of *squares* has the smallest sum as well") == []
    solved = read_solutions(str(DOCS / "results" / "alignment.json"))
    factors = []
    for objective in OBJECTIVES:
        curve = losses(objective, part="objective", scale=ABLATED)
        low, high = interval(curve[CARRIED] - losses("maxP-frozen", ABLATED)[CARRIED])
        assert low < 0 < high
        changes = [abs(c - solved["sum"][site]) for site, c in solved[objective].items()]
        ratio = get_scale(ABLATED).dim / get_scale("cpu64").dim
        factors.append(round(ratio ** max(changes), 2))
    found = said("changes by a factor of at most # with *maximum*, and # with *squares*")
    assert factors == found
    sums = [sum(solved[name].values()) for name in ("sum", "squares", "maximum")]
    assert sums[0] == pytest.approx(sums[1], abs=1e-5)
    assert sums[0] < sums[2] - 0.2


def test_no_change_of_the_recipe_makes_the_frozen_table_better() -> None:
    (most,) = said("under any of them, and the means differ by less than # nats")
    lowest = {}
    for name in RECIPES:
        ours, theirs = (at_its_best(curve) for curve in report.recipe_curves(DATA, name))
        lowest[name], high = interval(ours - theirs)
        assert lowest[name] < 0 < high
        assert abs((ours - theirs).mean()) < most
    (half,) = said("at least # nats, half of the published one")
    assert said("For the table and for bfloat16, the interval excludes half of the") == []
    assert said("For 2,048 tokens, it does not.") == []
    assert [name for name, low in lowest.items() if low < -half] == ["tokens-x4"]


def test_the_alignment_of_the_head_in_each_table() -> None:
    found = said(
        "has an alignment of # in the table of the base, # in that of passive runs, # with "
        "bfloat16 and # with 2,048 tokens"
    )
    base = DOCS / "results" / "alignment.json"
    files = [base, *(Path(table_of(str(base), name)) for name in RECIPES)]
    heads = [json.loads(file.read_text())["alignment"]["lm_head"] for file in files]
    largest = [max(z0_dw, dz_dw) for z0_dw, _, dz_dw in heads]
    assert [round(value, 2) for value in largest] == found
    least, most = said("So the c of the head rises by # to #")
    assert (round(min(largest) - 0.5, 2), round(max(largest) - 0.5, 2)) == (least, most)


def test_what_2048_tokens_do_to_the_best_lr() -> None:
    assert said("the best learning rate of `maxP-frozen` is the carried one, and that of") == []
    curves = report.recipe_curves(DATA, "tokens-x4")
    assert [at_its_best(curve).name for curve in curves] == [CARRIED, 3e-3]
    assert said("three seeds cannot tell these two learning rates apart, with either method") == []
    assert all(np.prod(interval(curve[CARRIED] - curve[3e-3])) < 0 for curve in curves)


def test_how_many_intervals_of_the_published_table_leave_out_0() -> None:
    assert said("The table has 18 intervals, and two of them leave out 0.") == []
    table = report.published(DATA)
    assert (table.count("±"), table.count("better") + table.count("worse")) == (18, 2)


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


def test_what_the_token_horizon_shows() -> None:
    assert said("the interval over three seeds contains -0.32, but also 0.") == []
    curves = horizon_curves(DATA)
    over_tokens = power(curves)
    assert over_tokens.low < LAW == -0.32 < 0 < over_tokens.high
    cost, fall = said("runs costs # nats on the longest, while the loss itself falls by # nats.")
    shortest, *_, longest = curves.values()
    lr = best_lr(shortest)
    assert round(longest[lr].mean() - longest[best_lr(longest)].mean(), 2) == cost
    assert round(shortest[lr].mean() - longest[lr].mean(), 1) == fall
    assert said("Four times the tokens move it by less than one step of a factor of 2.") == []
    moved = np.log(optima(shortest)).mean() - np.log(optima(longest)).mean()
    assert 0 < moved < math.log(2)


def test_what_muon_shows_over_widths() -> None:
    curves = muon_curves(DATA)
    bests = {width: best_lr(curve) for width, curve in curves.items()}
    assert said("The best ones at `cpu64` and at `cpu256` are two steps apart.") == []
    assert said("the best one of `cpu128` is also that of `cpu256`.") == []
    assert bests[64] / bests[256] == pytest.approx(4)
    assert bests[128] == bests[256]
    (spread,) = said("from 5e-3 to 2e-2 it differs by # nats, less than between seeds")
    flat = curves[64][[0.005, 0.01, 0.02]]
    assert round(float(np.ptp(flat.mean())), 2) == spread < np.ptp(flat[0.01])
    assert said("the interval of the power contains 0.") == []
    assert power(curves).low < 0 < power(curves).high
    (most,) = said("AdamW, is within # nats of Muon's best at each of the three widths")
    assert all((c[0.01] - c[bests[w]]).mean() < most for w, c in curves.items())
    (near,) = said("Muon and AdamW end within # nats of each other at `cpu64` and `cpu128`.")
    gaps = {w: c[bests[w]] - tuned("mup-full", f"cpu{w}") for w, c in curves.items()}
    assert max(abs(gaps[64].mean()), abs(gaps[128].mean())) < near
    assert with_half(gaps[256]) == tuple(said("At `cpu256`, Muon minus AdamW is # ± #: three"))
    assert said("In the third seed of `cpu64`, the best learning rate is at an end of the") == []
    ends = {seed: row.idxmin() in row.index[[0, -1]] for seed, row in curves[64].iterrows()}
    assert ends == {1: False, 2: False, 3: True}


def test_what_muon_shows_with_four_times_the_tokens_per_step() -> None:
    curves = muon_curves(DATA, LARGE_BATCH)
    bests = {width: best_lr(curve) for width, curve in curves.items()}
    (tokens,) = said("With # tokens per step, the learning rate of Muon carries")
    assert tokens == BATCH * 128
    assert all(f"--training.global_batch_size={BATCH}" in flags for flags in flags_of(LARGE_BATCH))
    assert said("The best ones at `cpu64` and at `cpu256` are one step apart,") == []
    assert bests[64] / bests[256] == pytest.approx(2)
    (cost,) = said("carrying the one of `cpu64` costs # nats at `cpu256`.")
    carried = curves[256][bests[64]] - curves[256][bests[256]]
    assert round(carried.loc[[1, 2, 3]].mean(), 3) == cost
    of = power(curves)
    assert said("the intervals of the two powers overlap") == []
    other = power(muon_curves(DATA))
    assert max(of.low, other.low) < min(of.high, other.high)
    assert said("by about half of the power above is not excluded") == []
    assert of.low < 0.5 * other.mean
    assert seeds_of(curves) == 3


def flags_of(arm: str) -> list[str]:
    """The flags of the runs of an arm."""
    return list(DATA.frame.query("arm == @arm")["flags"])


def test_the_length_of_the_runs() -> None:
    steps, tokens = said("These are short runs of small models: # steps of # tokens")
    scale = get_scale(plan.BASE)
    assert (steps, tokens) == (STEPS, scale.global_batch_size * scale.seq_len)
    (whole,) = said("at `cpu64`, # tokens are less than one per parameter")
    assert whole == steps * tokens < scale.non_embedding_params


def test_the_alignment_of_initial_weights_is_above_a_half_by_what_the_theory_says() -> None:
    least, most = said("above 1/2 by # to # in hidden layers", "theory.md")
    rows = DATA.frame[DATA.frame["part"].isin(["base", "width"])]
    last = rows["hidden_align_dZ_w0"].dropna().str.split().str[-1]
    excess = last[last != "-"].astype(float) - 0.5
    assert (round(excess.min(), 3), round(excess.max(), 3)) == (least, most)


def test_a_sentence_that_is_gone_is_noticed() -> None:
    with pytest.raises(ValueError, match="not enough values"):
        said("by about # for `nobody`")
