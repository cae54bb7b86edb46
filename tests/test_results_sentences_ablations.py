"""Sentences of docs/results.md on settings of `maxP` and on other objectives of the program."""

import pandas as pd
import pytest
import scipy.stats
from sentences import CARRIED, DOCS, interval, losses, said, tuned

from scripts.transfer import plan
from scripts.transfer.objectives import OBJECTIVES, read_solutions
from scripts.transfer.plan import ABLATED, ABLATIONS
from train.model.scales import get_scale


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
