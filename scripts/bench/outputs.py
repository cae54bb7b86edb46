"""The files that a benchmark writes on request: ``--json`` and ``--plot``."""

import io
import json
from pathlib import Path
from typing import Any

from train.run.files import write_whole


def check_folders(**files: Path | None) -> None:
    """Refuse a file that cannot be written, before minutes of measuring.

    Args:
        files: by the name of the flag; None where the flag is not given.

    Raises:
        ValueError: one line that names the flag.
    """
    for flag, path in files.items():
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"--{flag} {path}: no folder {path.parent}; create it first")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure in the format of the path's suffix; an SVG without its date."""
    stream = io.BytesIO()
    metadata = {"Date": None} if path.suffix == ".svg" else None
    figure.savefig(stream, format=path.suffix.removeprefix("."), dpi=150, metadata=metadata)
    write_whole(path, stream.getvalue())
