"""The gradient ratio over widths and depths, standard beside muP, for docs/study/heatmap.md."""

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from scripts.study.fits import geometric
from scripts.study.mlp import build
from scripts.study.plan import SinglePass
from scripts.study.pool import run_all
from scripts.study.rank_one import first_step, measured
from scripts.study.single_pass import fixed_input, forward_backward
from scripts.study.summary import kinds

WIDEST = 1024
INITS = ("standard", "mup")
# Column of the table, after the method's name -> (layer type, quantity of `rank_one.measured`).
COLUMNS = {
    "readout": ("readout", "gradient"),
    "hidden": ("hidden", "gradient"),
    "change": ("hidden", "output"),
}
# The derived exponents of the columns; see `derived.derive`.
EXPONENTS = {
    "standard_readout": 0.5,
    "mup_readout": 0.0,
    "standard_hidden": 0.0,
    "mup_hidden": -0.5,
    "standard_change": 1.0,
    "mup_change": 0.0,
}


def measure(width: int, depth: int, seed: int, plan: SinglePass) -> list[dict[str, Any]]:
    """One row per method and layer: the gradient ratio, and the output's change by Adam's step."""
    rows = []
    for method in INITS:
        size = (width, depth, plan.inputs, plan.outputs)
        model, p = build(method, "adam", *size, plan.lr, seed)
        x, lrs = fixed_input(plan.inputs), p.lrs()
        sites = forward_backward(model, x, dict.fromkeys(lrs, math.nan))
        for i, (name, site) in enumerate(sites.items()):
            values = measured(site, first_step(site, "adam", lrs[name]))
            where = {"method": method, "width": width, "depth": depth, "seed": seed, "layer": i}
            rows.append({**where, **{key: values[key] for key in ("gradient", "output")}})
    return rows


def run(plan: SinglePass, workers: int) -> pd.DataFrame:
    """One row per width up to `WIDEST` and depth; see `table`."""
    plan = replace(plan, widths=tuple(w for w in plan.widths if w <= WIDEST))
    tasks = product(plan.widths[::-1], plan.depths[::-1], range(plan.seeds), [plan])
    return table(run_all(measure, tasks, workers=workers, label="heat map"))


def table(rows: pd.DataFrame) -> pd.DataFrame:
    """Geometric means over seeds, and over the hidden layers of a model.

    Columns ``width``, ``depth`` and those of `EXPONENTS`; the hidden ones are NaN at depth 2.
    """
    keys = ["width", "depth"]
    kind = kinds(rows)
    columns = {
        f"{method}_{name}": geometric(
            rows[(rows.method == method) & (kind == layer)], keys, quantity
        )
        for name, (layer, quantity) in COLUMNS.items()
        for method in INITS
    }
    return pd.DataFrame(columns).reset_index()[[*keys, *EXPONENTS]]


def activations(rows: pd.DataFrame) -> pd.DataFrame:
    """How the last layer before the readout changes scale in training, from `training.run`.

    Columns ``depth``, ``width``, ``step``; ``activation``, the rms of the layer's output (geometric
    mean over seeds); ``loss`` of the batch and ``accuracy`` after the last step (means over seeds).
    """
    last = rows[rows.layer == rows.depth - 2]
    keys = ["depth", "width", "step"]
    means = last.groupby(keys)[["loss", "accuracy"]].mean()
    means.insert(0, "activation", geometric(last, keys, "activation"))
    return means.reset_index()


def numbers(ratios: pd.DataFrame, trained: pd.DataFrame) -> dict[str, Any]:
    """The numbers of the page, from `table` and `activations`."""
    narrow, wide = int(ratios.width.min()), int(ratios.width.max())
    shallow, deep = int(ratios.depth.min()), int(ratios.depth.max())
    depths = sorted(ratios.depth.unique())
    middle = ratios[ratios.depth == depths[len(depths) // 2]].sort_values("width")
    widest = ratios[ratios.width == wide]
    by_layer = [ratios[f"standard_{k}"] / ratios[f"mup_{k}"] for k in ("readout", "hidden")]
    off = [(quotient / np.sqrt(ratios.width) - 1).abs().max() for quotient in by_layer]
    by_depth = [_powers(mine.dropna(axis=1)) for _, mine in ratios.groupby("depth")]
    misses = [abs(d[k]["power"] - EXPONENTS[k]) for d in by_depth for k in EXPONENTS if k in d]
    return {
        "narrow": narrow,
        "wide": wide,
        "shallow": shallow,
        "deep": deep,
        "by_depth": by_depth,
        "largest_miss": max(misses),
        "derived": EXPONENTS,
        "fall": {
            **{init: float(_largest(widest[f"{init}_readout"])) for init in INITS},
            "derived": 2 ** ((deep - shallow) / 2),
        },
        "off_percent": 100 * float(max(off)),
        "multipliers": {
            "depth": int(middle.depth.iloc[0]),
            "rows": [_scaled(middle, power) for power in (0.0, 0.5, 1.0)],
        },
        "trained": [_start_and_end(mine) for _, mine in trained.groupby(["depth", "width"])],
    }


def _largest(values: pd.Series) -> Any:
    return values.max() / values.min()


def _powers(rows: pd.DataFrame) -> dict[str, Any]:
    """`_over_widths` of each column, of the rows of one depth."""
    names = rows.columns.intersection(list(EXPONENTS))
    return {"depth": int(rows.depth.iloc[0]), **{name: _over_widths(rows, name) for name in names}}


def _over_widths(rows: pd.DataFrame, name: str) -> dict[str, float]:
    """The value at the largest width over that at the smallest, and the fitted power of n."""
    rows = rows.sort_values("width")
    values = rows[name].to_numpy()
    power = np.polyfit(np.log(rows.width), np.log(values), 1)[0]
    return {"factor": float(values[-1] / values[0]), "power": float(power)}


def _scaled(rows: pd.DataFrame, power: float) -> dict[str, float]:
    """The standard readout's ratio with a multiplier n^-power, over widths."""
    values = rows.standard_readout * rows.width**-power
    fit = _over_widths(rows.assign(value=values), "value")
    return {"a": power, "power": fit["power"], "cv": float(values.std(ddof=0) / values.mean())}


def _start_and_end(rows: pd.DataFrame) -> dict[str, Any]:
    """The first and the last observed step of one model size."""
    first, last = rows.sort_values("step").iloc[[0, -1]].to_dict("records")
    same = {key: first[key] for key in ("depth", "width", "accuracy")}
    return {**same, "start": first["activation"], "end": last["activation"]}
