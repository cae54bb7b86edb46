"""Run the muP study and write its report: slopes, numbers, tables and figures.

$ python -m scripts.study                 # everything, into docs/study; 9 minutes on two cores
$ python -m scripts.study --quick         # small sizes, into runs/study-quick; seconds
$ python -m scripts.study --part report   # the report again, from the rows that were measured
$ python -m scripts.study --part heatmap  # the page heatmap.md; four minutes

The measured rows (single.csv, training.csv) stay in the folder but out of git. The full study also
updates the numbers in docs/tutorial.md.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
import tyro
from matplotlib.figure import Figure

from scripts.study import (
    depths,
    figures,
    figures_heatmap,
    figures_sweep,
    figures_training,
    heatmap,
    marks,
    single_pass,
    sweep,
    training,
    tuning,
)
from scripts.study.files import read_rows, write_rows
from scripts.study.numbers import all_numbers, middle, rounded
from scripts.study.plan import FULL, OPTIMIZERS, QUICK, Plan
from scripts.study.summary import slopes
from train.run.files import write_whole

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = ROOT / "docs" / "study"
# In this order: the sweeps use the tuned factors.
SWEEPS = ("tuning", "sweep", "depths")
PARTS = ("single", "training", *SWEEPS)
# The parts that the page heatmap.md needs.
PAGE_PARTS = ("training", "heatmap")
TUTORIAL = ROOT / "docs" / "tutorial.md"


@dataclass
class Options:
    """What to measure, and where to write it."""

    quick: bool = False
    """Use small sizes, to try the command. The numbers are then noisy."""

    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FOLDER",
            help_behavior_hint="(default: docs/study, or runs/study-quick with --quick)",
        ),
    ] = None
    """Output folder."""

    part: Literal["all", "single", "training", "tuning", "sweep", "depths", "heatmap", "report"] = (
        "all"
    )
    """Measure only this part, or only write the report from the rows in the output folder.
    "heatmap" measures what its page shows, and writes the page."""

    workers: int = os.cpu_count() or 1
    """Number of single-threaded processes; 0 measures in this process. The numbers are the same."""

    @property
    def folder(self) -> Path:
        return self.out or (ROOT / "runs" / "study-quick" if self.quick else DOCS)

    @property
    def plan(self) -> Plan:
        return QUICK if self.quick else FULL


def check(options: Options) -> None:
    """Refuse bad options.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    if options.workers < 0:
        raise ValueError(f"--workers {options.workers}: must not be negative; use 0 for no pool")
    if options.folder.exists() and not options.folder.is_dir():
        raise ValueError(f"--out {options.folder}: is not a folder; choose another")


def measure(options: Options) -> None:
    """Run the chosen parts; each writes its rows when it ends."""
    plan = options.plan
    parts: dict[str, tuple[str, ...]] = {"all": (*PARTS, "heatmap"), "heatmap": PAGE_PARTS}
    for part in parts.get(options.part, (options.part,)):
        if part == "single":
            rows = single_pass.run(plan.single, options.workers)
        elif part == "training":
            rows = training.run(plan.training, options.workers)
        elif part == "heatmap":
            rows = heatmap.run(plan.single, options.workers)
        elif part == "tuning":
            rows = tuning.run(plan.sweep, options.workers)
        else:
            factors = tuning.chosen(read_rows(options.folder, "tuning"))
            if part == "sweep":
                rows = sweep.run(plan.sweep, factors, options.workers)
            else:
                rows = depths.run(plan.depths, plan.sweep, factors, options.workers)
        write_rows(options.folder, part, rows)


def report(options: Options) -> None:
    """Write slopes, numbers, figures and the text, from the rows in the folder."""
    folder, plan = options.folder, options.plan
    single, trained = (read_rows(folder, part) for part in ("single", "training"))
    swept = {part: read_rows(folder, part) for part in SWEEPS}
    if set(single.width) != set(plan.single.widths):
        raise ValueError(f"--out {folder}: its rows are of other sizes; run --part all first")
    fits = slopes(single, plan.single)
    write_whole(folder / "slopes.csv", fits.round(5).to_csv(index=False, float_format="%.4g"))
    numbers = all_numbers(plan, single, fits, trained, swept)
    write_whole(folder / "summary.json", json.dumps(numbers, indent=1) + "\n")
    for name, figure in draw(plan, single, fits, trained, swept).items():
        figures.save(figure, folder / f"{name}.png")
    text = marks.fill((DOCS / "report.md").read_text(), numbers)
    write_whole(folder / "report.md", text)
    print(f"wrote {folder}: report.md, summary.json, tables and figures")
    if folder.resolve() == DOCS and not options.quick:
        write_whole(TUTORIAL, marks.fill(TUTORIAL.read_text(), numbers))
        print(f"wrote {TUTORIAL}")


def page(options: Options) -> None:
    """Write the page heatmap.md and its figures, from the rows in the folder."""
    folder = options.folder
    trained, ratios = (read_rows(folder, part) for part in PAGE_PARTS)
    write_rows(folder, "activations", heatmap.activations(trained))
    trained = read_rows(folder, "activations")
    drawn = {
        "heatmap": figures_heatmap.readout_maps(ratios),
        "spiral": figures_heatmap.spiral_points(),
        "activations": figures_heatmap.activation_curves(trained),
    }
    for name, figure in drawn.items():
        figures.save(figure, folder / f"{name}.png")
    numbers = {"heatmap": rounded(heatmap.numbers(ratios, trained))}
    write_whole(folder / "heatmap.md", marks.fill((DOCS / "heatmap.md").read_text(), numbers))
    print(f"wrote {folder}: heatmap.md, heatmap.csv, activations.csv and figures")


def draw(
    plan: Plan,
    single: pd.DataFrame,
    fits: pd.DataFrame,
    trained: pd.DataFrame,
    swept: dict[str, pd.DataFrame],
) -> dict[str, Figure]:
    """All figures, by file name."""
    depth = middle(plan.single.depths)
    along = figures_training.along
    return {
        **{f"heat_{optimizer}": figures.heat_maps(single, optimizer) for optimizer in OPTIMIZERS},
        "slopes": figures.slope_lines(single, fits, depth),
        "finite_sizes": figures.finite_sizes(fits),
        "chain": figures.chain(single, depth),
        "training_width": along(trained, "width", middle(plan.training.depths)),
        "training_depth": along(trained, "depth", middle(plan.training.widths)),
        "training_maps": figures_training.training_maps(trained),
        "sweep": figures_sweep.sweep_figure(swept["sweep"]),
        "depths": figures_sweep.depth_figure(swept["depths"]),
    }


def main() -> int:
    options = tyro.cli(Options, prog="python -m scripts.study", description=__doc__)
    try:
        check(options)
        options.folder.mkdir(parents=True, exist_ok=True)
        if options.part != "report":
            measure(options)
        if options.part in ("all", "report"):
            report(options)
        if options.part in ("all", "heatmap", "report"):
            page(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
