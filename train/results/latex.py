"""A sweep's results as LaTeX: one table a scale, in booktabs."""

from __future__ import annotations

import math

import pandas as pd

from train.results import notes
from train.results.analysis import Results
from train.results.basin import TOLERANCE
from train.results.cells import TITLES
from train.results.names import in_order, lr_parts

_SPECIAL = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def latex(results: Results) -> str:
    """The tables of all scales and that of the transfer, for a document with ``booktabs``."""
    tables = [_scale(results, scale) for scale in results.scales]
    if len(results.transfer):
        tables.append(_transfer(results))
    return "\n\n".join(["% needs \\usepackage{booktabs}", *tables])


def escape(text: str) -> str:
    """``text`` such that LaTeX prints it as it is."""
    return "".join(_SPECIAL.get(character, character) for character in text)


def _scale(results: Results, scale: str) -> str:
    cells = results.cells[results.cells["scale"] == scale]
    methods = in_order(cells["method"].unique())
    grid = cells.set_index(["lr", "method"])
    rows = []
    for lr in sorted(cells["lr"].unique()):
        line = [_lr(lr)]
        for method in methods:
            line.append(_cell(grid.loc[(lr, method)]) if (lr, method) in grid.index else "--")
        rows.append(line)
    here = results.methods[results.methods["scale"] == scale].set_index("method").to_dict("index")
    basin = ["basin"]
    for method in methods:
        row = here[method]
        bound = r"$\geq$" if row["basin_lower_bound"] else ""
        basin.append(
            "--" if math.isnan(row["basin_decades"]) else f"{bound}{row['basin_decades']:.2f}"
        )
    spread = notes.seeds_legend(cells).replace("±", r"$\pm$")
    caption = (
        f"{escape(scale)}: {TITLES[results.metric]}; {spread}. Bold: best learning rate of a "
        f"method. Basin: decades of learning rate within {TOLERANCE:g} nat of the best."
    )
    return _table(["lr", *map(escape, methods)], [*rows, basin], caption, rules={len(rows)})


def _transfer(results: Results) -> str:
    rows = []
    for _, row in results.transfer.iterrows():
        measured = row["outcome"] == "measured" and not math.isnan(row["regret"])
        regret = f"{row['regret']:.4f}" if measured else notes.regret_text(row)
        names = [escape(row[key]) for key in ("method", "from_scale", "scale")]
        rows.append([*names, _lr(row["lr"]), regret])
    caption = (
        "Transfer regret: the loss at the best learning rate of the smallest scale, less the best "
        "loss at this scale."
    )
    return _table(["method", "from", "to", "lr", "regret"], rows, caption)


def _table(
    header: list[str], rows: list[list[str]], caption: str, rules: set[int] | None = None
) -> str:
    lines = [r"\begin{table}[t]", r"\centering", f"\\caption{{{caption}}}"]
    lines += [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", r"\toprule"]
    lines += [" & ".join(header) + r" \\", r"\midrule"]
    for position, row in enumerate(rows):
        lines += [r"\midrule"] if position in (rules or ()) else []
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def _cell(cell: pd.Series) -> str:
    diverged = f"diverged {cell['diverged']}/{cell['runs']}" if cell["diverged"] else ""
    if cell["finished"] == 0:
        return diverged or "--"
    loss = f"{cell['mean']:.4f}"
    text = f"\\textbf{{{loss}}}" if cell["best"] else loss
    text += f" $\\pm$ {cell['std']:.4f}" if pd.notna(cell["std"]) else ""
    return f"{text} ({diverged})" if diverged else text


def _lr(lr: float) -> str:
    digits, exponent = lr_parts(lr)
    power = f"10^{{{exponent}}}"
    return f"${power}$" if digits == "1" else f"${digits} \\times {power}$"
