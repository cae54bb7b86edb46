"""Export measured alignment as a table, for method ``maxP-frozen`` at any scale.

    python -m slurm submit configs/sweeps/alignment.toml
    python -m train.alignment_table runs/alignment --to alignment.json

The recipe: measure passively, under mup-no at the base scale's best lr, with several seeds; take
the last quarter of each run, from step 100 on; and take the median over steps, seeds and all layers
of one kind (for example all ``feed_forward.w1``), so that the table fits a model of any depth.
"""

import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from train.run.files import write_whole
from train.run.folder import RunFolderError, RunRecord, load_run, read_config_file

ALIGNMENTS = ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")
Table = dict[str, tuple[float, float, float]]
Samples = dict[str, tuple[list[float], list[float], list[float]]]
Statistic = Literal["median", "mean"]

_PASSIVE = "mup-no"  # the method whose runs are preferred


def kind(site: str) -> str:
    """A site's name without its layer: ``attention.wo`` for ``layers.3.attention.wo``."""
    parts = site.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[numbers[-1] + 1 :]) if numbers else site


def pool(records: Iterable[Mapping[str, Any]]) -> Samples:
    """All finite values of the three exponents, by kind of site.

    Raises:
        ValueError: an exponent of a kind of site was never measured.
    """
    samples: Samples = defaultdict(lambda: ([], [], []))
    for record in records:
        for site, values in record.get("sites", {}).items():
            measured = [values.get(name) for name in ALIGNMENTS]
            if any(value is not None for value in measured):
                for column, value in zip(samples[kind(site)], measured, strict=True):
                    if value is not None and math.isfinite(value):
                        column.append(value)
    missing = [name for name, values in samples.items() if not all(values)]
    if missing or not samples:
        raise ValueError(
            f"no measured alignment for {', '.join(missing) or 'any site'} in the chosen steps; "
            "use runs of method maxP or with --maxp.measure, an earlier --first-step, or a larger "
            "--last-fraction"
        )
    return dict(sorted(samples.items()))


def condense(samples: Samples, statistic: Statistic) -> Table:
    """The median or mean of each exponent, by kind of site."""
    of = statistics.median if statistic == "median" else statistics.fmean
    return {name: (of(a), of(b), of(c)) for name, (a, b, c) in samples.items()}


def quartiles(values: list[float]) -> tuple[float, float]:
    """The lower and the upper quartile, interpolated linearly between values."""
    if len(values) == 1:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def write_table(path: Path, table: Table, source: Mapping[str, Any], **more: Any) -> None:
    """Write the table and where it is from, whole or not at all.

    Args:
        more: further keys of the file.

    Raises:
        ValueError: the file cannot be written.
    """
    content = {"source": dict(source), "order": ALIGNMENTS, "alignment": table, **more}
    try:
        write_whole(path, json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise ValueError(
            f"--to {path}: cannot be written ({error.strerror}); choose a file in another folder"
        ) from error


def read_table(path: str, sites: Collection[str] | None = None) -> Table:
    """Read a table that `write_table` wrote.

    Args:
        sites: names of the model's sites; None does not check that the table fits them.

    Raises:
        ValueError: one line: the file is missing, holds no table, or has a kind of site that the
            model lacks.
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
    known = None if sites is None else {kind(site) for site in sites}
    if known is not None and (foreign := [name for name in table if kind(name) not in known]):
        raise ValueError(
            f"--maxp.alignment-table {path}: from another kind of model: this one has no "
            f"{', '.join(foreign[:4])}, but {', '.join(sorted(known)[:4])}, ...; {remedy}"
        )
    return {name: (v[0], v[1], v[2]) for name, v in table.items()}


def choose(paths: Collection[Path]) -> list[Path]:
    """The folders of the runs to measure: all seeds of mup-no at the base's best lr.

    The base is the scale that is its own base, else the smallest. With other methods only, their
    runs are taken. One run alone is taken as it is.

    Raises:
        ValueError: there are no runs below ``paths``, none is completed, or there are several
            methods other than mup-no.
    """
    # Imported here: the trainer reads tables too, and needs no pandas.
    from train.results.analysis import Results
    from train.results.collect import UNREADABLE, collect
    from train.results.names import named

    where = " ".join(map(str, paths))
    runs = collect(*paths)
    unreadable = runs.loc[runs["state"] == UNREADABLE, "description"]
    runs = runs[runs["state"] != UNREADABLE]
    if len(runs) == 1:
        return [Path(runs["path"].iloc[0])]
    done = runs[runs["state"] == "completed"]
    if done.empty:
        why = f" ({named(unreadable)} unreadable)" if len(unreadable) else ""
        raise ValueError(f"RUNS {where}: no completed runs{why}; pass a sweep's folder, or runs")
    methods = sorted(done["method"].unique())
    method = _PASSIVE if _PASSIVE in methods else methods[0]
    if len(methods) > 1 and method != _PASSIVE:
        raise ValueError(f"RUNS {where}: runs of {' and '.join(methods)}; pass those of one method")
    own = runs[runs["method"] == method]
    results = Results.of(own, "validation" if own["validation"].notna().any() else "train")
    best = results.methods.dropna(subset=["best_loss"])
    if best.empty:
        raise ValueError(f"RUNS {where}: no lr at which all runs of {method} completed")
    at = best[best["at_base"]] if best["at_base"].any() else best
    row = at.iloc[0]
    chosen = results.runs[
        (results.runs["scale"] == row["scale"])
        & (results.runs["lr"] == row["best_lr"])
        & (results.runs["combination"] == row["combination"])
        & (results.runs["state"] == "completed")
    ]
    return [Path(path) for path in chosen.sort_values("seed")["path"]]


def _last_part(run: RunRecord, first_step: int, last_fraction: float) -> list[dict[str, Any]]:
    """The records of the last part of a run with the sites' values.

    Raises:
        ValueError: the run ends before ``first_step``.
    """
    records = [record for record in run.metrics if "sites" in record]
    last = max((record["step"] for record in records), default=0)
    if records and last < first_step:
        raise ValueError(
            f"--first-step {first_step}: {run.path} ends at step {last}; pass an earlier step"
        )
    first = max(first_step, (1 - last_fraction) * last)
    return [record for record in records if record["step"] >= first]


def export(
    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUNS [RUNS ...]", help_behavior_hint="(required)"),
    ],
    to: Path,
    statistic: Statistic = "median",
    last_fraction: float = 0.25,
    first_step: int = 100,
) -> None:
    """Export the alignment that runs measured, for method maxP-frozen.

    For example:

        python -m slurm submit configs/sweeps/alignment.toml
        python -m train.alignment_table runs/alignment --to alignment.json
        python -m train --scale cpu256 --method maxP-frozen --alignment-table alignment.json

    Args:
        runs: Folders of a sweep or of runs. Of several runs, all seeds of mup-no at the best
            learning rate of the base scale are taken.
        to: File to write.
        statistic: Over all layers of a kind, all seeds and the chosen steps.
        last_fraction: Part of each run that counts, from its end.
        first_step: First step that counts.
    """
    if not 0 < last_fraction <= 1:
        raise ValueError(f"--last-fraction {last_fraction:g}: must be above 0 and at most 1")
    if not runs:
        raise ValueError("RUNS: missing; pass a sweep's folder, or runs")
    records = [load_run(path) for path in choose(runs)]
    parts = [_last_part(run, first_step, last_fraction) for run in records]
    samples = pool(record for part in parts for record in part)
    table = condense(samples, statistic)
    spread = {name: [quartiles(values) for values in three] for name, three in samples.items()}
    source = _source(records, parts)
    rule = {"statistic": statistic, "last_fraction": last_fraction, "first_step": first_step}
    counts = {name: len(three[0]) for name, three in samples.items()}
    write_table(to, table, source | rule, quartiles=spread, samples=counts)
    print(f"{f'{statistic} (quartiles)':32s}", end="")
    print("".join(f"   {name:22s}" for name in ALIGNMENTS).rstrip())
    for name, values in table.items():
        cells = zip(values, spread[name], strict=True)
        print(f"{name:32s}" + "".join(f"{v:8.3f} ({q[0]:.3f} to {q[1]:.3f})" for v, q in cells))
    seeds = ", ".join(str(seed) for seed in source["seeds"])
    print(
        f"wrote {to}: {len(table)} kinds of sites, {statistic} over {source['method']} at "
        f"{source['scale']}, lr {source['lr']:g}, seeds {seeds}, steps {source['from_step']} to "
        f"{source['to_step']}"
    )


def _source(runs: list[RunRecord], parts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Where a table is from; the same runs give the same content."""
    first = runs[0].config
    steps = [record["step"] for part in parts for record in part]
    return {
        **{name: first.get(name) for name in ("scale", "method", "lr", "steps")},
        "seeds": [run.config.get("seed") for run in runs],
        "from_step": min(steps),
        "to_step": max(steps),
        "runs": [
            {"name": run.path.name, "identity": read_config_file(run.path).get("identity")}
            for run in runs
        ],
    }


def main() -> None:
    try:
        tyro.cli(export, prog="python -m train.alignment_table", config=(tyro.conf.DisallowNone,))
    except (RunFolderError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
