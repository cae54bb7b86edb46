"""The numbers of sentences of docs/results.md, and the runs' losses to compute them anew."""

import re
from pathlib import Path

import pandas as pd
import scipy.stats

from scripts.transfer import runs
from scripts.transfer.plan import WIDEST
from scripts.transfer.results import Data

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
