"""Does the learning rate carry from a small model to a large one? See docs/results.md.

    python -m scripts.transfer --processes 2   # makes the runs that docs/results/runs.csv lacks
    python -m scripts.transfer --processes 0   # writes figures, tables and the page

Runs train LLaMA-3 on the embedded corpus, on CPUs, with one thread each. All of them take hours,
and a progress bar shows how many are left. A command that was interrupted continues where it was.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import tyro

from scripts.marked import fill
from scripts.transfer import runs
from scripts.transfer.added import all_runs
from scripts.transfer.figures import all_figures
from scripts.transfer.objectives import file_of, read_solutions, write_solutions
from scripts.transfer.plan import Losses, Run, choice, table_runs
from scripts.transfer.recipes import RECIPES, table_of, table_runs_of
from scripts.transfer.report import headline, texts
from scripts.transfer.results import Data
from train.alignment_table import condense, pool, write_table
from train.progress import progress
from train.results.style import to_bytes
from train.run.files import write_whole
from train.run.folder import load_run

TABLE_FROM = 100
"""First step whose measurements enter the table for maxP-frozen."""

FOLDER = Path("docs/results")
TABLE = FOLDER / "alignment.json"
PAGE = Path("docs/results.md")
README = Path("README.md")


@dataclass(frozen=True)
class Options:
    """What to run."""

    processes: int = 1
    """Single-threaded processes; 0 makes no runs."""

    runs_dir: Path = Path("runs/transfer")
    """Folder for the runs' folders."""

    only: tuple[str, ...] = ()
    """Parts to run: base, width, depth, ablation, horizon, muon, published,
    objective. By default all."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ValueError(f"--processes {self.processes}: must not be negative")


def measure_all(options: Options) -> None:
    file = FOLDER / "runs.csv"
    known = runs.losses(runs.read(file))
    started: set[Run] = set()
    bar = progress(total=len(all_runs(known, str(TABLE))), unit=" runs")
    bar.update(len(known))

    def next_run() -> Run | None:
        for table, measuring in _tables(known).items():
            if not table.exists() and all(run in known for run in measuring):
                _write_table(table, measuring, options.runs_dir)
        if TABLE.exists() and not file_of(str(TABLE)).exists():
            write_solutions(str(TABLE))
        wanted = all_runs(known, str(TABLE))
        bar.total = len(wanted)
        for run in wanted:
            if run not in known and run not in started:
                if options.only and run.part not in options.only:
                    continue
                started.add(run)
                return run
        return None

    def done(run: Run, folder: Path) -> None:
        line = runs.row(run, folder)
        runs.append(file, line)
        known[run] = float(line["validation"])
        bar.update()
        bar.write(f"{runs.folder_name(run)}: {line['validation']}")

    with bar:
        runs.make(next_run, done, options.runs_dir, options.processes)


def _tables(known: Losses) -> dict[Path, list[Run]]:
    """Each table of maxP-frozen, with the runs that measure it, as far as they can be named."""
    chosen = choice(known)
    if not chosen:
        return {}
    runs_of = {TABLE: table_runs(chosen)}
    for name in RECIPES:
        if measuring := table_runs_of(known, str(TABLE), chosen, name):
            runs_of[Path(table_of(str(TABLE), name))] = measuring
    return runs_of


def _write_table(table: Path, measuring: list[Run], folder: Path) -> None:
    """Write the alignment that the runs measured from step `TABLE_FROM` on."""
    records = []
    for run in measuring:
        loaded = load_run(folder / runs.folder_name(run))
        records += [record for record in loaded.metrics if record["step"] >= TABLE_FROM]
    source = {"runs": [runs.folder_name(run) for run in measuring], "from": TABLE_FROM}
    write_table(table, condense(pool(records), "median"), source)


def write_results() -> None:
    """Write the figures and the page from the lines of the runs."""
    data = Data(runs.read(FOLDER / "runs.csv"))
    for name, figure in all_figures(data).items():
        write_whole(FOLDER / f"{name}.png", to_bytes(figure, "png"))
    pages = {PAGE: texts(data, read_solutions(str(TABLE))), README: {"headline": headline(data)}}
    for page, marked in pages.items():
        write_whole(page, fill(page.read_text(), "results", marked))
    print(f"{PAGE}, {README} and the figures in {FOLDER} are those of {len(data.frame)} runs")


def main() -> int:
    try:
        options = tyro.cli(Options, prog="python -m scripts.transfer", description=__doc__)
        FOLDER.mkdir(parents=True, exist_ok=True)
        if options.processes:
            measure_all(options)
        write_results()
    except (ValueError, RuntimeError, pd.errors.ParserError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
