"""CSV, JSON and LaTeX of a sweep, read back by other readers."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run, write_sweep

from train.results.collect import collect
from train.results.formats import escape, render
from train.table import main

LOSS = 3.1234567890123457  # has no shorter decimal form


def read_csv(root: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(render(collect(root), "validation", "csv"))))


def read_json(root: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = render(collect(root), "validation", "json")
    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


def two_scales(root: Path) -> None:
    """s1: maxP 3.0 +- sqrt(0.5) of two seeds; s2: the same lr diverges, a smaller one trains."""
    for seed, loss in enumerate([2.5, 3.5]):
        write_run(root, lr=0.01, seed=seed, validation=loss)
    write_run(root, scale="s2", lr=0.01, state="diverged")
    write_run(root, scale="s2", lr=0.001, validation=LOSS)
    write_run(root, scale="s2", lr=0.0001, state="running")


def test_csv_keeps_every_digit_and_every_count(tmp_path: Path) -> None:
    two_scales(tmp_path)
    rows = read_csv(tmp_path)
    assert [(row["scale"], float(row["lr"])) for row in rows] == [
        ("s1", 0.01),
        ("s2", 0.0001),
        ("s2", 0.001),
        ("s2", 0.01),
    ]
    assert float(rows[0]["std"]) == pytest.approx(math.sqrt(0.5), rel=1e-15)
    assert float(rows[2]["mean"]) == LOSS
    counts = [(row["finished"], row["diverged"], row["runs"]) for row in rows]
    assert counts == [("2", "0", "2"), ("0", "0", "1"), ("1", "0", "1"), ("0", "1", "1")]
    assert rows[1]["mean"] == ""


def test_csv_repeats_what_holds_for_a_method_and_scale(tmp_path: Path) -> None:
    two_scales(tmp_path)
    rows = read_csv(tmp_path)
    assert {(float(row["best_loss"]), row["outcome"]) for row in rows[1:]} == {(LOSS, "diverged")}
    assert rows[3]["basin_high_end"] == "diverged"


def test_json_keeps_every_digit_and_has_null_for_what_is_no_number(tmp_path: Path) -> None:
    two_scales(tmp_path)
    content = read_json(tmp_path)
    assert content["runs"] == {"completed": 3, "diverged": 1, "running": 1}
    small, large = content["scales"]
    (cell,) = small["cells"]
    assert (cell["mean"], cell["finished"], cell["best"]) == (3.0, 2, True)
    assert [cell["mean"] for cell in large["cells"]] == [None, LOSS, None]
    (transfer,) = large["transfer"]
    assert (transfer["regret"], transfer["outcome"]) == (None, "diverged")
    assert large["notes"] == ["not finished: 1 running"]


def test_latex_marks_the_best_and_escapes_names(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s_1", method="50%&more", lr=0.01, validation=3.0)
    write_run(tmp_path, scale="s_1", method="50%&more", lr=0.003, validation=3.5)
    lines = render(collect(tmp_path), "validation", "latex").splitlines()
    assert "lr & 50\\%\\&more \\\\" in lines
    assert "$3 \\times 10^{-3}$ & 3.5000 \\\\" in lines
    assert "$10^{-2}$ & \\textbf{3.0000} \\\\" in lines
    assert any(line.startswith("\\caption{s\\_1: validation loss") for line in lines)


def test_every_special_character_of_latex_is_escaped() -> None:
    assert escape(r"a\b{c}") == r"a\textbackslash{}b\{c\}"
    assert escape("#$%&_~^") == r"\#\$\%\&\_\textasciitilde{}\textasciicircum{}"


@pytest.mark.exhaustive  # needs a TeX
def test_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex on this machine (Debian: texlive-latex-recommended)")
    write_sweep(tmp_path / "runs")
    write_run(tmp_path / "runs", scale="a_b~c^d\\e", method="{x}#$<>", validation=3.0)
    tables = render(collect(tmp_path / "runs"), "validation", "latex")
    source = "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
    (tmp_path / "t.tex").write_text(f"{source}{tables}\n\\end{{document}}\n")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 0


def test_markdown_escapes_what_would_end_a_cell(tmp_path: Path) -> None:
    write_run(tmp_path, method="a|b", validation=3.0)
    assert render(collect(tmp_path), "validation", "markdown").splitlines()[2] == (
        "| lr   | a\\|b     |"
    )


def test_the_carried_lr_is_marked_where_it_was_carried_to(tmp_path: Path) -> None:
    two_scales(tmp_path)
    first, second = render(collect(tmp_path), "validation").split("\n\ns2: ")
    assert "^" not in first
    assert "^ best lr of s1" in second.splitlines()[0]
    (marked,) = [line for line in second.splitlines() if line.endswith(" ^")]
    assert marked.split() == ["1e-2", "diverged", "1/1", "^"]
    assert r"diverged 1/1 \textasciicircum{}" in render(collect(tmp_path), "validation", "latex")


def test_transfer_is_described_below_the_tables(tmp_path: Path) -> None:
    two_scales(tmp_path)
    lines = render(collect(tmp_path), "validation").splitlines()
    assert lines[-1] == "maxP   s1 -> s2   lr 1e-2   diverged at that lr"


@pytest.mark.parametrize("style", ["text", "markdown", "csv", "json", "latex"])
def test_a_sweep_of_which_nothing_finished_has_every_format(tmp_path: Path, style: Any) -> None:
    write_run(tmp_path, scale="s1", state="running")
    write_run(tmp_path, scale="s2", state="failed")
    text = render(collect(tmp_path), "validation", style)
    assert "s1" in text
    assert "s2" in text


def test_the_command_writes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs", validation=3.0)
    main(tmp_path / "runs", format="csv", to=tmp_path / "t.csv")
    assert capsys.readouterr().out == ""
    assert (tmp_path / "t.csv").read_text().startswith("scale,lr,method,mean,")


def test_the_command_names_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", validation=3.0)
    with pytest.raises(SystemExit, match=r"--to .*missing/t.csv cannot be written \(No such file"):
        main(tmp_path / "runs", to=tmp_path / "missing" / "t.csv")
