"""What the single pass found: slopes beside derived exponents, and coefficients of variation."""

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from scripts.study import single_pass
from scripts.study.derived import QUANTITIES, RATIOS, TOTAL
from scripts.study.fits import finite_slope, slope
from scripts.study.mlp import METHODS
from scripts.study.plan import FIT_FROM, OPTIMIZERS, Optimizer, SinglePass

# Within this of the derived exponent a slope is what was derived.
CLOSE = 0.1


def _fluctuating(quantity: str, optimizer: Optimizer, layer: int, depth: int) -> int:
    """How many random layers' fluctuations are in a quantity; see `fits.finite_slope`."""
    if quantity == "z":
        return layer
    if quantity == "delta":
        return depth - 1 - layer
    in_update = quantity in ("frobenius", "spectral", "output") and optimizer == "sgd"
    return depth - 1 if quantity in ("gradient", "grad") or in_update else 0


def slopes(rows: pd.DataFrame, plan: SinglePass) -> pd.DataFrame:
    """A row for each method, optimizer, depth, layer and quantity, from width `FIT_FROM` up.

    Columns ``slope``, ``half`` (of the 95% interval), ``derived``, ``finite`` (derived, at these
    widths), ``off`` (slope - derived), ``close`` (|off| at most `CLOSE`).
    """
    widths = np.array([w for w in sorted(plan.widths) if w >= FIT_FROM], dtype=np.float64)
    rows = rows[rows.width >= FIT_FROM].sort_values(["seed", "width"])
    found = []
    models: dict[Any, pd.DataFrame] = dict(iter(rows.groupby(["method", "optimizer", "depth"])))
    for method, optimizer, depth in product(METHODS, OPTIMIZERS, plan.depths):
        model = models[method, optimizer, depth]
        derived = single_pass.derived_rows(method, optimizer, depth, plan)
        for layer, (_, frame) in enumerate(model.groupby("layer")):
            kind = derived[layer]["kind"]
            about = {"method": method, "optimizer": optimizer, "depth": depth}
            about |= {"layer": layer, "kind": kind}
            fixed = plan.outputs if kind == "readout" else plan.inputs
            for quantity in QUANTITIES:
                values = frame[quantity].to_numpy(dtype=np.float64).reshape(-1, len(widths))
                fit = slope(widths, values)
                exponent = derived[layer][quantity]
                count = _fluctuating(quantity, optimizer, layer, depth)
                finite = finite_slope(widths, exponent, quantity, kind, count, fixed)
                fitted = {"slope": fit.slope, "half": fit.half, "derived": exponent}
                # What a total change inherits adds to its own: one power at large widths only.
                fitted["finite"] = math.nan if quantity == TOTAL else finite
                found.append({**about, "quantity": quantity, **fitted})
    table = pd.DataFrame(found)
    table["off"] = table.slope - table.derived
    table["close"] = table.off.abs() <= CLOSE
    return table


def variations(rows: pd.DataFrame, over: str, fixed: str) -> pd.DataFrame:
    """Coefficients of variation over widths (from `FIT_FROM`), or over depths, of seeds' means.

    Over widths a layer is followed; over depths there is one layer of each kind, the last hidden
    one for ``hidden``.

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
    quantities = [*RATIOS, TOTAL]
    means = rows.groupby([*keys, over])[quantities].mean().groupby(level=keys)
    return (means.std(ddof=0) / means.mean()).reset_index()


def kinds(rows: pd.DataFrame) -> pd.Series:
    """The layer type of every row."""
    last = np.where(rows.layer == rows.depth - 1, "readout", "hidden")
    return pd.Series(np.where(rows.layer == 0, "embedding", last), index=rows.index)
