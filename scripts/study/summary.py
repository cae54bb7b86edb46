"""Tables from the single pass: slopes with derived exponents, and variation."""

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from scripts.study import single_pass
from scripts.study.derived import QUANTITIES, RATIOS, TOTAL
from scripts.study.fits import finite_slope, slope, slope_of_mean_squares
from scripts.study.mlp import METHODS
from scripts.study.plan import FIT_FROM, OPTIMIZERS, Optimizer, SinglePass

# The largest difference from the derived exponent at which a slope counts as agreeing with it.
CLOSE = 0.1


def _fluctuating(quantity: str, optimizer: Optimizer, layer: int, depth: int) -> int:
    """How many random layers' fluctuations a quantity contains; see `fits.finite_slope`."""
    if quantity == "z":
        return layer
    if quantity == "delta":
        return depth - 1 - layer
    in_update = quantity in ("frobenius", "spectral", "output") and optimizer == "sgd"
    return depth - 1 if quantity in ("gradient", "grad") or in_update else 0


def slopes(rows: pd.DataFrame, plan: SinglePass) -> pd.DataFrame:
    """One row per method, optimizer, depth, layer and quantity, from width `FIT_FROM` up.

    Columns ``slope``, ``half`` (of the 95% interval), ``derived``, ``finite`` (derived, for these
    widths), ``off`` (slope - derived), ``close`` (|off| at most `CLOSE`). And from the mean square
    over seeds instead of the mean of logs: ``square``, ``square_half`` and ``square_finite``, which
    has no correction for fluctuations.
    """
    widths = np.array([w for w in sorted(plan.widths) if w >= FIT_FROM], dtype=np.float64)
    rows = rows[rows.width >= FIT_FROM].sort_values(["seed", "width"])
    fits = []
    models: dict[Any, pd.DataFrame] = dict(iter(rows.groupby(["method", "optimizer", "depth"])))
    for method, optimizer, depth in product(METHODS, OPTIMIZERS, plan.depths):
        derived = single_pass.derived_rows(method, optimizer, depth, plan)
        for layer, frame in models[method, optimizer, depth].groupby("layer"):
            exponents = derived[int(str(layer))]
            kind = exponents["kind"]
            fixed = plan.outputs if kind == "readout" else plan.inputs
            where = {"method": method, "optimizer": optimizer, "depth": depth}
            where |= {"layer": layer, "kind": kind}
            for quantity in QUANTITIES:
                values = frame[quantity].to_numpy(dtype=np.float64).reshape(-1, len(widths))
                fit, square = slope(widths, values), slope_of_mean_squares(widths, values)
                count = _fluctuating(quantity, optimizer, int(str(layer)), depth)
                finite, square_finite = (
                    finite_slope(widths, exponents[quantity], quantity, kind, layers, fixed)
                    for layers in (count, 0)
                )
                fits.append(
                    {
                        **where,
                        "quantity": quantity,
                        "slope": fit.slope,
                        "half": fit.half,
                        "derived": exponents[quantity],
                        # A total change is a sum, and a single power only at large widths.
                        "finite": math.nan if quantity == TOTAL else finite,
                        "square": square.slope,
                        "square_half": square.half,
                        "square_finite": math.nan if quantity == TOTAL else square_finite,
                    }
                )
    table = pd.DataFrame(fits)
    table["off"] = table.slope - table.derived
    table["close"] = table.off.abs() <= CLOSE
    return table


def variations(rows: pd.DataFrame, over: str, fixed: str) -> pd.DataFrame:
    """Coefficients of variation over widths (from `FIT_FROM`) or depths, of the means over seeds.

    Over widths, every layer has a row. Over depths, every kind of layer has one; ``hidden`` is the
    last hidden layer.

    Args:
        over: ``"width"`` or ``"depth"``.
        fixed: the other of the two.
    """
    rows = rows[rows.width >= FIT_FROM].copy()
    rows["kind"] = kinds(rows)
    if over == "depth":
        last = (rows.layer == rows.depth - 2) | (rows.kind != "hidden")
        rows = rows[last].assign(layer=-1)
    keys = ["method", "optimizer", "kind", fixed, "layer"]
    means = rows.groupby([*keys, over])[[*RATIOS, TOTAL]].mean().groupby(level=keys)
    return (means.std(ddof=0) / means.mean()).reset_index()


def kinds(rows: pd.DataFrame) -> pd.Series:
    """The layer type of every row."""
    last = np.where(rows.layer == rows.depth - 1, "readout", "hidden")
    return pd.Series(np.where(rows.layer == 0, "embedding", last), index=rows.index)
