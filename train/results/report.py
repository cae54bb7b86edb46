"""``python -m train.results.report RUNS_DIR --to FILE``: one HTML file that says all of a sweep.

It needs nothing beside itself: style, script and pictures are inside, and its security policy lets
the browser ask for nothing else.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import jinja2
import pandas as pd
import tyro
from markupsafe import Markup
from matplotlib.figure import Figure

from train.results import curves, notes, page, plots, style
from train.results.analysis import Results
from train.results.basin import TOLERANCE
from train.results.cells import TITLES, Metric
from train.results.collect import UNREADABLE, collect
from train.results.grids import Table, loss_grid, problem_grid, run_grid, summary_grid
from train.run.files import write_whole
from train.run.folder import CONFIG

_LEGEND = (
    f"Losses in nats a token. Basin: decades of learning rate within {TOLERANCE:g} of the best "
    "loss, the mean taken as piecewise linear in log lr; ≥ where the grid or the finished runs end "
    "before the basin does; an lr at which a seed diverged ends it. Regret: loss at the best lr of "
    "the method's smallest scale, less the best loss at this scale. A gap within one standard "
    "deviation over seeds decides nothing."
)
_CAPTIONS = {
    "loss_against_lr": "Mean over seeds; the band is one standard deviation. A ring marks the best "
    "learning rate of a method, a cross at the top a learning rate at which a seed diverged.",
    "transfer": "Learning rates that transfer: the best stays where it is, and the regret of "
    "keeping that of the smallest scale stays at zero. A cross at the top: it diverged.",
    "gap": "Below zero the method is better than the reference at the same learning rate. div.: a "
    "seed diverged, of the method or of the reference; –: no finished run of one of them.",
}


@dataclass(frozen=True)
class Picture:
    svg: Markup
    caption: str


def report(runs: pd.DataFrame, title: str) -> str:
    """The page about ``runs``, as from `collect.collect`, whatever their states."""
    shown: list[Metric] = [metric for metric in TITLES if runs[metric].notna().any()]
    results = {metric: Results.of(runs, metric) for metric in shown or ["validation"]}
    first = next(iter(results.values()))
    states = runs["state"].value_counts()
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return (
        environment.from_string(page.TEMPLATE)
        .render(
            title=title,
            subtitle=f"{len(runs)} runs; written {made}",
            counts=[(state, int(count)) for state, count in states.items()],
            sections=[_section(result, explained=result is first) for result in results.values()],
            curves=_curves(first),
            problems=problem_grid(runs),
            runs=run_grid(runs),
            css=Markup(page.CSS),
            js=Markup(page.JS),
        )
        .strip()
        + "\n"
    )


def write_report(folder: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Write the page about all runs below ``folder``; returns its path.

    Raises:
        ValueError: there is no run below ``folder``.
        OSError: ``target`` cannot be written.
    """
    runs = collect(folder)
    if runs.empty:
        raise ValueError(f"{folder} holds no runs: give a folder above some {CONFIG}")
    file = Path(target)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, report(runs, Path(folder).resolve().name))
    return file


def _section(results: Results, *, explained: bool) -> dict[str, Any]:
    title = TITLES[results.metric]
    drawn = plots.figures(results)
    return {
        "id": results.metric,
        "title": title[0].upper() + title[1:],
        "legend": _LEGEND if explained else "",
        "summary": summary_grid(results),
        "pictures": [
            _picture(figure, f"{results.metric}-{name}", _CAPTIONS[name])
            for name, figure in drawn.items()
        ],
        "scales": [_scale(results, scale) for scale in results.scales],
    }


def _scale(results: Results, scale: str) -> dict[str, Any]:
    cells = results.cells[results.cells["scale"] == scale]
    runs = results.runs[results.runs["scale"] == scale]
    table: Table = loss_grid(cells)
    return {
        "title": f"{scale} ({notes.seeds_legend(cells)})",
        "table": table,
        "notes": notes.run_notes(runs, results.metric),
    }


def _curves(results: Results) -> list[Picture]:
    runs = curves.best_runs(results)
    drawn = (
        (curves.loss_over_steps(results, runs), "Training loss of the best run of each method."),
        (
            curves.exponents_over_steps(results, runs),
            "Exponents of the layers' learning rates as the method follows the alignment.",
        ),
    )
    return [
        _picture(figure, f"steps-{position}", caption)
        for position, (figure, caption) in enumerate(drawn)
        if figure is not None
    ]


def _picture(figure: Figure, name: str, caption: str) -> Picture:
    return Picture(Markup(style.inline_svg(figure, name)), caption)


def main(
    runs_dir: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUNS_DIR")],
    to: Path | None = None,
    plots_to: Path | None = None,
) -> None:
    """Write the HTML report about all runs below a folder.

    Args:
        runs_dir: Folder below which the runs' folders lie, at any depth.
        to: The file to write; by default report.html in RUNS_DIR.
        plots_to: Also write the plots into this folder, as PNG and SVG.
    """
    if not runs_dir.is_dir():
        sys.exit(f"RUNS_DIR {runs_dir} is not a folder: give the one that holds the runs")
    runs = collect(runs_dir)
    if (runs["state"] == UNREADABLE).all():
        sys.exit(f"RUNS_DIR {runs_dir} holds no runs: give a folder above some {CONFIG}")
    flag, target = "--to", to or runs_dir / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, report(runs, runs_dir.resolve().name))
        print(target)
        if plots_to is not None:
            flag, target = "--plots-to", plots_to
            metric: Metric = "validation" if runs["validation"].notna().any() else "train"
            for file in plots.write_plots(Results.of(runs, metric), plots_to):
                print(file)
    except OSError as error:
        sys.exit(f"{flag} {target} cannot be written ({error.strerror}): choose another")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m train.results.report")
