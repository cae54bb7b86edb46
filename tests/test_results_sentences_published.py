"""Sentences of docs/results.md on the published result beside ours."""

import json
from pathlib import Path

import numpy as np
from sentences import CARRIED, DATA, DOCS, at_its_best, interval, losses, said, tuned, with_half

from scripts.transfer import plan, report
from scripts.transfer.recipes import RECIPES, table_of


def test_a_smaller_lr_of_the_head_explains_a_part_only() -> None:
    below, half = said("beats `mup-no` by # ± # nats where each has its best learning rate")
    assert with_half(tuned("mup-no") - tuned("mup-no-head")) == (below, half)
    assert half < below
    assert said("and not at the carried one") == []
    low, high = interval(losses("mup-no-head")[CARRIED] - losses("mup-no")[CARRIED])
    assert low < 0 < high
    (excess,) = said("published table amounts to `mup-no` with a c of the head that is # larger")
    assert excess == plan.READOUT_EXCESS


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
