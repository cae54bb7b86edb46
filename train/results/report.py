"""``python -m train.results.report RUNS_DIR --to FILE``: a sweep as one self-contained HTML file.

Style, script and plots are inside the file; its security policy forbids the browser to load
anything else.
"""

from __future__ import annotations

import math
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
from tyro.conf import Positional, arg

from train.results import curves, notes, page, plots, style
from train.results.analysis import TITLES, Results
from train.results.axes import axes_of
from train.results.basin import TOLERANCE
from train.results.collect import UNREADABLE, collect
from train.results.formats import accuracy_text
from train.results.names import Metric, in_order, lr_text, value_text
from train.run.files import write_whole

_LEGEND = (
    "Losses are in nats per token, or per image. Basin: decades of learning rate within "
    f"{TOLERANCE:g} of the best loss, with the mean loss interpolated linearly in log lr. It ends "
    "at an lr at which a seed diverged; ≥ means that the grid, or the finished runs, end before "
    "the basin does. Regret: loss at the best lr of the base scale, or else of the method's "
    "smallest, minus the best loss at this scale, with the 95% interval over seeds. A gap within "
    "one standard deviation over seeds is not significant."
)
_CAPTIONS = {
    "loss_against_lr": "Mean over seeds; the band is one standard deviation. A ring marks the best "
    "learning rate of a method, a cross at the top a learning rate at which a seed diverged.",
    "transfer": "Where learning rates transfer, the best one is the same at all scales, and the "
    "regret of the smallest scale's best is zero. A cross at the top marks one that diverged.",
    "gap": "Below zero the method is better than the reference at the same learning rate. div.: a "
    "seed of the method or of the reference diverged; –: one of them has no finished run.",
}


@dataclass(frozen=True)
class Picture:
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Cell:
    text: str
    value: float | str | None = None
    """The value to sort by: by default the text; "" sorts last."""
    kind: str = ""
    """CSS classes."""
    remark: str = ""
    bad: bool = False


@dataclass(frozen=True)
class Table:
    heads: list[str]
    rows: list[list[Cell]]


_NONE = Cell("–", "")


def report(runs: pd.DataFrame, title: str) -> str:
    """The HTML page about ``runs``, a table from `collect.collect`."""
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


def _section(results: Results, *, explained: bool) -> dict[str, Any]:
    title = TITLES[results.metric]
    drawn = plots.each_figure(results)
    return {
        "id": results.metric,
        "title": title[0].upper() + title[1:],
        "legend": _LEGEND if explained else "",
        "summary": summary_grid(results),
        "pictures": [
            _picture(figure, f"{results.metric}-{file}", _CAPTIONS[name])
            for file, name, figure in drawn
        ],
        "scales": [_scale(results, scale) for scale in results.scales],
    }


def _scale(results: Results, scale: str) -> dict[str, Any]:
    cells = results.cells[results.cells["scale"] == scale]
    runs = results.runs[results.runs["scale"] == scale]
    table: Table = loss_grid(cells, results)
    shared = ", one run for all methods" if cells["at_base"].all() else ""
    return {
        "title": f"{scale} ({notes.seeds_legend(cells)}{shared})",
        "table": table,
        "notes": notes.run_notes(runs, results.metric),
    }


def _curves(results: Results) -> list[Picture]:
    runs = curves.best_runs(results)
    drawn = (
        (curves.loss_over_steps(results, runs), "Training loss of the best run of each method."),
        (
            curves.exponents_over_steps(results, runs),
            "Exponents of the layers' learning rates, which follow the measured alignment.",
        ),
    )
    return [
        _picture(figure, f"steps-{position}", caption)
        for position, (figure, caption) in enumerate(drawn)
        if figure is not None
    ]


def _picture(figure: Figure, name: str, caption: str) -> Picture:
    return Picture(Markup(style.inline_svg(figure, name)), caption)


def summary_grid(results: Results) -> Table:
    """Best, basin, regret and gap to the reference: one row per scale and method."""
    transfer = {(row["scale"], row["method"]): row for _, row in results.transfer.iterrows()}
    gaps = {(row["scale"], row["method"]): row for _, row in results.gaps.iterrows()}
    heads = ["scale", "method", "best loss", "at lr", "basin, decades", "transfer regret"]
    heads += [f"method - {results.reference}", "significance"]
    lowest = results.methods.groupby("scale")["best_loss"].min()
    rows = []
    for _, row in results.methods.iterrows():
        cells = [_words(row["scale"], results.scales.index(row["scale"])), _words(row["method"])]
        if math.isnan(row["best_loss"]):
            cells += [_NONE] * 3
        else:
            best = "best" if row["best_loss"] == lowest[row["scale"]] else ""
            spread = "" if math.isnan(row["best_std"]) else f"± {row['best_std']:.4f}, "
            count = f"{spread}n = {row['best_seeds']}"
            cells.append(Cell(f"{row['best_loss']:.4f}", row["best_loss"], best, count))
            cells.append(Cell(lr_text(row["best_lr"]), row["best_lr"], remark=row["combination"]))
            bound = "≥ " if row["basin_lower_bound"] else ""
            cells.append(Cell(f"{bound}{row['basin_decades']:.2f}", row["basin_decades"]))
        key = (row["scale"], row["method"])
        cells.append(_regret(transfer.get(key)))
        gap = gaps.get(key)
        cells.append(_NONE if gap is None else Cell(f"{gap['gap']:+.4f}", gap["gap"]))
        cells.append(_words("") if gap is None else _verdict(gap))
        rows.append(cells)
    return Table(heads, rows)


def loss_grid(cells: pd.DataFrame, results: Results) -> Table:
    """The loss table of one scale: a column per axis, lr, and a column per method."""
    methods = in_order(cells["method"].unique())
    grid: Any = cells.set_index(["combination", "lr", "method"])
    most = cells["seeds"].max()
    rows = []
    for combination, point in results.points.items():
        values = [Cell(value_text(value)) for value in point.values()]
        for lr in sorted(cells.loc[cells["combination"] == combination, "lr"].unique()):
            row = [*values, Cell(lr_text(lr), lr)]
            for method in methods:
                key = (combination, lr, method)
                row.append(_loss(grid.loc[key], most) if key in grid.index else _NONE)
            rows.append(row)
    return Table([*results.axes.values(), "lr", *methods], rows)


def problem_grid(runs: pd.DataFrame) -> Table | None:
    """Why runs failed or cannot be read, most frequent reason first; None if there are none."""
    bad = runs[runs["state"].isin(["failed", UNREADABLE])]
    if bad.empty:
        return None
    rows = [
        [
            Cell(str(len(group))),
            _words(str(state)),
            Cell(str(reason), kind="text long"),
            _words(Path(group["path"].iloc[0]).name),
        ]
        for (state, reason), group in bad.groupby(["state", "description"])
    ]
    rows.sort(key=lambda row: -int(row[0].text))
    return Table(["runs", "state", "reason", "for example"], rows)


def run_grid(runs: pd.DataFrame) -> Table:
    """State and numbers of every run."""
    axes = axes_of(runs[runs["state"] != UNREADABLE])
    heads = ["run", "scale", "method", "lr", "seed", "state", "step", "loss", "validation"]
    images = bool(runs["accuracy"].notna().any())
    unit = "images" if images else "tokens"
    heads += [*["accuracy"] * images, "train", unit, f"{unit}/s", *axes.values(), "reason"]
    rows = []
    for run in runs.to_dict("records"):
        unread = run["state"] == UNREADABLE
        wrong = unread or run["state"] == "failed"
        bad = wrong or run["state"] == "diverged"
        rows.append(
            [
                _words(Path(run["path"]).name),
                _words("" if unread else run["scale"]),
                _words("" if unread else run["method"]),
                _NONE if unread else Cell(lr_text(run["lr"]), run["lr"]),
                _number(run["seed"], ".0f"),
                Cell(run["state"], kind="text bad" if bad else "text"),
                _number(run["step"], ".0f"),
                *(_number(run[name], ".4f") for name in ("loss", "validation")),
                *[_number(run["accuracy"], ".4f")] * images,
                _number(run["train"], ".4f"),
                _number(run["tokens"], ",.0f"),
                _number(run["tokens_per_second"], ",.0f"),
                *(_words(value_text(run["axes"].get(name))) for name in axes),
                Cell(run["description"], kind="text long") if wrong else _words(""),
            ]
        )
    return Table(heads, rows)


def _loss(cell: pd.Series, most: int) -> Cell:
    diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
    if cell["finished"] == 0:
        return Cell("", "", remark=diverged, bad=True) if diverged else _NONE
    remarks = [] if math.isnan(cell["std"]) else [f"± {cell['std']:.4f}"]
    remarks += [accuracy_text(cell)] if accuracy_text(cell) else []
    remarks += [f"n = {cell['seeds']}"] if cell["seeds"] != most else []
    remarks += [diverged] if diverged else []
    remarks += [f"= {cell['run_as']}"] if cell["run_as"] else []
    kind = "best" * bool(cell["best"]) + " of-all" * bool(cell["best_of_all"])
    return Cell(f"{cell['mean']:.4f}", cell["mean"], kind, ", ".join(remarks), bool(diverged))


def _verdict(gap: pd.Series) -> Cell:
    count = f"n = {min(gap['seeds'], gap['reference_seeds'])}"
    if gap["verdict"] == "noise unknown":
        return Cell("unknown: too few seeds", kind="text", remark=count)
    side = "within" if gap["verdict"] == "within noise" else "beyond"
    return Cell(f"{side} one std", kind="text", remark=f"{gap['noise']:.4f}, {count}")


def _regret(row: pd.Series | None) -> Cell:
    if row is None:
        return _NONE
    if row["outcome"] == "measured" and not math.isnan(row["regret"]):
        interval = f", {text}" if (text := notes.interval_text(row)) else ""
        remark = f"lr {lr_text(row['lr'])}{interval}"
        return Cell(f"{row['regret']:.4f}", row["regret"], remark=remark)
    bad = row["outcome"] == "diverged"
    return Cell("", "", remark=f"{notes.regret_text(row)}, {lr_text(row['lr'])}", bad=bad)


def _words(text: str, value: float | None = None) -> Cell:
    return Cell(text, value, "text")


def _number(value: float, form: str) -> Cell:
    return _NONE if value is None or math.isnan(value) else Cell(format(value, form), value)


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
        write_whole(target, report(runs, runs_dir.resolve().name))
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
