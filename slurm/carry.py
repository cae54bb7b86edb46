"""What a sweep's base scale predicts for its other scales, and what the prediction costs there.

The best lr and constants at the base are carried to every other scale. The numbers are those of
`train.results`; the sweep's folder says which of the predicted runs exist.
"""

import csv
import io
import json
import math
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import Any

from slurm.ledger import SweepFolder
from slurm.states import State, survey
from train.model.scales import find_scale
from train.results.analysis import Results
from train.results.collect import UNREADABLE, collect
from train.results.formats import grid
from train.results.names import Metric, in_order, lr_text, value_text
from train.results.notes import interval_text, regret_text
from train.results.transfer import base_scales
from train.run.files import plain
from train.run.identity import NO_BASE

NOT_IN_SWEEP = "not in the sweep"


class NoBaseError(Exception):
    """No run at the base scale is finished; the message is one line."""


@dataclass(frozen=True)
class Carried:
    """The best runs at the base, and a row per other scale and method.

    Attributes:
        base: the base scale.
        best: rows of `Results.methods` at the base, one per method.
        rows: rows of `Results.transfer`, with ``runs``: name -> state of each predicted run.
    """

    folder: SweepFolder
    results: Results
    base: str
    best: list[dict[Any, Any]]
    rows: list[dict[Any, Any]]


def carry(folder: SweepFolder, metric: Metric) -> Carried:
    """Read a sweep's folder.

    Raises:
        NoBaseError: no run at the base scale is finished.
    """
    planned = folder.runs()
    methods = in_order({run.method for run in planned})
    found = collect(folder.path)
    results = Results.of(found, metric, methods)
    base = _base(results, {run.scale for run in planned})
    at = results.methods.query("scale == @base and best_loss == best_loss")
    best = {row["method"]: row for row in at.to_dict("records")}
    if not best:
        remedy = "wait for one, or see `python -m slurm status`"
        if base not in {run.scale for run in planned}:
            remedy = "add it to the sweep's scales"
        raise NoBaseError(f"{folder.path}: no finished run at the base scale {base}: {remedy}")
    measured = {
        (row["scale"], row["method"]): row
        for row in results.transfer.to_dict("records")
        if row["from_scale"] == base
    }
    states = {standing.run.name: str(standing.state) for standing in survey(folder, planned)}
    bases = base_scales(results.runs)  # a sweep may have scales of several ladders
    sizes = {
        run.scale: find_scale(run.scale).non_embedding_params
        for run in planned
        if bases.get(run.scale, base) == base
    }
    rows = []
    for scale in sorted(sizes.keys() - {base}, key=sizes.__getitem__):
        for method in (name for name in methods if name in best):
            origin = best[method]
            point = results.points[origin["combination"]]
            runs = {
                run.name: states[run.name]
                for run in planned
                if (run.scale, run.method, run.lr) == (scale, method, origin["best_lr"])
                and all(
                    value_text(run.axes.get(name, value)) == value_text(value)
                    for name, value in point.items()
                )
            }
            unknown = dict.fromkeys(results.transfer.columns, math.nan) | {
                "scale": scale,
                "method": method,
                "from_scale": base,
                "lr": origin["best_lr"],
                "combination": origin["combination"],
                "best_combination": "",
                "seeds": 0,
                "outcome": "missing",
            }
            rows.append(measured.get((scale, method), unknown) | {"runs": runs})
    return Carried(folder, results, base, list(best.values()), rows)


def _base(results: Results, scales: set[str]) -> str:
    """The base scale of the runs that have begun, or else the smallest scale of the sweep."""
    begun = results.runs[results.runs["state"] != UNREADABLE]
    bases = sorted({*begun["base_scale"]} - {NO_BASE})
    if len(bases) == 1:
        return str(bases[0])
    return min(scales, key=lambda scale: find_scale(scale).non_embedding_params)


def as_text(carried: Carried, *, markdown: bool) -> str:
    """The best of the base, and a table of what is carried from it."""
    results = carried.results
    shared = bool(results.cells.query("scale == @carried.base")["at_base"].all())
    best = carried.best[:1] if shared else carried.best
    lines = [
        f"base {carried.base}, {'every method' if shared else row['method']}: {results.metric} "
        f"loss {row['best_loss']:.4f}{_spread(row)} at "
        f"{_point(row['best_lr'], row['combination'])}"
        for row in best
    ]
    axes = list(results.axes.values())
    heads = ["scale", "method", "lr", *axes, "runs", "loss", "best here", "regret", "95% interval"]
    table = grid([heads, *(_cells(carried, row) for row in carried.rows)], markdown)
    return "\n".join([*lines, "", *table, *_advice(carried)])


def _cells(carried: Carried, row: dict[Any, Any]) -> list[str]:
    point = carried.results.points[row["combination"]].values()
    here = "-"
    if not math.isnan(row["best_loss"]):
        where = _point(row["best_lr"], row["best_combination"])
        here = f"{row['best_loss']:.4f} at {where}"
    return [
        *(row["scale"], row["method"], lr_text(row["lr"]), *map(value_text, point)),
        _counted(row["runs"]),
        f"{row['loss']:.4f}" if math.isfinite(row["loss"]) else "-",
        here,
        "-" if row["outcome"] == "missing" else _regret(row),
        interval_text(row).removeprefix("95% ") or "-",
    ]


def _regret(row: dict[Any, Any]) -> str:
    if math.isfinite(row["regret"]):
        return f"{row['regret']:.4f}"
    return regret_text(row)


def _point(lr: float, combination: str) -> str:
    return f"lr {lr_text(lr)}{', ' * bool(combination)}{combination}"


def _spread(row: dict[Any, Any]) -> str:
    spread = "" if math.isnan(row["best_std"]) else f" ± {row['best_std']:.4f}"
    return f"{spread} (n = {row['best_seeds']})"


def _counted(runs: dict[str, str]) -> str:
    counts = Counter(runs.values())
    return ", ".join(f"{counts[s]} {s}" for s in State if counts[s]) or NOT_IN_SWEEP


def _advice(carried: Carried) -> list[str]:
    """The commands that start the predicted runs which have not begun, after an empty line."""
    states = {state for row in carried.rows for state in row["runs"].values()}
    lines = []
    if states & {State.MISSING, State.CANCELLED, State.VANISHED}:
        where = shlex.quote(str(carried.folder.path))
        lines.append(f"start missing runs: python -m slurm resume {where}")
    for row in carried.rows:
        if not row["runs"]:
            point = carried.results.points[row["combination"]]
            words = ["--scales", row["scale"], "--methods", row["method"], "--lrs", str(row["lr"])]
            words += [w for n, v in point.items() for w in ("--set", f"{n}={value_text(v)}")]
            command = f"python -m slurm submit SWEEP.toml {shlex.join(words)}"
            lines.append(f"{NOT_IN_SWEEP}: {command}")
    return ["", *lines] if lines else []


def as_csv(carried: Carried) -> str:
    """One line per scale and method, with full precision; unknown numbers are empty."""
    axes = list(carried.results.axes)
    lines = []
    for row in carried.rows:
        counts = Counter(row["runs"].values())
        line = {name: value for name, value in row.items() if "combination" not in name}
        line |= {str(state): counts[state] for state in State} | {"runs": len(row["runs"])}
        for prefix, point in (("", row["combination"]), ("best_", row["best_combination"])):
            values = carried.results.points.get(point, {})
            line |= {prefix + name: value_text(values[name]) for name in axes if name in values}
        lines.append({k: "" if _unknown(v) else v for k, v in line.items()})
    text = io.StringIO()
    heads = dict.fromkeys(name for line in lines for name in line)
    writer = csv.DictWriter(text, list(heads), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().rstrip("\n")


def _unknown(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def as_json(carried: Carried) -> str:
    """Everything with full precision; unknown and infinite numbers are null."""
    points = carried.results.points
    best = [
        {
            "method": row["method"],
            "lr": row["best_lr"],
            "loss": row["best_loss"],
            "std": row["best_std"],
            "seeds": row["best_seeds"],
            "axes": points[row["combination"]],
        }
        for row in carried.best
    ]
    rows = [
        {name: value for name, value in row.items() if "combination" not in name}
        | {"axes": points[row["combination"]], "best_axes": points.get(row["best_combination"])}
        for row in carried.rows
    ]
    content: dict[str, Any] = {"metric": carried.results.metric, "base": carried.base}
    content |= {"best": best, "carried": rows}
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)
