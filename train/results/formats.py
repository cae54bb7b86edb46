"""A sweep's results as text, Markdown, CSV, JSON and LaTeX."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable
from typing import Any

import pandas as pd

from train.results import notes
from train.results.analysis import TITLES, Results
from train.results.basin import TOLERANCE
from train.results.names import Format, Metric, in_order, lr_parts, lr_text
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
    writers: dict[Format, Callable[[Results], str]] = {
        "text": lambda results: prose(results, markdown=False),
        "markdown": lambda results: prose(results, markdown=True),
        "csv": to_csv,
        "json": to_json,
        "latex": latex,
    }
    return writers[style](Results.of(runs, metric))


def prose(results: Results, *, markdown: bool) -> str:
    """The tables of all scales as plain text or Markdown, with notes below each."""
    heading, bullet = ("### ", "- ") if markdown else ("", "")

    def listed(lines: list[str]) -> str:
        return "\n".join(bullet + line for line in lines)

    blocks: list[str] = []
    for scale in results.scales:
        cells = results.cells[results.cells["scale"] == scale]
        legend = f"* best lr, {notes.seeds_legend(cells)}"
        blocks.append(f"{heading}{scale}: {TITLES[results.metric]} ({legend})")
        blocks.append("\n".join(_grid(cell_texts(cells), markdown)))
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
        blocks.append(f"{heading}transfer: loss at the smallest scale's best lr - best loss")
        blocks.append(listed(notes.transfer_lines(results)))
    unreadable = notes.unreadable_note(results.runs)
    return "\n\n".join(blocks + ([bullet + unreadable] if unreadable else []))


def cell_texts(cells: pd.DataFrame) -> pd.DataFrame:
    """The cells of one scale as text: rows are lrs, ascending; columns are methods, in order."""
    width = max((len(f"{mean:.4f}") for mean in cells["mean"].dropna()), default=1)
    counts = cells.loc[cells["seeds"] > 0, "seeds"]

    def text(cell: pd.Series) -> str:
        diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
        if cell["finished"] == 0:
            return diverged or "-"
        parts = [f"{cell['mean']:.4f}".rjust(width)]
        parts += [f"± {cell['std']:.4f}"] if pd.notna(cell["std"]) else []
        remarks = [f"n={cell['seeds']}"] if cell["seeds"] != counts.max() else []
        remarks += [diverged] if diverged else []
        parts += [f"({', '.join(remarks)})"] if remarks else []
        parts += ["*"] if cell["best"] else []
        return " ".join(parts)

    texts = cells.assign(text=[text(cell) for _, cell in cells.iterrows()])
    grid = texts.pivot(index="lr", columns="method", values="text")
    return grid.reindex(columns=in_order(grid.columns)).fillna("-")


def to_csv(results: Results) -> str:
    """One line per cell with full precision; values of a method and scale repeat on its lines.

    The columns are those of `Results.cells` and `Results.methods`, the transfer's from_scale,
    regret and outcome, and the gap's reference, gap, noise and verdict. A number that does not
    exist is an empty field.
    """
    keys = ["scale", "method"]
    transfer = results.transfer[[*keys, "from_scale", "regret", "outcome"]]
    gaps = results.gaps[[*keys, "reference", "gap", "noise", "verdict"]]
    table = results.cells.assign(metric=results.metric)
    for more in (results.methods, transfer, gaps):
        table = table.merge(more, on=keys, how="left")
    order = {scale: position for position, scale in enumerate(results.scales)}
    table = table.sort_values(
        ["scale", "lr"], key=lambda c: c.map(order) if c.name == "scale" else c
    )
    return table.to_csv(index=False, lineterminator="\n").rstrip("\n")


def to_json(results: Results) -> str:
    """Everything in `Results` with full precision; missing and infinite numbers are null."""
    states = results.runs["state"].value_counts().to_dict()
    sizes = results.runs.groupby("scale")["parameters"].max()
    scales = []
    for scale in results.scales:
        here: dict[str, Any] = {"scale": scale, "parameters": sizes[scale]}
        for name, table in (
            ("cells", results.cells),
            ("methods", results.methods),
            ("transfer", results.transfer),
            ("gaps", results.gaps),
        ):
            rows = table[table["scale"] == scale].drop(columns="scale")
            here[name] = rows.to_dict("records")
        here["notes"] = notes.run_notes(
            results.runs[results.runs["scale"] == scale], results.metric
        )
        scales.append(here)
    content = {
        "metric": results.metric,
        "title": TITLES[results.metric],
        "basin_tolerance": TOLERANCE,
        "reference": results.reference,
        "runs": {str(state): int(count) for state, count in states.items()},
        "unreadable": notes.unreadable_note(results.runs),
        "scales": scales,
    }
    return json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False)


def _grid(texts: pd.DataFrame, markdown: bool) -> list[str]:
    """The lines of a table, columns padded to their widths."""
    rows = [["lr", *texts.columns]]
    rows += [[lr_text(lr), *line] for lr, line in zip(texts.index, texts.to_numpy(), strict=True)]
    if markdown:
        rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in rows]
    if markdown:
        return [f"| {' | '.join(row)} |" for row in padded]
    return ["   ".join(row).rstrip() for row in padded]


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
    cells = results.cells[results.cells["scale"] == scale]
    table = cell_texts(cells).map(_latex_cell)
    table.index = table.index.map(_latex_lr)
    methods = results.methods[results.methods["scale"] == scale].set_index("method")
    rows = methods.to_dict("index")
    table.loc[r"\midrule basin"] = [_latex_basin(rows[name]) for name in table.columns]
    caption = (
        f"{scale}: {TITLES[results.metric]}; {notes.seeds_legend(cells)}. Bold: best learning rate "
        f"of a method. Basin: decades of learning rate within {TOLERANCE:g} nat of the best."
    )
    return _latex_table(table.rename_axis("lr").rename(columns=escape).reset_index(), caption)


def _latex_transfer(results: Results) -> str:
    rows = results.transfer
    table = rows[["method", "from_scale", "scale"]].map(escape)
    table = table.rename(columns={"from_scale": "from", "scale": "to"})
    table["lr"] = rows["lr"].map(_latex_lr)
    table["regret"] = [notes.regret_text(row).removeprefix("regret ") for _, row in rows.iterrows()]
    caption = (
        "Transfer regret: the loss at the best learning rate of the smallest scale, minus the best "
        "loss at this scale."
    )
    return _latex_table(table, caption)


def _latex_table(table: pd.DataFrame, caption: str) -> str:
    text = table.style.hide(axis="index").to_latex(
        hrules=True,
        position="t",
        position_float="centering",
        caption=escape(caption),
        column_format="l" + "r" * (len(table.columns) - 1),
    )
    return text.replace("±", r"$\pm$").rstrip()


def _latex_cell(text: str) -> str:
    text = text.strip()
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
