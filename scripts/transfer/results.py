"""Numbers of the experiment from the lines of its runs: regrets, differences, powers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scripts.parabola import minimum
from scripts.transfer.plan import BASE, DEPTH_BASE, Choice, Run, choice
from scripts.transfer.runs import TERMS, TYPES, losses
from train.results.transfer import half_interval


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95% interval (Student's t); without one if ``n`` is 1."""

    mean: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        kept = np.array([value for value in values if not math.isnan(value)])
        n = len(kept)
        if not n:
            return cls(math.nan, math.nan, math.nan, 0)
        mean = float(kept.mean())
        if n == 1 or not math.isfinite(mean):
            return cls(mean, math.nan, math.nan, n)
        half = half_interval(kept)
        return cls(mean, mean - half, mean + half, n)


class Data:
    """The runs of the experiment."""

    def __init__(self, frame: pd.DataFrame) -> None:
        self.frame = frame
        self.choice = _chosen(losses(frame))

    def curve(self, part: str, arm: str, scale: str) -> pd.DataFrame:
        """Losses: a row per seed, a column per lr, ascending. Only the carried factors at the base.

        The base of a ladder is one run for all arms.
        """
        frame = self.frame
        if part == "width" and scale == BASE:
            rows = frame[(frame["part"] == "base") & (frame["flags"] == self._base_flags())]
        else:
            arm = "depth-1" if (part, scale) == ("depth", DEPTH_BASE) else arm
            rows = frame.query("part == @part and arm == @arm and scale == @scale")
        return rows.pivot(index="seed", columns="lr", values="validation").sort_index(axis=1)

    def _base_flags(self) -> str:
        rows = self.frame[(self.frame["part"] == "base") & (self.frame["lr"] == self.choice.lr)]
        wanted = set(self.choice.flags())
        flags = [text for text in rows["flags"].unique() if wanted <= set(text.split())]
        return str(flags[0])

    def alignment(self, part: str, arm: str, scale: str, lr: float) -> pd.DataFrame:
        """Measured alignment: columns seed, layer type, term, fifth and value."""
        frame = self.frame
        rows = frame.query("part == @part and arm == @arm and scale == @scale and lr == @lr")
        cells = [
            (seed, of, term, fifth, float(text))
            for of, term in itertools.product(TYPES, TERMS)
            for seed, texts in zip(rows["seed"], rows[f"{of}_{term}"], strict=True)
            for fifth, text in enumerate(str(texts).split())
            if text != "-"
        ]
        return pd.DataFrame(cells, columns=["seed", "type", "term", "fifth", "value"])

    def used(self, part: str, arm: str, scale: str, lr: float) -> dict[str, float]:
        """The c of each layer type in the last fifth of the steps, over seeds."""
        rows = self.frame.query("part == @part and arm == @arm and scale == @scale and lr == @lr")
        types = ("embedding", "hidden", "readout")
        return {of: float(pd.to_numeric(rows[f"{of}_c"]).mean()) for of in types}


def _chosen(known: Mapping[Run, float]) -> Choice:
    chosen = choice(known)
    if chosen is None:
        raise ValueError("the runs at the base are not complete: make them with --processes 2")
    return chosen


def complete(curve: pd.DataFrame, seeds: int = 3) -> pd.DataFrame:
    """The columns that have the first ``seeds`` seeds; the others are not finished."""
    return curve.loc[:, curve.loc[curve.index <= seeds].notna().sum() == seeds]


def best_lr(curve: pd.DataFrame, seeds: int = 3) -> float:
    """The lr with the smallest mean over the first ``seeds`` seeds."""
    return float(str(complete(curve, seeds).loc[:seeds].mean().idxmin()))


def regret(curve: pd.DataFrame, carried: float, seeds: int = 3) -> Interval:
    """Loss at ``carried`` minus loss at the best lr, over the seeds that both have."""
    return Interval.of(list((curve[carried] - curve[best_lr(curve, seeds)]).dropna()))


def difference(one: pd.DataFrame, lr: float, other: pd.DataFrame, other_lr: float) -> Interval:
    """Loss of one minus loss of another, over the seeds that both have."""
    return Interval.of(list((one[lr] - other[other_lr]).dropna()))


def optimum(lrs: Sequence[float], values: Sequence[float]) -> float:
    """The lr at the minimum of a parabola in log lr through three losses (`parabola.minimum`)."""
    return math.exp(minimum(np.log(lrs), np.array(values)))


def power(curves: Mapping[int, pd.DataFrame], seeds: int = 3) -> Interval:
    """The slope of log best lr over log size, one value per seed.

    Args:
        curves: by size: width or depth.
    """
    x = np.log(list(curves))
    places = [optima(curve, seeds) for curve in curves.values()]
    slopes = [float(np.polyfit(x, np.log(y), 1)[0]) for y in zip(*places, strict=True)]
    return Interval.of(slopes)


def optima(curve: pd.DataFrame, seeds: int = 3) -> list[float]:
    """The lr at the minimum of each of the first ``seeds`` seeds, as `optimum` gives it."""
    places = []
    for seed in range(1, seeds + 1):
        column: pd.Series[float] = complete(curve, seeds).T[seed]
        places.append(optimum(list(column.index), list(column)))
    return places


def needed(measured: pd.DataFrame, standard: bool) -> dict[str, float]:
    """The c that the bounded program gives for measured alignment, by layer type.

    With the bounds it is max(align_z0_dW, align_dZ_dW) - a, each in [1/2, 1], and a = 1/2 for the
    head, -1/2 for the embedding in muP, 0 otherwise (docs/theory.md). The last fifth counts.
    """
    last = measured[measured["fifth"] == measured["fifth"].max()]
    means = last.groupby(["type", "term"])["value"].mean()
    c = {"embedding": 0.0 if standard else 0.5}
    for of in ("hidden", "readout"):
        largest = max(means[of, TERMS[0]], means[of, TERMS[2]])
        a = 0.5 if of == "readout" and not standard else 0.0
        c[of] = min(1.0, max(0.5, largest)) - a
    return c


def predicted(used: Mapping[str, float], required: Mapping[str, float]) -> tuple[float, str]:
    """The power of the best lr that alignment predicts, and the layer type that decides it."""
    slack = {of: used[of] - required[of] for of in required}
    decides = min(slack, key=slack.__getitem__)
    return slack[decides], decides
