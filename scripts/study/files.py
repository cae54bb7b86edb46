"""The measured rows as CSV files."""

from pathlib import Path

import pandas as pd

from train.run.files import write_whole

# The columns that identify a row, in this order; the other columns are measurements.
_KEYS = (
    *(
        "method",
        "optimizer",
        "batch",
        "depth",
        "blocks",
        "width",
        "embedding_factor",
        "readout_factor",
    ),
    *("log2_lr", "seed", "step", "layer"),
)


def write_rows(folder: Path, name: str, rows: pd.DataFrame) -> None:
    """Write ``name.csv``, sorted, with four significant digits: the noise is larger."""
    keys = [key for key in _KEYS if key in rows]
    rows = rows[[*keys, *rows.columns.difference(keys, sort=False)]].sort_values(keys)
    write_whole(folder / f"{name}.csv", rows.to_csv(index=False, float_format="%.4g"))


def read_rows(folder: Path, name: str) -> pd.DataFrame:
    """Read what `write_rows` wrote.

    Raises:
        ValueError: the file is missing; names the part of the study that makes it.
    """
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise ValueError(f"--out {folder}: {path.name} is missing; run --part {name} first")
    return pd.read_csv(path)
