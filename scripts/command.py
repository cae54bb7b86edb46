"""What the commands that check something share: one line for bad input, and a JSON file."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tyro

from scripts.bench import outputs


def run_command(
    options: type[Any], check: Callable[[Any], None], run: Callable[[Any], None], prog: str
) -> int:
    """Parse ``options`` from the command line, check and run them; returns the exit status."""
    parsed = tyro.cli(options, prog=prog)
    try:
        check(parsed)
        run(parsed)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def check_file(flag: str, path: Path | None) -> None:
    """Check that a file can be written there.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    outputs.check_folders(**{flag: path})
    if path is not None and path.suffix != f".{flag}":
        raise ValueError(f"--{flag} {path}: the name must end in .{flag}")


def write_json(path: Path, options: Any, results: Mapping[str, Any]) -> None:
    """Write the options, a dataclass, and the results to ``path``."""
    about = {key: str(v) if isinstance(v, Path) else v for key, v in asdict(options).items()}
    outputs.write_json(path, {**about, **results})
    print(f"wrote {path}")
