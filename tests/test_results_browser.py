"""The controls of the report's charts, in a real browser: smoothing, and the choice of a method."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from fake_runs import write_run, write_sweep
from test_results_report import browse

from train.results.collect import collect
from train.results.report import report

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
