"""Export a run's measured alignment as a table, for method ``maxP-frozen`` at any scale.

    python -m train.alignment_table RUN --to FILE

The table holds means over the second half of the run and over all layers of one kind (for example
all ``feed_forward.w1``), so it fits a model of any depth.
"""

import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from train.run.files import write_whole
from train.run.folder import RunFolderError, load_run

ALIGNMENTS = ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")
Table = dict[str, tuple[float, float, float]]


def kind(site: str) -> str:
    """A site's name without its layer: ``attention.wo`` for ``layers.3.attention.wo``."""
    parts = site.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else site


def average(records: Iterable[Mapping[str, Any]], first_step: int) -> Table:
    """Mean exponents by kind of site, over the records from ``first_step`` on.

    Raises:
        ValueError: an exponent of a kind of site was never measured.
    """
    columns: dict[str, list[list[float]]] = defaultdict(lambda: [[], [], []])
    for record in records:
        if record.get("step", 0) < first_step:
            continue
        for site, values in record.get("sites", {}).items():
            measured = [values.get(name) for name in ALIGNMENTS]
            if any(value is not None for value in measured):
                for column, value in zip(columns[kind(site)], measured, strict=True):
                    if value is not None and math.isfinite(value):
                        column.append(value)
    missing = [name for name, values in columns.items() if not all(values)]
    if missing or not columns:
        raise ValueError(
            f"no measured alignment for {', '.join(missing) or 'any site'} from step {first_step} "
            "on; use a run of method maxP or with --maxp.measure, or an earlier --from-step"
        )
    return {
        name: (_mean(first), _mean(second), _mean(third))
        for name, (first, second, third) in sorted(columns.items())
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def write_table(path: Path, table: Table, source: Mapping[str, Any]) -> None:
    """Write the table and the coordinates of its run, whole or not at all.

    Raises:
        ValueError: the file cannot be written.
    """
    text = json.dumps({"source": dict(source), "order": ALIGNMENTS, "alignment": table}, indent=2)
    try:
        write_whole(path, text + "\n")
    except OSError as error:
        raise ValueError(
            f"--to {path}: cannot be written ({error.strerror}); choose a file in another folder"
        ) from error


def read_table(path: str) -> Table:
    """Read a table that `write_table` wrote.

    Raises:
        ValueError: one line: the file is missing, or holds no table.
    """
    remedy = "make one with `python -m train.alignment_table RUN --to FILE`"
    try:
        content = json.loads(Path(path).read_text())["alignment"]
        table = {str(name): tuple(float(v) for v in values) for name, values in content.items()}
    except FileNotFoundError:
        raise ValueError(f"--maxp.alignment-table {path}: no such file; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"--maxp.alignment-table {path}: not a table ({error}); {remedy}"
        ) from None
    if not table:
        raise ValueError(f"--maxp.alignment-table {path}: holds no alignment; {remedy}")
    for name, values in table.items():
        if len(values) != len(ALIGNMENTS) or not all(map(math.isfinite, values)):
            raise ValueError(f"--maxp.alignment-table {path}: {name} needs three numbers; {remedy}")
    return {name: (v[0], v[1], v[2]) for name, v in table.items()}


def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    to: Path,
    from_step: Annotated[
        int | None, tyro.conf.arg(help_behavior_hint="(default: half of the run's last step)")
    ] = None,
) -> None:
    """Export the alignment that a run measured, for method maxP-frozen.

    For example:

        python -m train.alignment_table runs/first --to alignment.json
        python -m train --scale s3 --method maxP-frozen --alignment-table alignment.json

    Args:
        run: The run's folder.
        to: File to write.
        from_step: First step of the averages.
    """
    record = load_run(run)
    last = max((m["step"] for m in record.metrics if "sites" in m), default=0)
    first = last // 2 if from_step is None else from_step
    table = average(record.metrics, first)
    names = ("scale", "method", "lr", "seed", "steps")
    source = {name: record.config.get(name) for name in names}
    write_table(to, table, source | {"from_step": first, "to_step": last})
    for name, values in table.items():
        print(f"{name:32s}" + "".join(f"{v:8.3f}" for v in values))
    print(f"wrote {to}: {len(table)} kinds of sites, steps {first} to {last} of {run}")


def main() -> None:
    try:
        tyro.cli(export, prog="python -m train.alignment_table", config=(tyro.conf.DisallowNone,))
    except (RunFolderError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
