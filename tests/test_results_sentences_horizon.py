"""Sentences of docs/results.md on how long the runs are, and on longer ones."""

import math

import numpy as np
from sentences import DATA, said

from scripts.transfer import plan
from scripts.transfer.added import LAW, horizon_curves
from scripts.transfer.plan import STEPS
from scripts.transfer.results import best_lr, optima, power
from train.model.scales import get_scale


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


def test_the_length_of_the_runs() -> None:
    steps, tokens = said("These are short runs of small models: # steps of # tokens")
    scale = get_scale(plan.BASE)
    assert (steps, tokens) == (STEPS, scale.global_batch_size * scale.seq_len)
    (whole,) = said("at `cpu64`, # tokens are less than one per parameter")
    assert whole == steps * tokens < scale.non_embedding_params
