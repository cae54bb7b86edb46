"""The HTML report in a real browser: what it loads, its tables, and the controls of its charts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_runs import write_run, write_sweep
from report_pages import H100, Rows, rows

from train.results.collect import collect
from train.results.report import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CLICK = "document.querySelector('#runs th:nth-child({}) button').click();"


def browse(page: str, folder: Path, *options: str, script: str = "") -> tuple[str, str]:
    """Open a page in headless Chromium: what it printed, and the console's lines."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine (Debian: chromium)")
    file = folder / "page.html"
    file.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", "--v=0", f"--user-data-dir={folder / 'profile'}"),
            *("--window-size=1280,4400", *options, file.as_uri()),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, "\n".join(console)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a sweep."""
    root = tmp_path_factory.mktemp("sweep")
    write_sweep(root)
    return report(collect(root), "sweep <1> & more")


def test_the_report_asks_for_nothing_outside_itself(page: str) -> None:
    namespaces = r"http://www\.w3\.org/(2000/svg|1999/xlink)"
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(namespaces, "", page).split("<script>")[0])
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "default-src 'none'" in page


@pytest.mark.slow
def test_a_browser_shows_the_report_without_an_error(page: str, tmp_path: Path) -> None:
    for theme in ("light", "dark"):
        shot = tmp_path / f"report-{theme}.png"
        dark = f"--blink-settings=preferredColorScheme={0 if theme == 'dark' else 1}"
        _, console = browse(page, tmp_path, f"--screenshot={shot}", dark)
        assert console == ""
        assert shot.read_bytes().startswith(b"\x89PNG")
        if kept := os.environ.get("MAXP_ARTEFACTS"):
            Path(kept).mkdir(parents=True, exist_ok=True)
            shutil.copy(shot, kept)


@pytest.mark.slow
def test_an_error_in_the_page_would_be_seen(page: str, tmp_path: Path) -> None:
    _, console = browse(page, tmp_path, "--dump-dom", script="nothing()")
    assert "nothing is not defined" in console


@pytest.mark.slow
def test_a_click_on_a_head_sorts_the_table_and_another_turns_it(page: str, tmp_path: Path) -> None:
    before = rows(page, "runs")
    column = 8  # validation, counted from 0

    def numbers(shown: list[list[str]]) -> list[float]:
        assert sorted(shown) == sorted(before)
        known = [row[column] != "–" for row in shown]
        assert known == sorted(known, reverse=True)  # what is missing comes last
        return [float(row[column]) for row in shown if row[column] != "–"]

    once, console = browse(page, tmp_path, "--dump-dom", script=CLICK.format(column + 1))
    rising = numbers(rows(once, "runs"))
    assert rising == sorted(rising)
    assert rising != [float(row[column]) for row in before if row[column] != "–"]
    twice, _ = browse(page, tmp_path, "--dump-dom", script=CLICK.format(column + 1) * 2)
    assert numbers(rows(twice, "runs")) == rising[::-1]
    assert console == ""


@pytest.mark.slow
def test_words_sort_as_words_and_learning_rates_as_numbers(page: str, tmp_path: Path) -> None:
    by_lr, _ = browse(page, tmp_path, "--dump-dom", script=CLICK.format(4))
    lrs = [float(row[3]) for row in rows(by_lr, "runs")]
    assert lrs == sorted(lrs)
    by_state, _ = browse(page, tmp_path, "--dump-dom", script=CLICK.format(6))
    states = [row[5] for row in rows(by_state, "runs")]
    assert states == sorted(states)


@pytest.mark.slow
def test_the_filter_hides_the_runs_without_its_words(page: str, tmp_path: Path) -> None:
    type_words = (
        "const box = document.getElementById('filter'); box.value = 'mup-no DIVERGED';"
        "box.dispatchEvent(new Event('input'));"
    )
    dom, _ = browse(page, tmp_path, "--dump-dom", script=type_words)
    parser = Rows("runs")
    parser.feed(dom)
    shown = [
        row for row, hidden in zip(parser.rows, parser.hidden, strict=True) if row and not hidden
    ]
    assert len(shown) == 6
    assert {(row[2], row[5]) for row in shown} == {("mup-no", "diverged")}


@pytest.mark.slow
def test_hovering_shows_the_logged_values_and_a_click_the_configuration(tmp_path: Path) -> None:
    losses = {1: 9.0, 2: 5.25, 3: 4.125}
    records = [{"step": step, "loss": loss} for step, loss in losses.items()]
    write_run(tmp_path / "runs", validation=3.0, records=records, recorded={"hardware": H100})
    hover = (  # charts are drawn for printing without waiting for a frame
        "dispatchEvent(new Event('beforeprint'));"
        "setTimeout(() => {"
        "const over = document.querySelector('.u-over'), box = over.getBoundingClientRect();"
        "const at = {clientX: box.left + box.width / 2, clientY: box.top + 20, bubbles: true};"
        "over.dispatchEvent(new MouseEvent('mouseenter', at));"
        "over.dispatchEvent(new MouseEvent('mousemove', at));"
        "document.querySelector('button[data-run]').click(); });"
    )
    page = report(collect(tmp_path / "runs"), "t")
    dom, console = browse(page, tmp_path, "--dump-dom", "--virtual-time-budget=3000", script=hover)
    assert console == ""
    assert re.findall(r'class="u-value">([^<]*)<', dom)[:2] == ["2", "5.2500"]
    shown = dom[dom.index("<dialog") :]
    assert "8 x NVIDIA H100 80GB HBM3" in shown
    assert "<th>clip</th><td>1</td>" in shown


# The controls of the charts

WAIT = ("--dump-dom", "--virtual-time-budget=3000")
CHANGE = (  # once the charts are drawn, as they are for printing without waiting for a frame
    "const change = (id, event, value) => {{ const control = document.getElementById(id);"
    "control.value = value; control.dispatchEvent(new Event(event)); }};"
    "dispatchEvent(new Event('beforeprint')); setTimeout(() => {{ {} }});"
)
HOVER = (  # at the middle of the first chart
    "const over = document.querySelector('.u-over'), box = over.getBoundingClientRect();"
    "const at = {clientX: box.left + box.width / 2, clientY: box.top + 20, bubbles: true};"
    "over.dispatchEvent(new MouseEvent('mouseenter', at));"
    "over.dispatchEvent(new MouseEvent('mousemove', at));"
)


def hovered(page: str, folder: Path, smoothing: float) -> tuple[str, list[str]]:
    """The number beside the slider, and step and value under the cursor."""
    script = CHANGE.format(f"change('smoothing', 'input', {smoothing}); {HOVER}")
    dom, console = browse(page, folder, *WAIT, script=script)
    assert console == ""
    (beside,) = re.findall(r"<output[^>]*>([^<]*)</output>", dom)
    return beside, re.findall(r'class="u-value">([^<]*)<', dom)[:2]


@pytest.mark.slow
def test_smoothing_averages_exponentially_from_the_first_step(tmp_path: Path) -> None:
    losses = {1: 9.0, 2: 5.25, 3: 4.125}
    records = [{"step": step, "loss": loss} for step, loss in losses.items()]
    write_run(tmp_path / "runs", validation=3.0, records=records)
    page = report(collect(tmp_path / "runs"), "t")
    # Weights of steps 1 and 2 at 0.5: 1/4 and 1/2, divided by their sum.
    assert hovered(page, tmp_path, 0.5) == ("0.5", ["2", "6.5000"])
    assert hovered(page, tmp_path, 0) == ("0", ["2", "5.2500"])


@pytest.mark.slow
def test_the_selector_shows_the_charts_of_one_method(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", scales=2)
    shown = (
        "const shown = () => [...document.querySelectorAll('.method')].map(part => ["
        "part.dataset.method, !part.hidden, part.querySelectorAll('.chart').length,"
        "part.querySelectorAll('.chart canvas').length]);"
        "const before = shown(); change('method', 'change', 'mup-no');"
        "document.title = JSON.stringify([before, shown()]);"
    )
    page = report(collect(tmp_path / "runs"), "t")
    dom, console = browse(page, tmp_path, *WAIT, script=CHANGE.format(shown))
    assert console == ""
    (title,) = re.findall(r"<title>(.*?)</title>", dom)
    before, after = json.loads(title)
    charts = 4  # c and the learning rate at two scales
    assert before == [
        ["maxP", True, charts, charts], ["mup-full", False, charts, 0],
        ["mup-no", False, charts, 0],
    ]  # fmt: skip
    assert after == [
        ["maxP", False, charts, charts], ["mup-full", False, charts, 0],
        ["mup-no", True, charts, charts],
    ]  # fmt: skip
