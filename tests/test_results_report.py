"""The HTML report: what it says, and that a real browser shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

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
    page = report(collect(tmp_path), "t")
    first, *_, last = rows(page, "validation-summary")
    # 0.05 of 0.5 nats a decade: 0.1 decades a side; open above in s2, where the grid ends.
    assert first == ["s1", "maxP", "3.0000 n = 1", "1e-2", "–", "–", "–", "0.20"]
    assert last[:4] == ["s2", "mup-full", "3.2500 n = 1", "1e-1 highest lr of the grid"]
    assert last[4:] == ["3.7500", "1e-2 from s1", "0.5000 one seed, no interval", "≥ 0.10"]
    assert rows(page, "validation-gaps") == [
        ["s1", "-0.2500 too few seeds to tell (n = 1)"],
        ["s2", "-0.2500 too few seeds to tell (n = 1)"],
    ]


def test_the_regret_of_the_carried_lr_has_its_interval(tmp_path: Path) -> None:
    """Differences 0.1, 0.2, 0.6: mean 0.3, s 0.26458; t of 2 degrees of freedom is 4.302653."""
    write_run(tmp_path, scale="s1", lr=1e-2, validation=3.0)
    for seed, difference in enumerate([0.1, 0.2, 0.6]):
        for lr, more in ((1e-2, difference), (1e-1, 0.0)):
            write_run(tmp_path, scale="s2", lr=lr, seed=seed, validation=2.0 + more)
    *_, row = rows(report(collect(tmp_path), "t"), "validation-summary")
    assert row[4:7] == ["2.3000", "1e-2 from s1", "0.3000 95% -0.3572 to 0.9572, n = 3"]


def test_a_carried_lr_that_diverged_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s1", lr=1e-1, validation=3.0)
    write_run(tmp_path, scale="s2", lr=1e-2, validation=2.0)
    write_run(tmp_path, scale="s2", lr=1e-1, state="diverged")
    *_, row = rows(report(collect(tmp_path), "t"), "validation-summary")
    assert row[4:7] == ["–", "1e-1 from s1", " diverged at that lr"]


def test_methods_are_compared_with_both_references(tmp_path: Path) -> None:
    for method, losses in {
        "maxP": [3.0, 3.5],
        "mup-full": [3.5, 4.0],
        "mup-no": [3.25, 3.5],
    }.items():
        for seed, loss in enumerate(losses):
            write_run(tmp_path, method=method, seed=seed, validation=loss)
    page = report(collect(tmp_path), "t")
    head = "maxP - mup-full", "mup-no - mup-full", "maxP - mup-no"
    positions = [page.index(f"<button>{name}</button>") for name in head]
    assert positions == sorted(positions)
    # The standard deviation of two numbers is their difference over the square root of 2.
    assert rows(page, "validation-gaps") == [
        [
            "s1",
            "-0.5000 beyond one std (0.3536, n = 2)",
            "-0.3750 beyond one std (0.3536, n = 2)",
            "-0.1250 within one std (0.3536, n = 2)",
        ]
    ]


H100 = {"type": "cuda", "device": "NVIDIA H100 80GB HBM3", "world_size": 8, "host": "node7"}
SPEED = [{"step": 400, "loss": 3.0, "tokens": 7_200_000, "tokens_per_second": 500.0}]


def data(page: str) -> dict[str, Any]:
    """What the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    read: dict[str, Any] = json.loads(text)
    return read


def named(page: str) -> list[dict[str, str]]:
    """The rows of the table of runs, by head."""
    heads = re.findall(r"<button>([^<]*)</button>", page[page.index('id="runs"') :])
    return [dict(zip(heads, row, strict=False)) for row in rows(page, "runs")]


def test_a_run_has_its_hardware_commit_hours_and_log(tmp_path: Path) -> None:
    sweep = tmp_path / "runs" / "my sweep"
    recorded = {"git_commit": "0123456789abcdef+dirty", "hardware": H100}
    run = write_run(sweep, validation=3.0, records=SPEED, recorded=recorded)
    log = sweep / ".sweep" / "jobs" / "a.log"
    log.parent.mkdir(parents=True)
    log.write_text("")
    (run / "job.json").write_text(json.dumps({"log": str(log)}))
    page = report(collect(sweep), "t", tmp_path / "out")
    (row,) = named(page)
    # 7.2 million tokens at 500 a second and device: 4 hours of devices, however many there are.
    assert row["GPU-hours"] == "4.0"
    assert (row["hardware"], row["commit"]) == ("8 x NVIDIA H100 80GB HBM3", "012345678+dirty")
    assert '<a href="../runs/my%20sweep/.sweep/jobs/a.log">log</a>' in page
    (shown,) = data(page)["runs"]
    assert shown["facts"]["Commit"] == "0123456789abcdef+dirty"
    assert shown["facts"]["Host"] == "node7"
    assert shown["links"]["Log"] == "../runs/my%20sweep/.sweep/jobs/a.log"
    assert "1 runs; 4 GPU-hours; commit 012345678+dirty; on 8 x NVIDIA H100" in page


def test_a_log_is_found_where_its_sweep_was_moved(tmp_path: Path) -> None:
    former = tmp_path / "former"
    run = write_run(former, validation=3.0, settings={"dump_folder": str(former / "r")}, name="r")
    (former / "jobs").mkdir()
    (former / "jobs" / "r.log").write_text("")
    (run / "job.json").write_text(json.dumps({"log": str(former / "jobs" / "r.log")}))
    former.rename(tmp_path / "moved")
    page = report(collect(tmp_path / "moved"), "t", tmp_path / "moved")
    assert '<a href="jobs/r.log">log</a>' in page
    (tmp_path / "moved" / "jobs" / "r.log").unlink()
    assert "r.log" not in report(collect(tmp_path / "moved"), "t", tmp_path / "moved")


def test_runs_of_earlier_versions_have_no_hardware(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0, records=SPEED)
    page = report(collect(tmp_path), "t")
    (row,) = named(page)
    assert (row["device-hours"], row["hardware"], row["commit"], row["log"]) == ("4.0", "", "", "")
    (shown,) = data(page)["runs"]
    assert {shown["facts"][key] for key in ("Commit", "Hardware", "Host")} == {"not recorded"}


def test_hours_of_runs_on_cpus_are_not_called_gpu_hours(tmp_path: Path) -> None:
    cpu = {"type": "cpu", "device": "AMD EPYC, 2 cores", "world_size": 1, "host": "a"}
    write_run(tmp_path, validation=3.0, records=SPEED, recorded={"hardware": cpu})
    (row,) = named(report(collect(tmp_path), "t"))
    assert (row["CPU-hours"], row["hardware"]) == ("4.0", "AMD EPYC, 2 cores")


def test_settings_that_differ_between_runs_are_apart_from_the_others(tmp_path: Path) -> None:
    for lr in (1e-3, 1e-2):
        settings = {"training": {"seq_len": 128, "clip": lr * 10}, "groups": [{"eps": 1e-8}]}
        write_run(tmp_path, lr=lr, validation=3.0, settings=settings)
    page = data(report(collect(tmp_path), "t"))
    assert page["shared"]["training.seq_len"] == "128"
    assert page["shared"]["groups.0.eps"] == "1e-08"
    assert [run["differs"] for run in page["runs"]] == [
        {"lr": "0.001", "training.clip": "0.01"},
        {"lr": "0.01", "training.clip": "0.1"},
    ]


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
