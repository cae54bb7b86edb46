"""The commands of ``python -m slurm`` and their flags."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from slurm.sweep import Overrides
from train.results.names import Format, Metric

_SWITCH = tyro.conf.arg(help_behavior_hint="")


def _optional(metavar: str, default: str) -> object:
    """How `--help` shows an optional flag and its default."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass
class Submit:
    """Start the runs of a sweep file that were never submitted. Try --dry-run first.

    For example: python -m slurm submit configs/sweeps/debug.toml
    """

    sweep: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP.toml")]
    """A sweep file, for example configs/sweeps/s1.toml."""

    overrides: Annotated[Overrides, tyro.conf.arg(name="")]

    cluster: Annotated[str, tyro.conf.arg(metavar="NAME")] = "local"
    """Name of a file in configs/clusters or ~/.config/maxp/clusters, or a path; local is this
    machine, without Slurm."""

    runs_dir: Annotated[Path | None, _optional("DIR", "the cluster's runs_dir, or runs")] = None
    """Folder in which the sweep gets its own folder."""

    dry_run: Annotated[bool, _SWITCH] = False
    """Print the batch script of each scale, the command of each run and the GPU-hours; check all,
    but submit nothing."""


@dataclass
class Existing:
    """The flags of every command on a submitted sweep."""

    sweep: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SWEEP")]
    """The folder of a submitted sweep, for example runs/s1; or its sweep file."""

    runs_dir: Annotated[Path | None, _optional("DIR", "runs and every cluster's runs_dir")] = None
    """Folder that holds the sweep's folder, where SWEEP is a sweep file."""


@dataclass
class Status(Existing):
    """Show the state of each run: step, loss, speed and time left, or why it failed.

    For example: python -m slurm status runs/debug --watch 10
    """

    format: Annotated[Literal["text", "json"], tyro.conf.arg(metavar="text|json")] = "text"
    """A table, or one JSON object per line."""

    watch: Annotated[float | None, _optional("SECONDS", "print once")] = None
    """Print again every SECONDS seconds, until no run is running or queued."""

    all: Annotated[bool, _SWITCH] = False
    """List every run. By default, a sweep of over 100 lists those that run or need attention."""


@dataclass
class _Selected(Existing):
    runs: Annotated[tuple[str, ...], _optional("RUN [RUN ...]", "all runs")] = ()
    """Names of runs."""


@dataclass
class Cancel(_Selected):
    """Stop running jobs and remove waiting ones; `resume` continues their runs.

    For example: python -m slurm cancel runs/debug
    """


@dataclass
class Resume(_Selected):
    """Submit runs that are missing, were cancelled, or whose job disappeared.

    For example: python -m slurm resume runs/debug
    """

    cluster: Annotated[str | None, _optional("NAME", "the cluster they were submitted to")] = None
    """Name or path of a cluster file."""


@dataclass
class Retry(Resume):
    """Submit failed runs again, once the cause of the failure is fixed.

    For example: python -m slurm retry runs/debug
    """


@dataclass
class Table(Existing):
    """Print the loss tables: a row per learning rate, a column per method.

    For example: python -m slurm table runs/debug
    """

    metric: Metric = "validation"
    """Validation loss at the end, or mean training loss over the last 10% of the steps."""

    format: Format = "text"
    """Format of the tables."""

    to: Annotated[Path | None, _optional("FILE", "print")] = None
    """File to write."""


@dataclass
class Report(Existing):
    """Write one self-contained HTML page with the tables, plots and runs.

    For example: python -m slurm report runs/debug
    """

    to: Annotated[Path | None, _optional("FILE", "report.html in the sweep's folder")] = None
    """File to write."""

    plots_to: Annotated[Path | None, _optional("DIR", "no separate plots")] = None
    """Folder for the plots as PNG and SVG files."""


@dataclass
class Transfer(Existing):
    """Print what the base scale's best lr and constants cost at the other scales.

    For example: python -m slurm transfer runs/cpu_width
    """

    metric: Metric = "validation"
    """Validation loss at the end, or mean training loss over the last 10% of the steps."""

    format: Annotated[
        Literal["text", "markdown", "csv", "json"], tyro.conf.arg(metavar="text|markdown|csv|json")
    ] = "text"
    """Format of the table."""

    to: Annotated[Path | None, _optional("FILE", "print")] = None
    """File to write."""


Command = Submit | Status | Cancel | Resume | Retry | Table | Report | Transfer
