"""A sweep's results as text, Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import pandas as pd

from train.results import notes
from train.results.analysis import TITLES, Results
from train.results.basin import TOLERANCE
from train.results.names import Format, Metric, in_order, lr_parts, lr_text, value_text
from train.run.files import plain

_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
    }
)


def render(runs: pd.DataFrame, metric: Metric, style: Format = "text") -> str:
    """The results of ``runs``, a table from `collect.collect`, in one format."""
    return write(Results.of(runs, metric), style)


def write(results: Results, style: Format) -> str:
    """The results in one format. CSV and LaTeX have no place for `notes.every_note`."""
    writers: dict[Format, Callable[[Results], str]] = {
        "text": lambda results: prose(results, markdown=False),
        "markdown": lambda results: prose(results, markdown=True),
        "csv": to_csv,
        "json": to_json,
        "latex": latex,
    }
    return writers[style](results)


def prose(results: Results, *, markdown: bool) -> str:
    """The tables of all scales as plain text or Markdown, with notes below each."""
    heading, bullet = ("### ", "- ") if markdown else ("", "")

    def listed(lines: list[str]) -> str:
        return "\n".join(bullet + line for line in lines)

    blocks: list[str] = []
    for scale in results.scales:
        legend = notes.legend(results, scale)
        blocks.append(f"{heading}{scale}: {TITLES[results.metric]} ({legend})")
        blocks.append("\n".join(grid(_losses(results, scale), markdown)))
        runs = results.runs[results.runs["scale"] == scale]
        blocks.append(
            listed(
                [
                    *notes.best_lines(results, scale),
                    *notes.gap_lines(results, scale),
                    *notes.run_notes(runs, results.metric),
                ]
            )
        )
    if len(results.transfer):
        blocks.append(f"{heading}{notes.transfer_title(results)}")
        blocks.append(listed(notes.transfer_lines(results)))
    unreadable = notes.unreadable_note(results.runs)
    return "\n\n".join(blocks + ([bullet + unreadable] if unreadable else []))


def cell_texts(cells: pd.DataFrame, points: Iterable[str] = ("",)) -> pd.DataFrame:
    """The cells of one scale, from `notes.marked_cells`, as text.

    Rows are (combination, lr), in the order of ``points`` and ascending; columns are methods, in
    order.
    """
    width = max((len(f"{mean:.4f}") for mean in cells["mean"].dropna()), default=1)
    counts = cells.loc[cells["seeds"] > 0, "seeds"]
    several = cells["combination"].nunique() > 1

    def text(cell: pd.Series) -> str:
        diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
        shared = ["="] if cell["run_as"] else []
        if cell["finished"] == 0:
            return " ".join([diverged or "-", *shared, *(["^"] if cell["carried"] else [])])
        parts = [f"{cell['mean']:.4f}".rjust(width)]
        parts += [f"± {cell['std']:.4f}"] if pd.notna(cell["std"]) else []
        parts += [accuracy_text(cell)] if accuracy_text(cell) else []
        remarks = [f"n={cell['seeds']}"] if cell["seeds"] != counts.max() else []
        remarks += [diverged] if diverged else []
        parts += [f"({', '.join(remarks)})"] if remarks else []
        parts += shared
        best = "**" if several and cell["best_of_all"] else "*" if cell["best"] else ""
        parts += [best] if best else []
        parts += ["^"] if cell["carried"] else []
        return " ".join(parts)

    texts = cells.assign(text=[text(cell) for _, cell in cells.iterrows()])
    table = texts.pivot(index=["combination", "lr"], columns="method", values="text")
    place = {point: position for position, point in enumerate(points)}
    order = sorted(table.index, key=lambda row: (place[row[0]], row[1]))
    return table.reindex(index=order, columns=in_order(table.columns)).fillna("-")


def accuracy_text(cell: pd.Series) -> str:
    """E.g. "96.1%"; empty for text."""
    accuracy = cell.get("accuracy")
    return f"{accuracy:.1%}" if pd.notna(accuracy) else ""


def leading(results: Results, index: pd.Index) -> list[list[str]]:
    """The values of the axes in each row of `cell_texts`; empty where the row above has them."""
    rows, above = [], None
    for combination, _ in index:
        point = results.points[combination].values()
        rows.append(["" if combination == above else value_text(value) for value in point])
        above = combination
    return rows


def to_csv(results: Results) -> str:
    """One line per cell with full precision; values of a method and scale repeat on its lines.

    The columns are the axes, those of `Results.cells` and, for the cell's combination,
    `Results.methods`, the transfer's from_scale, regret and outcome, and the gap's reference, gap,
    noise and verdict; those of a second reference are in gap_NAME, noise_NAME and verdict_NAME. A
    number that does not exist is an empty field.
    """
    keys = ["scale", "method"]
    best = results.cells.set_index([*keys, "combination", "lr"])["best_of_all"]
    lines = []
    for combination, part in results.parts.items():
        transfer = part.transfer[[*keys, "from_scale", "regret", "low", "high", "outcome"]]
        table = part.cells.assign(metric=results.metric, combination=combination)
        methods = part.methods.drop(columns=["combination", "at_base"])
        for more in (methods, transfer, *_gap_columns(part, results.references)):
            table = table.merge(more, on=keys, how="left")
        for name, value in reversed(results.points[combination].items()):
            table.insert(3, name, value_text(value))
        lines.append(table)
    table = pd.concat(lines, ignore_index=True)
    places = table[[*keys, "combination", "lr"]].itertuples(index=False, name=None)
    table["best_of_all"] = [best[place] for place in places]
    order = {scale: position for position, scale in enumerate(results.scales)}
    table = table.drop(columns="combination")
    table = table.sort_values("scale", key=lambda column: column.map(order), kind="stable")
    return table.to_csv(index=False, lineterminator="\n").rstrip("\n")


def _gap_columns(part: Results, references: list[str]) -> Iterator[pd.DataFrame]:
    """The gaps to each reference, by scale and method; without a reference, empty columns."""
    gaps = part.gaps[["scale", "method", "reference", "gap", "noise", "verdict"]]
    yield gaps[gaps["reference"].isin(references[:1])]
    for name in references[1:]:
        here = gaps[gaps["reference"] == name].drop(columns="reference")
        yield here.rename(columns={key: f"{key}_{name}" for key in ("gap", "noise", "verdict")})


def to_json(results: Results) -> str:
    """Everything in `Results` with full precision; missing and infinite numbers are null."""
    states = results.runs["state"].value_counts().to_dict()
    sizes = results.runs.groupby("scale")["parameters"].max()
    scales = []
    for scale in results.scales:
        here: dict[str, Any] = {"scale": scale, "parameters": sizes[scale]}
        here |= _records(results, scale) | {
            "notes": notes.run_notes(results.runs[results.runs["scale"] == scale], results.metric)
        }
        scales.append(here)
    content = {
        "metric": results.metric,
        "title": TITLES[results.metric],
        "basin_tolerance": TOLERANCE,
        "reference": next(iter(results.references), None),
        "references": results.references,
        "axes": list(results.axes),
        "runs": {str(state): int(count) for state, count in states.items()},
        "unreadable": notes.unreadable_note(results.runs),
        "scales": scales,
    }
    if results.axes:
        content["combinations"] = [
            {
                "combination": name,
                "axes": results.points[name],
                "scales": [{"scale": s} | _records(part, s, cells=False) for s in part.scales],
            }
            for name, part in results.parts.items()
        ]
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def _records(results: Results, scale: str, *, cells: bool = True) -> dict[str, Any]:
    """The rows of one scale; with the values of the axes in place of their text."""
    tables = {"cells": results.cells} if cells else {}
    tables |= {"methods": results.methods, "transfer": results.transfer, "gaps": results.gaps}
    rows = {
        name: table[table["scale"] == scale].drop(columns="scale").to_dict("records")
        for name, table in tables.items()
    }
    for row in [row for group in rows.values() for row in group]:
        if (name := row.pop("combination", None)) is not None and results.axes:
            row["axes"] = results.points[name]
    return rows


def grid(rows: list[list[str]], markdown: bool) -> list[str]:
    """The lines of a table, columns padded to their widths; the first row has the heads."""
    if markdown:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows = [rows[0], ["-" * width for width in widths], *rows[1:]]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    if markdown:
        return [f"| {' | '.join(row)} |" for row in padded]
    return ["   ".join(row).rstrip() for row in padded]


def _losses(results: Results, scale: str) -> list[list[str]]:
    texts = cell_texts(notes.marked_cells(results, scale), results.points)
    heads = [*results.axes.values(), "lr", *texts.columns]
    values = zip(leading(results, texts.index), texts.index, texts.to_numpy(), strict=True)
    return [heads, *([*point, lr_text(row[1]), *line] for point, row, line in values)]


def latex(results: Results) -> str:
    """The loss table of each scale and the transfer table, for a document with ``booktabs``."""
    tables = [_latex_losses(results, scale) for scale in results.scales]
    if len(results.transfer):
        tables.append(_latex_transfer(results))
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables])


def escape(text: str) -> str:
    """``text`` with LaTeX's special characters escaped."""
    return text.translate(_LATEX)


def _latex_losses(results: Results, scale: str) -> str:
    cells = notes.marked_cells(results, scale)
    texts = cell_texts(cells, results.points)
    points = leading(results, texts.index)
    methods = results.methods[results.methods["scale"] == scale].set_index("method")
    rows = methods.to_dict("index")
    table = pd.DataFrame(
        [
            [
                *map(escape, point),
                _latex_lr(lr),
                *map(_latex_cell, line),
            ]
            for point, (_, lr), line in zip(points, texts.index, texts.to_numpy(), strict=True)
        ],
        columns=[*map(escape, results.axes.values()), "lr", *map(escape, texts.columns)],
    )
    first = [r"\midrule basin", *[""] * len(results.axes)]
    table.loc[len(table)] = [*first, *(_latex_basin(rows[name]) for name in texts.columns)]
    bold = "best learning rate of a method"
    if results.axes:
        bold += " and row group; underlined: best of all of them"
    caption = (
        f"{scale}: {TITLES[results.metric]}; {notes.seeds_legend(cells)}. Bold: {bold}. "
        f"Basin: decades of learning rate within {TOLERANCE:g} nat of the best."
    )
    if cells["at_base"].all() and len(texts.columns) > 1:
        caption += " All methods are the same run here."
    if note := notes.carried_note(results, scale):
        caption += f" {escape(note)}."
    return _latex_table(table, caption, len(results.axes) + 1)


def _latex_transfer(results: Results) -> str:
    rows = results.transfer
    table = rows[["method", "from_scale", "scale"]].map(escape)
    table = table.rename(columns={"from_scale": "from", "scale": "to"})
    table["lr"] = rows["lr"].map(_latex_lr)
    if results.axes:
        table["constants"] = rows["combination"].map(escape)
    table["regret"] = [notes.regret_text(row).removeprefix("regret ") for _, row in rows.iterrows()]
    origin = notes.origin(results)
    caption = f"Transfer regret: the loss at the best {origin}, minus the best loss at this scale."
    return _latex_table(table, caption)


def _latex_table(table: pd.DataFrame, caption: str, left: int = 1) -> str:
    text = table.style.hide(axis="index").to_latex(
        hrules=True,
        position="t",
        position_float="centering",
        caption=escape(caption),
        column_format="l" * left + "r" * (len(table.columns) - left),
    )
    return text.replace("±", r"$\pm$").rstrip()


def _latex_cell(text: str) -> str:
    return _latex_marked(text.strip().replace("%", r"\%"))


def _latex_marked(text: str) -> str:
    if text.endswith(" ^"):
        return f"{_latex_marked(text.removesuffix(' ^'))} {escape('^')}"
    if text.endswith(" **"):
        return f"\\underline{{\\textbf{{{text.removesuffix(' **')}}}}}"
    if text.endswith(" *"):
        return f"\\textbf{{{text.removesuffix(' *')}}}"
    return "--" if text == "-" else text


def _latex_basin(row: dict[Hashable, Any]) -> str:
    bound = r"$\geq$" if row["basin_lower_bound"] else ""
    return "--" if pd.isna(row["basin_decades"]) else f"{bound}{row['basin_decades']:.2f}"


def _latex_lr(lr: float) -> str:
    digits, exponent = lr_parts(lr)
    power = f"10^{{{exponent}}}"
    return f"${power}$" if digits == "1" else f"${digits} \\times {power}$"
