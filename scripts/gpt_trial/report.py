"""The table and the figure of the trial, from the file of its runs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from scripts.gpt_trial.run import ARMS, Run
from scripts.marked import table
from train.results import style
from train.run.files import write_whole

COLUMNS = (*Run._fields, "loss")


def read_losses(file: Path) -> dict[Run, float]:
    """The held-out loss of each run. A line that was not written to its end is left out.

    Raises:
        ValueError: a line is not that of a run; names it.
    """
    if not file.exists():
        return {}
    losses = {}
    head, *lines = file.read_text().split("\n")[:-1] or [""]
    for number, text in enumerate(lines, 2):
        try:
            arm, width, log2_lr, seed, loss = text.split(",")
            losses[Run(arm, int(width), int(log2_lr), int(seed))] = float(loss)
        except ValueError:
            raise ValueError(f"{file}, line {number}: {text!r} is no run; delete it") from None
    if losses and head != ",".join(COLUMNS):
        raise ValueError(f"{file}: its columns are {head}; move it away")
    return losses


def write_losses(file: Path, losses: Mapping[Run, float]) -> None:
    lines = [line(run, loss) for run, loss in losses.items()]
    write_whole(file, "".join([",".join(COLUMNS), "\n", *lines]))


def line(run: Run, loss: float) -> str:
    """The line of a run."""
    return ",".join([*map(str, run), f"{loss:.5f}"]) + "\n"


@dataclass(frozen=True)
class Curves:
    """The losses of an arm over learning rates, at each width.

    Attributes:
        losses: a data frame with a row per seed that has all its runs, and a column per width and
            log2 lr. The loss of a run that diverged is infinite.
    """

    arm: str
    losses: Any

    @property
    def seeds(self) -> int:
        return len(self.losses)

    @property
    def widths(self) -> list[int]:
        return sorted(self.losses.columns.unique("width"))

    def best(self, width: int) -> int:
        """The log2 lr with the smallest mean loss."""
        return int(self.losses[width].mean().idxmin())

    def at(self, width: int, log2_lr: int) -> "pd.Series[float]":
        """The loss of each seed."""
        return self.losses[width, log2_lr]

    @property
    def at_edge(self) -> list[int]:
        """The widths at which the best lr is the first or the last of the grid."""
        grids = {width: self.losses[width].columns for width in self.widths}
        return [w for w, grid in grids.items() if self.best(w) in (min(grid), max(grid))]


def curves(losses: Mapping[Run, float]) -> dict[str, Curves]:
    """By arm; those with a complete seed."""
    rows = pd.DataFrame([(*run, loss) for run, loss in losses.items()], columns=list(COLUMNS))
    rows["loss"] = rows["loss"].fillna(math.inf)
    by_arm = {}
    for arm in ARMS:
        mine = rows[rows["arm"] == arm]
        wide = mine.pivot(index="seed", columns=["width", "log2_lr"], values="loss").dropna()
        if len(wide):
            by_arm[arm] = Curves(arm, wide.sort_index(axis=1))
    return by_arm


def summary(by_arm: Mapping[str, Curves]) -> str:
    """The table: a row per arm. What is compared is compared within seeds."""
    widths = next(iter(by_arm.values())).widths
    small, wide = widths[0], widths[-1]
    heads = ["", "seeds", *(f"width {width}: best lr, loss" for width in widths)]
    heads += [f"lr carried from {small}, loss at {wide}", f"regret at {wide}"]
    heads += [f"carried, minus tuned standard at {wide}"]
    standard = by_arm.get("standard")
    rows = []
    for arm, of in by_arm.items():
        bests = [f"2^{of.best(w)}, {_mean(of.at(w, of.best(w)))}" for w in widths]
        carried = of.at(wide, of.best(small))
        row = [ARMS[arm].title, str(of.seeds), *bests, _mean(carried)]
        row.append(_mean(carried - of.at(wide, of.best(wide))))
        row.append(
            "" if standard is None else _mean(carried - standard.at(wide, standard.best(wide)))
        )
        rows.append(row)
    return table(heads, rows)


def _mean(losses: "pd.Series[float]") -> str:
    """Mean and standard error over seeds."""
    values = losses.dropna().to_numpy()
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1) / math.sqrt(len(values)):.3f}"


def figure(by_arm: Mapping[str, Curves]) -> Figure:
    """Loss against learning rate: a panel per arm, a line per width.

    Bands are ± one standard error. A ring marks the best lr of each width, a dotted line that of
    the smallest width.
    """
    with style.drawing():
        drawn, panels = style.panels(len(by_arm))
        for axes, (arm, of) in zip(panels, by_arm.items(), strict=True):
            for width, color in zip(of.widths, style.PALETTE, strict=False):
                losses = of.losses[width].replace(math.inf, np.nan)
                mean, error = losses.mean(), losses.sem().fillna(0.0)
                lrs = 2.0 ** mean.index.to_numpy(dtype=float)
                axes.plot(lrs, mean, ".-", color=color, label=f"width {width}")
                axes.fill_between(lrs, mean - error, mean + error, color=color, alpha=0.2, lw=0)
                best = of.best(width)
                axes.plot(2.0**best, mean[best], "o", mfc="none", ms=10, color=color)
            axes.axvline(2.0 ** of.best(of.widths[0]), color=style.INK, ls=":", lw=1)
            axes.set_xscale("log", base=2)
            axes.set(title=ARMS[arm].title, xlabel="learning rate")
        low = min(of.losses.mean().min() for of in by_arm.values())
        for axes in panels:
            axes.set_ylim(low - 0.02, low + 0.3)
        panels[0].set_ylabel("held-out loss (nats per byte)")
        panels[0].legend()
    return drawn
