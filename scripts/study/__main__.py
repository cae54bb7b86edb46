"""Measure, and write docs/study/: figures, tables, raw rows; and the numbers of the tutorial.

python -m scripts.study                 # all of it, into docs/study; minutes
python -m scripts.study --quick         # small sizes, into runs/study-quick; seconds
python -m scripts.study --part report   # figures and tables again, from the rows that are there
"""

import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
import tyro

from scripts.study import figures, figures_training, marks, numbers, single_pass, sweep, training
from scripts.study.files import read_rows, read_single, write_json, write_rows, write_single
from scripts.study.plan import FULL, OPTIMIZERS, QUICK, Plan
from scripts.study.summary import slopes
from train.run.files import write_whole

ROOT = Path(__file__).resolve().parent.parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
REPORT = Path(__file__).resolve().parent / "report.md"
Part = Literal["all", "single", "training", "sweep", "report"]


@dataclass
class Options:
    """The muP study: one step over widths and depths, the spiral, the learning-rate sweep."""

    quick: bool = False
    """Small sizes: to try it, and for tests. Its numbers are noisy."""

    out: Path | None = None
    """The folder; by default docs/study, or runs/study-quick with --quick."""

    part: Part = "all"
    """Measure only one part, or nothing (report), and write the report from the rows of all."""

    workers: int = os.cpu_count() or 1
    """Processes of one thread each; 0 is this one. The numbers do not depend on it."""

    @property
    def folder(self) -> Path:
        quick, full = ROOT / "runs" / "study-quick", ROOT / "docs" / "study"
        return self.out if self.out is not None else quick if self.quick else full

    @property
    def plan(self) -> Plan:
        return QUICK if self.quick else FULL


def check(options: Options) -> None:
    """Refuse what cannot be run.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must not be negative; 0 is this process")
    if options.folder.exists() and not options.folder.is_dir():
        raise ValueError(f"--out {options.folder}: is not a folder; choose another")


def measure(options: Options) -> None:
    """Run the parts that are asked for; each leaves its rows, and its time in ``run.json``."""
    folder, plan, workers = options.folder, options.plan, options.workers
    path = folder / "run.json"
    took = json.loads(path.read_text())["seconds"] if path.is_file() else {}
    for part, run in {
        "single": lambda: single_pass.run(plan.single, workers),
        "training": lambda: training.run(plan.training, workers),
        "sweep": lambda: sweep.run(plan.sweep, workers),
    }.items():
        if options.part not in ("all", part):
            continue
        start = time.monotonic()
        rows = run()
        if part == "single":
            write_single(folder, rows)
        else:
            write_rows(folder, part, rows)
        took[part] = round(time.monotonic() - start, 1)
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        write_json(path, {"seconds": took, "workers": workers, **versions})


def report(options: Options) -> None:
    """Slopes, numbers, figures and the text, from the rows in the folder."""
    folder, plan = options.folder, options.plan
    single = read_single(folder)
    trained, swept = read_rows(folder, "training"), read_rows(folder, "sweep")
    if set(single.width) != set(plan.single.widths):
        raise ValueError(f"--out {folder}: its rows are of other sizes; run --part all first")
    fitted = slopes(single, plan.single)
    text = fitted.to_csv(index=False, float_format="%.4g")
    write_whole(folder / "slopes.csv", text)
    found = numbers.all_numbers(plan, single, fitted, trained, swept)
    write_json(folder / "summary.json", found)
    draw(folder, plan, single, fitted, trained, swept)
    write_whole(folder / "report.md", marks.fill(REPORT.read_text(), found))
    if folder.resolve() == (ROOT / "docs" / "study").resolve() and not options.quick:
        write_whole(TUTORIAL, marks.fill(TUTORIAL.read_text(), found))
        print(f"wrote {TUTORIAL}")
    print(f"wrote {folder}: report.md, summary.json, slopes.csv, rows and figures")


def draw(
    folder: Path,
    plan: Plan,
    single: pd.DataFrame,
    fitted: pd.DataFrame,
    trained: pd.DataFrame,
    swept: pd.DataFrame,
) -> None:
    """Every figure."""
    depth = numbers.middle_depth(plan.single)
    for optimizer in OPTIMIZERS:
        figures.save(figures.heat_maps(single, optimizer), folder, f"heat_{optimizer}")
    figures.save(figures.slope_lines(single, fitted, depth), folder, "slopes")
    figures.save(figures.finite_sizes(fitted), folder, "finite_sizes")
    figures.save(figures.vector_norms(single, depth), folder, "chain")
    middle = {
        "width": sorted(plan.training.depths)[len(plan.training.depths) // 2],
        "depth": sorted(plan.training.widths)[len(plan.training.widths) // 2],
    }
    for by, fixed in middle.items():
        figures.save(figures_training.along(trained, by, fixed), folder, f"training_{by}")
    figures.save(figures_training.training_maps(trained), folder, "training_maps")
    figures.save(figures_training.sweep_figure(swept), folder, "sweep")


def main() -> int:
    options = tyro.cli(Options, prog="python -m scripts.study")
    try:
        check(options)
        options.folder.mkdir(parents=True, exist_ok=True)
        if options.part != "report":
            measure(options)
        if options.part in ("all", "report"):
            report(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
