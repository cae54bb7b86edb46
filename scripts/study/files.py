"""The study's folder: raw rows as CSV and JSON, each written whole."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from scripts.study.derived import NORMS
from train.run.files import write_whole

# Raw values to four digits: the measurements' own noise is larger.
_DIGITS = "%.4g"
# Columns that say where a value belongs; the rest are values.
_AT = ("depth", "width", "seed", "layer")
_KEYS = ("method", "optimizer", "batch", "depth", "width", "log2_lr", "seed", "step", "layer")


def write_single(folder: Path, rows: pd.DataFrame) -> None:
    """The single pass, as ``single`` and, once for all that start alike, ``norms``."""
    write_rows(folder, "single", rows.drop(columns=list(NORMS)))
    first = rows[(rows.optimizer == "adam") & (rows.method != "maxP")]
    write_rows(folder, "norms", first[["method", *_AT, *NORMS]])


def read_single(folder: Path) -> pd.DataFrame:
    """What `write_single` wrote, as it was; maxP starts as muP does."""
    rows, norms = read_rows(folder, "single"), read_rows(folder, "norms")
    start = rows.method.replace("maxP", "mup")
    found = rows.assign(start=start).merge(norms.rename(columns={"method": "start"}), how="left")
    return found.drop(columns="start")


def write_rows(folder: Path, name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """Write ``name.csv`` and ``name.json``; returns the rows as they will be read again."""
    keys = [key for key in _KEYS if key in rows]
    rows = rows[[*keys, *rows.columns.difference(keys, sort=False)]].sort_values(keys)
    write_whole(folder / f"{name}.csv", rows.to_csv(index=False, float_format=_DIGITS))
    rows = read_rows(folder, name)
    write_whole(folder / f"{name}.json", _as_json(rows, keys))
    return rows


def _as_json(rows: pd.DataFrame, keys: list[str]) -> str:
    """Keys as [value, times in a row] runs, values as lists: a third of one object a row."""
    runs = {}
    for key in keys:
        column = rows[key]
        starts = column.ne(column.shift()).cumsum()
        groups = column.groupby(starts)
        runs[key] = [[_plain(g.iloc[0]), len(g)] for _, g in groups]
    values = {c: [_plain(v) for v in rows[c]] for c in rows.columns if c not in keys}
    return json.dumps({"runs": runs, "values": values}, separators=(",", ":")) + "\n"


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if value != value else value


def read_rows(folder: Path, name: str) -> pd.DataFrame:
    """What `write_rows` wrote.

    Raises:
        ValueError: it is not there; names the part that makes it.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"--out {folder}: there is no {path.name}; run --part all first")
    return pd.read_csv(path)


def write_json(path: Path, value: Any) -> None:
    """Indented, so that a change of one number is a change of one line."""
    write_whole(path, json.dumps(value, indent=1) + "\n")
