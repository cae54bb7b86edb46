"""Sentences of docs/results.md on Muon."""

import numpy as np
import pytest
from sentences import DATA, said, tuned, with_half

from scripts.transfer.added import LARGE_BATCH, method_arm, muon_curves, seeds_of
from scripts.transfer.recipes import BATCH
from scripts.transfer.report import muon_method_curve
from scripts.transfer.results import best_lr, power


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


def test_what_maxp_shows_with_muon() -> None:
    ours, theirs = (muon_method_curve(DATA, method) for method in ("maxP", "mup-full"))
    assert said("the learning rate carries for `maxP` too") == []
    assert said("The best one of its grid at `cpu256` is the carried one, 2e-2.") == []
    carried = best_lr(muon_curves(DATA, LARGE_BATCH)[64])
    assert best_lr(ours) == carried == 0.02
    assert ours.columns[0] < carried < ours.columns[-1]
    assert said("Three seeds cannot tell `maxP` from `mup-full` there.") == []
    beside = with_half(ours[carried] - theirs[carried])
    assert beside == tuple(said("At 2e-2, `maxP` minus `mup-full` is # ± #."))
    assert abs(beside[0]) < beside[1]
    (hidden,) = said("measuring left `c` of all hidden layers at #.")
    start, low, high = said("It lowered `c` of the head from # to between # and #.")
    runs = DATA.frame[DATA.frame["arm"] == method_arm("maxP")]
    assert set(runs["hidden_c"].astype(float)) == {hidden} == {start}
    heads = runs["readout_c"].astype(float)
    assert low < heads.min() < low + 0.01
    assert high - 0.01 < heads.max() < high


def test_what_the_other_methods_show_with_muon() -> None:
    theirs, no, sp = (muon_method_curve(DATA, m) for m in ("mup-full", "mup-no", "sp"))
    carried = best_lr(muon_curves(DATA, LARGE_BATCH)[64])
    beside = with_half(no[carried] - theirs[carried])
    assert beside == tuple(said("`mup-no` cannot be told from `mup-full` either: # ± # at 2e-2."))
    assert abs(beside[0]) < beside[1]
    assert said("Its best learning rate is one step below.") == []
    assert best_lr(no) == pytest.approx(carried / 2)
    assert with_half(sp[carried] - theirs[carried]) == tuple(said("by # ± # at 2e-2. Where each"))
    tuned_both = with_half(sp[best_lr(sp)] - theirs[best_lr(theirs)])
    assert tuned_both == tuple(said("it is still worse by # ± #."))
    assert tuned_both[0] > tuned_both[1]


def flags_of(arm: str) -> list[str]:
    """The flags of the runs of an arm."""
    return list(DATA.frame.query("arm == @arm")["flags"])
