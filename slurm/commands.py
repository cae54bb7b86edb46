"""The commands of ``python -m slurm`` and their flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from slurm.sweep import Overrides
from train.results.names import Format, Metric

RUNS = "runs"

SweepFile = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP.toml")]
Sweep = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP")]
Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN")]


@dataclass
class Submit:
    """Submit the runs of a sweep that were never submitted."""

    sweep: SweepFile
    """A sweep file, as configs/sweeps/s1.toml."""

    overrides: Annotated[Overrides, tyro.conf.arg(name="")]

    cluster: str = "local"
    """Name of a cluster file (configs/clusters, ~/.config/maxp/clusters), or its path."""

    runs_dir: Path | None = None
    """Where the sweep's folder goes; by default what the cluster file says, or "runs"."""

    dry_run: bool = False
    """Print each job's script and what the sweep will cost; submit nothing."""


@dataclass
class Status:
    """Say where each run stands."""

    sweep: Sweep
    """A sweep's folder (runs/NAME), or its file."""

    runs_dir: Path = Path(RUNS)
    """Where the folder of a sweep that is named by its file lies."""

    format: Literal["text", "json"] = "text"
    """Text, or one JSON object a line."""

    watch: float | None = None
    """Print again every so many seconds, until no run is left that goes on by itself."""

    all: bool = False
    """List every run. Of a sweep with over 100 runs, those that run or need somebody are listed."""


@dataclass
class Cancel:
    """End jobs that run or wait; their runs can be resumed."""

    sweep: Sweep
    """A sweep's folder, or its file."""

    runs: Names = ()
    """Names of runs; by default all."""

    runs_dir: Path = Path(RUNS)
    """Where the folder of a sweep that is named by its file lies."""


@dataclass
class Resume:
    """Submit what is missing: runs never submitted, cancelled, or whose job has vanished."""

    sweep: Sweep
    """A sweep's folder, or its file."""

    runs: Names = ()
    """Names of runs; by default all."""

    cluster: str | None = None
    """By default the cluster that the runs were submitted to."""

    runs_dir: Path = Path(RUNS)
    """Where the folder of a sweep that is named by its file lies."""


@dataclass
class Retry(Resume):
    """Submit runs that failed once more."""


@dataclass
class Table:
    """Print the loss tables: rows lr, columns methods."""

    sweep: Sweep
    """A sweep's folder, or its file."""

    metric: Metric = "validation"
    """Validation loss at the end, or mean training loss over the last 10% of the steps."""

    format: Format = "text"
    """text, markdown, csv, json or latex."""

    to: Path | None = None
    """A file to write instead of printing."""

    runs_dir: Path = Path(RUNS)
    """Where the folder of a sweep that is named by its file lies."""


@dataclass
class Report:
    """Write one self-contained HTML page with tables, plots and runs."""

    sweep: Sweep
    """A sweep's folder, or its file."""

    to: Path | None = None
    """The file; by default report.html in the sweep's folder."""

    plots_to: Path | None = None
    """A folder for the plots, as PNG and SVG."""

    runs_dir: Path = Path(RUNS)
    """Where the folder of a sweep that is named by its file lies."""


Command = Submit | Status | Cancel | Resume | Retry | Table | Report
