"""``python -m train.results.report RUNS_DIR --to FILE``: a sweep as one self-contained HTML file.

Style, script and plots are inside the file; its security policy forbids the browser to load
anything else. Links lead to the logs and folders of runs.
"""

from __future__ import annotations

import math
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import pandas as pd
import tyro
from markupsafe import Markup
from tyro.conf import Positional, arg

from train.results import curves, grids, notes, page, plots, style
from train.results.analysis import TITLES, Results
from train.results.basin import TOLERANCE
from train.results.collect import UNREADABLE, collect
from train.results.details import Details, details, differences, hours_name
from train.results.names import Metric
from train.run.files import write_whole

_LEGEND = (
    "Losses are in nats per token, or per image. Basin: decades of learning rate within "
    f"{TOLERANCE:g} of the best loss, with the mean loss interpolated linearly in log lr. It ends "
    "at an lr at which a seed diverged; ≥ means that the grid, or the finished runs, end before "
    "the basin does. If the best lr is the lowest or highest of the grid, a better one may be "
    "beyond it. Carried lr: the best of the base scale, or else of the method's smallest. Regret: "
    "loss at the carried lr minus the best loss at this scale, with the 95% interval over seeds. "
    "A difference within one standard deviation over seeds is not significant."
)
_CAPTIONS = {
    "loss_against_lr": "Mean over seeds; the band is one standard deviation. A ring marks the best "
    "learning rate of a method, a cross at the top a learning rate at which a seed diverged.",
    "transfer": "Where learning rates transfer, the best one is the same at all scales, and the "
    "regret of the smallest scale's best is zero. A cross at the top marks one that diverged.",
    "gap": "Below zero the method is better than the reference at the same learning rate. div.: a "
    "seed of the method or of the reference diverged; –: one of them has no finished run.",
}
_CURVES = (
    "The runs at each method's best learning rate: mean over seeds, and a band of one standard "
    "deviation with two seeds or more. At a base scale, one method's runs are those of all. Hover "
    "to read values; the cursors of all charts move together. Drag to zoom, double-click to zoom "
    "out, click a name to hide its line."
)
_SITES = (
    "Mean over the layers of each type, then over seeds. align_z0_dW: between a layer's initial "
    "input and the change of its weights; align_dZ_w0: between the change of its input and its "
    "initial weights; align_dZ_dW: between both changes. 0.5: as between independent random "
    "vectors; 1: full alignment. An embedding has none."
)
_RUNS = (
    "Click a name to see the run's configuration, differences between runs first. Device-hours "
    "(GPU-hours; on a CPU, the hours of its processes): tokens seen, divided by the speed per "
    "device in the last 10% of the steps. Start-up, compilation, validation and steps repeated "
    "after a stop are not counted. Hardware: of the run's first start. train, last 10%: the mean "
    "training loss of the last 10% of the steps."
)


@dataclass(frozen=True)
class Picture:
    """A plot for wide screens and one with a single column for narrow ones."""

    wide: Markup
    narrow: Markup
    caption: str


def report(runs: pd.DataFrame, title: str, folder: Path = Path()) -> str:
    """The HTML page about ``runs``, a table from `collect.collect`.

    Args:
        title: of the page.
        folder: that the page will be in; its links are relative to it.
    """
    shown: list[Metric] = [metric for metric in TITLES if runs[metric].notna().any()]
    results = {metric: Results.of(runs, metric) for metric in shown or ["validation"]}
    first = next(iter(results.values()))
    states = runs["state"].value_counts()
    several = details(runs)
    shared, differ = differences(several)
    links = [_link(one.log, folder) for one in several]
    rows = curves.rows(first)
    panels = curves.to_data(rows)
    places = iter(range(sum(map(len, panels))))
    charts = [(row.method, [next(places) for _ in row.panels]) for row in rows]
    return page.render(
        {
            "panels": [panel for several in panels for panel in several],
            "shared": shared,
            "runs": [
                _run(run, one, link, differs, folder)
                for run, one, link, differs in zip(
                    runs.to_dict("records"), several, links, differ, strict=True
                )
            ],
        },
        title=title,
        subtitle=_subtitle(runs, several),
        counts=[(state, int(count)) for state, count in states.items()],
        sections=[_section(result, explained=result is first) for result in results.values()],
        losses=[row for method, row in charts if not method],
        methods=[
            {"name": name, "rows": _together([row for method, row in charts if method == name])}
            for name in dict.fromkeys(method for method, _ in charts if method)
        ],
        curves_legend=_CURVES,
        sites_legend=_SITES,
        problems=grids.problem_grid(runs),
        runs=grids.run_grid(runs, several, links),
        runs_legend=_RUNS,
    )


def _together(rows: list[list[int]]) -> list[list[int]]:
    """The panels of each row of the page; those of a single scale fill its width."""
    return rows if any(len(row) > 1 for row in rows) else [[place for row in rows for place in row]]


def _subtitle(runs: pd.DataFrame, several: list[Details]) -> str:
    hours = [one.hours for one in several if not math.isnan(one.hours)]
    parts = [f"{len(runs)} runs"]
    parts += [f"{sum(hours):,.3g} {hours_name(several)}"] if hours else []
    for what, values in (
        ("commit", {grids.commit_text(one.commit) for one in several}),
        ("on", {one.device for one in several}),
    ):
        known = sorted(values - {""})
        parts += [f"{what} {', '.join(known)}"] if known else []
    return "; ".join([*parts, f"written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"])


def _run(
    run: dict[Any, Any], one: Details, link: str, differs: dict[str, str], folder: Path
) -> dict[str, Any]:
    """What a click on the run's name shows."""
    hours = "not known" if math.isnan(one.hours) else f"{one.hours:.3g}"
    links = {"Folder": _link(Path(run["path"]), folder)} | ({"Log": link} if link else {})
    return {
        "facts": {
            "State": run["description"],
            "Commit": one.commit or "not recorded",
            "Hardware": one.device or "not recorded",
            "Host": one.hardware.get("host", "not recorded"),
            hours_name([one]): hours,
            "Versions": ", ".join(f"{name} {number}" for name, number in one.versions.items()),
        },
        "links": links,
        "differs": differs,
    }


def _link(target: Path | None, folder: Path) -> str:
    """Address of a file relative to the page; "" without a file."""
    return "" if target is None else quote(os.path.relpath(target, folder).replace(os.sep, "/"))


def _section(results: Results, *, explained: bool) -> dict[str, Any]:
    title = TITLES[results.metric]
    narrow = {file: figure for file, _, figure in plots.each_figure(results, columns=1)}
    return {
        "id": results.metric,
        "short": "Validation" if results.metric == "validation" else "Training",
        "title": title[0].upper() + title[1:],
        "legend": _LEGEND if explained else "",
        "summary": grids.summary_grid(results),
        "gaps": grids.gap_grid(results),
        "pictures": [
            Picture(
                Markup(style.inline_svg(figure, f"{results.metric}-{file}")),
                Markup(style.inline_svg(narrow[file], f"{results.metric}-{file}-narrow")),
                _CAPTIONS[name],
            )
            for file, name, figure in plots.each_figure(results)
        ],
        "scales": [_scale(results, scale) for scale in results.scales],
    }


def _scale(results: Results, scale: str) -> dict[str, Any]:
    cells = results.cells[results.cells["scale"] == scale]
    runs = results.runs[results.runs["scale"] == scale]
    shared = ", one run for all methods" if cells["at_base"].all() else ""
    return {
        "title": f"{scale} ({notes.seeds_legend(cells)}{shared})",
        "table": grids.loss_grid(cells, results),
        "notes": notes.run_notes(runs, results.metric),
    }


def main(
    runs_dir: Annotated[Path, Positional, arg(metavar="RUNS_DIR")],
    to: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None,
    plots_to: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
) -> None:
    """Write an HTML report about all runs below a folder, and print its path.

    For example: python -m train.results.report runs/debug --plots-to plots

    Args:
        runs_dir: Folder to search for runs, at any depth.
        to: Write to this file instead of RUNS_DIR/report.html.
        plots_to: Write the plots into this folder too, as PNG and SVG.
    """
    if not runs_dir.is_dir():
        sys.exit(f"RUNS_DIR {runs_dir} is not a folder: pass the folder that holds the runs")
    runs = collect(runs_dir)
    if (runs["state"] == UNREADABLE).all():
        sys.exit(f"RUNS_DIR {runs_dir} holds no runs: pass a folder that contains runs")
    flag, target = "--to", to or runs_dir / "report.html"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, report(runs, runs_dir.resolve().name, target.parent))
        print(target)
        if plots_to is not None:
            flag, target = "--plots-to", plots_to
            metric: Metric = "validation" if runs["validation"].notna().any() else "train"
            for file in plots.write_plots(Results.of(runs, metric), plots_to):
                print(file)
    except OSError as error:
        sys.exit(f"{flag} {target} cannot be written ({error.strerror}): pass another path")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m train.results.report")
