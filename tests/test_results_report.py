"""The HTML report: what it says, and that a real browser shows it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_runs import write_run, write_sweep

from train.results.collect import collect
from train.results.report import main, report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
CLICK = "document.querySelector('#runs th:nth-child({}) button').click();"


class Rows(HTMLParser):
    """The cells of the body of the table with one id, as text, and whether each row is hidden."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.hidden: list[bool] = []
        self._table, self._inside, self._cell = table, False, False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "table":
            self._inside = given.get("id") == self._table
        elif tag == "tr" and self._inside:
            self.rows.append([])
            self.hidden.append("hidden" in given)
        elif tag == "td" and self._inside:
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def rows(page: str, table: str) -> list[list[str]]:
    parser = Rows(table)
    parser.feed(page)
    return [row for row in parser.rows if row]


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


def sweep_page(root: Path) -> str:
    write_sweep(root)
    return report(collect(root), "sweep <1> & more")


def test_the_report_asks_for_nothing_outside_itself(tmp_path: Path) -> None:
    page = sweep_page(tmp_path)
    namespaces = r"http://www\.w3\.org/(2000/svg|1999/xlink)"
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(namespaces, "", page).split("<script>")[0])
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("#", "data:")) for source in sources)
    assert "default-src 'none'" in page


def test_the_report_lists_every_run_with_its_state(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0, name="done")
    write_run(tmp_path, state="failed", reason="disk full", name="lost")
    (write_run(tmp_path, name="torn") / "config.json").write_text("{")
    listed = {row[0]: (row[5], row[-1]) for row in rows(report(collect(tmp_path), "t"), "runs")}
    assert listed["done"] == ("completed", "")
    assert listed["lost"] == ("failed", "failed at step 400: disk full")
    assert listed["torn"][0] == "unreadable"


def test_seeds_are_whole_numbers_beside_a_folder_that_has_none(tmp_path: Path) -> None:
    write_run(tmp_path, seed=3, validation=3.0, name="done")
    (write_run(tmp_path, name="torn") / "config.json").write_text("{")
    assert [row[4] for row in rows(report(collect(tmp_path), "t"), "runs")] == ["3", "–"]


def test_failures_of_one_reason_are_counted_together(tmp_path: Path) -> None:
    for seed, reason in enumerate(["disk full", "no memory", "no memory"]):
        write_run(tmp_path, seed=seed, state="failed", reason=reason)
    reasons = [row[:3] for row in rows(report(collect(tmp_path), "t"), "reasons")]
    assert reasons == [
        ["2", "failed", "failed at step 400: no memory"],
        ["1", "failed", "failed at step 400: disk full"],
    ]


def test_words_of_a_run_are_never_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    write_run(tmp_path, scale=nasty, method=nasty, validation=3.0, name="a")
    write_run(tmp_path, state="failed", reason=nasty, name="b")
    assert nasty not in report(collect(tmp_path), nasty)


def test_the_summary_says_best_basin_regret_and_noise(tmp_path: Path) -> None:
    for scale, best in (("s1", 1e-2), ("s2", 1e-1)):
        for lr in (1e-3, 1e-2, 1e-1):
            for method, more in (("maxP", 0.0), ("mup-full", 0.25)):
                loss = 3.0 + more + (0.0 if lr == best else 0.5)
                write_run(tmp_path, scale=scale, method=method, lr=lr, validation=loss)
    first, *_, last = rows(report(collect(tmp_path), "t"), "validation-summary")
    # 0.05 of 0.5 nats a decade: 0.1 decades a side; open above in s2, where the grid ends.
    assert first[:6] == ["s1", "maxP", "3.0000 n = 1", "1e-2", "0.20", "–"]
    assert first[6:] == ["-0.2500", "unknown: too few seeds n = 1"]
    assert last[:6] == ["s2", "mup-full", "3.2500 n = 1", "1e-1", "≥ 0.10", "0.5000 lr 1e-2"]


def test_a_sweep_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, state="running")
    write_run(tmp_path, seed=1, state=None)
    page = report(collect(tmp_path), "t")
    assert [row[5] for row in rows(page, "runs")] == ["running", "no status"]


def test_the_report_is_written_beside_nothing_else(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", validation=3.0)
    file = tmp_path / "out" / "r.html"
    main(tmp_path / "runs", to=file)
    assert [path.name for path in file.parent.iterdir()] == ["r.html"]
    assert "<title>runs</title>" in file.read_text()


def test_a_folder_without_runs_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"RUNS_DIR .* holds no runs"):
        main(tmp_path)


@pytest.mark.slow
def test_a_browser_shows_the_report_without_an_error(tmp_path: Path) -> None:
    page = sweep_page(tmp_path / "runs")
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
def test_an_error_in_the_page_would_be_seen(tmp_path: Path) -> None:
    _, console = browse(sweep_page(tmp_path / "runs"), tmp_path, "--dump-dom", script="nothing()")
    assert "nothing is not defined" in console


@pytest.mark.slow
def test_a_click_on_a_head_sorts_the_table_and_another_turns_it(tmp_path: Path) -> None:
    page = sweep_page(tmp_path / "runs")
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
def test_words_sort_as_words_and_learning_rates_as_numbers(tmp_path: Path) -> None:
    page = sweep_page(tmp_path / "runs")
    by_lr, _ = browse(page, tmp_path, "--dump-dom", script=CLICK.format(4))
    lrs = [float(row[3]) for row in rows(by_lr, "runs")]
    assert lrs == sorted(lrs)
    by_state, _ = browse(page, tmp_path, "--dump-dom", script=CLICK.format(6))
    states = [row[5] for row in rows(by_state, "runs")]
    assert states == sorted(states)


@pytest.mark.slow
def test_the_filter_hides_the_runs_without_its_words(tmp_path: Path) -> None:
    type_words = (
        "const box = document.getElementById('filter'); box.value = 'mup-no DIVERGED';"
        "box.dispatchEvent(new Event('input'));"
    )
    dom, _ = browse(sweep_page(tmp_path / "runs"), tmp_path, "--dump-dom", script=type_words)
    parser = Rows("runs")
    parser.feed(dom)
    shown = [
        row for row, hidden in zip(parser.rows, parser.hidden, strict=True) if row and not hidden
    ]
    assert len(shown) == 6
    assert {(row[2], row[5]) for row in shown} == {("mup-no", "diverged")}
