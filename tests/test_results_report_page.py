"""The HTML report as a page: its charts, its markup, the file that is written, and its licences."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from fake_runs import write_run
from report_pages import SPEED, data, named

from train.results.collect import collect
from train.results.report import main, report


def test_the_page_has_a_chart_for_each_scale_and_value(tmp_path: Path) -> None:
    for scale in ("s1", "s2"):
        sites = {"lm_head": {"lr": 0.1, "c": 0.5, "align_dZ_dW": 0.75}}
        records = [{"step": 1, "loss": 4.0, "sites": sites}]
        write_run(tmp_path, scale=scale, validation=3.0, records=records)
    page = report(collect(tmp_path), "t")
    shown = [(panel["label"], panel["title"]) for panel in data(page)["panels"]]
    labels = ["training loss (nats)", "align_dZ_dW", "c (lr ∝ width^-c)", "learning rate"]
    assert shown == [(label, scale) for label in labels for scale in ("s1", "s2")]
    assert re.findall(r'data-panel="(\d+)"', page) == [str(n) for n in range(8)]


def test_without_a_finished_run_there_are_no_curves(tmp_path: Path) -> None:
    write_run(tmp_path, state="running", records=SPEED)
    write_run(tmp_path, seed=1, state="diverged", records=SPEED)
    page = report(collect(tmp_path), "t")
    assert data(page)["panels"] == []
    assert 'id="steps"' not in page
    assert [row["state"] for row in named(page)] == ["running", "diverged"]


def test_words_of_a_run_are_never_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    write_run(tmp_path, scale=nasty, method=nasty, validation=3.0, name="a")
    write_run(tmp_path, state="failed", reason=nasty, name="b")
    assert nasty not in report(collect(tmp_path), nasty)


def test_the_report_is_written_beside_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", validation=3.0)
    file = tmp_path / "out" / "r.html"
    main(tmp_path / "runs", to=file)
    assert [path.name for path in file.parent.iterdir()] == ["r.html"]
    assert "<title>runs</title>" in file.read_text()


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"RUNS_DIR .* holds no runs"):
        main(tmp_path)


def test_everything_that_the_page_is_made_of_is_in_the_package() -> None:
    root = Path(__file__).parent.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = listed["package-data"]["train"]
    packed = {path for pattern in patterns for path in (root / "train").glob(pattern)}
    packed |= {child for path in packed if path.is_dir() for child in path.iterdir()}
    files = {path for path in (root / "train").rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} <= packed
    assert "MIT License" in (root / "train/results/assets/uplot/LICENSE").read_text()


def test_the_page_carries_the_licence_of_its_plotting_library(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0)
    page = report(collect(tmp_path), "t")
    assert page.index("Copyright (c) 2022 Leon Sorokin") < page.index("var uPlot=")
