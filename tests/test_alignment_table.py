"""The table of alignments that a run exports for method maxP-frozen."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from harness import STEPS, Run

from train import alignment_table
from train.alignment_table import average, export, kind, read_table, write_table

NAMES = ("align_z0_dW", "align_dZ_w0", "align_dZ_dW")


def record(step: int, **sites: tuple[float | None, float | None, float | None]) -> dict[str, Any]:
    """A line of metrics.jsonl; ``__`` in a name stands for a dot."""
    by_site = {}
    for name, values in sites.items():
        measured = {k: v for k, v in zip(NAMES, values, strict=True) if v is not None}
        by_site[name.replace("__", ".")] = {"lr": 0.1, "c": 0.5, **measured}
    return {"step": step, "sites": by_site}


@pytest.mark.parametrize(
    ("site", "expected"),
    [
        ("layers.0.attention.wo", "attention.wo"),
        ("layers.31.attention.qkv_linear.wq", "attention.qkv_linear.wq"),
        ("blocks.2.experts.5.w1", "w1"),
        ("lm_head", "lm_head"),
    ],
)
def test_the_kind_of_a_site_is_its_name_within_its_layer(site: str, expected: str) -> None:
    assert kind(site) == expected


def test_a_kind_is_averaged_over_its_layers_and_the_steps_from_the_first() -> None:
    records = [
        record(4, layers__0__w=(0.9, 0.9, 0.9), layers__1__w=(0.9, 0.9, 0.9)),
        record(5, layers__0__w=(0.5, 0.6, 0.7), layers__1__w=(0.7, 0.6, 0.5), head=(0.1, 0.2, 0.3)),
        record(6, layers__0__w=(0.6, 0.6, 1.0), layers__1__w=(1.0, 0.6, 0.6), head=(0.3, 0.2, 0.1)),
    ]
    table = average(records, first_step=5)
    # (0.5 + 0.7 + 0.6 + 1.0) / 4, and so on
    assert table["w"] == pytest.approx((0.7, 0.6, 0.7))
    assert table["head"] == pytest.approx((0.2, 0.2, 0.2))
    assert list(table) == ["head", "w"]


def test_a_site_that_is_never_measured_is_not_in_the_table() -> None:
    records = [record(1, embedding=(None, None, None), head=(0.1, 0.2, 0.3))]
    assert list(average(records, 0)) == ["head"]


def test_an_exponent_that_is_missing_now_and_then_is_averaged_where_it_is_there() -> None:
    records = [record(1, w=(None, 0.5, 0.5)), record(2, w=(0.8, None, 0.7)), {"step": 2, "loss": 1}]
    assert average(records, 0) == {"w": pytest.approx((0.8, 0.5, 0.6))}


@pytest.mark.parametrize(
    "records", [[], [{"step": 9, "loss": 1.0}], [record(9, w=(None, 0.5, 0.5))]]
)
def test_an_exponent_that_is_never_there_is_told_with_the_remedy(records: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"alignment for (w|any site) from .*--maxp\.measure"):
        average(records, 0)


def test_a_run_exports_the_mean_over_its_second_half(maxp_run: Run, tmp_path: Path) -> None:
    export(maxp_run.folder, tmp_path / "table.json")
    rows = [
        {"kind": site.split(".", 2)[-1], "step": step, **values}
        for step, r in maxp_run.steps.items()
        for site, values in r["sites"].items()
        if "align_z0_dW" in values
    ]
    frame = pd.DataFrame(rows).query(f"step >= {STEPS // 2}")
    expected = frame.groupby("kind")[list(NAMES)].mean()
    table = read_table(str(tmp_path / "table.json"))
    assert set(table) == set(expected.index) == {*kinds(), "lm_head"}
    for name, values in table.items():
        assert values == pytest.approx(tuple(expected.loc[name]), rel=1e-12)


def kinds() -> set[str]:
    attention = {f"attention.qkv_linear.{name}" for name in ("wq", "wk", "wv")}
    feed_forward = {f"feed_forward.{name}" for name in ("w1", "w2", "w3")}
    return attention | feed_forward | {"attention.inner_attention", "attention.wo"}


def test_the_table_says_which_run_it_is_from(maxp_run: Run, tmp_path: Path) -> None:
    export(maxp_run.folder, tmp_path / "table.json", from_step=20)
    content = json.loads((tmp_path / "table.json").read_text())
    source = {"scale": "debug", "method": "maxP", "lr": 0.01, "seed": 1, "steps": STEPS}
    assert content["source"] == {**source, "from_step": 20, "to_step": STEPS}


def test_a_table_reads_back_as_it_was_written(tmp_path: Path) -> None:
    table = {"w": (0.5, 1 / 3, 1.0), "head": (0.1, 0.2, 0.3)}
    write_table(tmp_path / "table.json", table, {"scale": "debug"})
    assert read_table(str(tmp_path / "table.json")) == table


@pytest.mark.parametrize(
    "content",
    [
        "not JSON",
        "[]",
        '{"source": {}}',
        '{"alignment": {"w": [0.5, 0.5]}}',
        '{"alignment": {"w": [0.5, 0.5, "x"]}}',
        '{"alignment": {"w": [0.5, 0.5, NaN]}}',
        '{"alignment": [1]}',
        '{"alignment": {}}',
    ],
)
def test_a_file_that_holds_no_table_is_refused_by_flag_and_with_the_remedy(
    tmp_path: Path, content: str
) -> None:
    path = tmp_path / "table.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"^--maxp\.alignment-table [^\n]* make one with"):
        read_table(str(path))


def test_a_table_that_is_not_there_is_refused_by_flag(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--maxp\.alignment-table .*: no such file; make one"):
        read_table(str(tmp_path / "missing.json"))


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status of ``python -m train.alignment_table``, or the line that it ends with."""
    monkeypatch.setattr(sys, "argv", ["alignment_table", *arguments])
    try:
        alignment_table.main()
    except SystemExit as end:
        return end.code
    return 0


def test_the_command_writes_the_table_and_prints_it(
    maxp_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = tmp_path / "table.json"
    assert command(monkeypatch, str(maxp_run.folder), "--to", str(to)) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == (
        f"wrote {to}: 9 kinds of sites, steps {STEPS // 2} to {STEPS} of {maxp_run.folder}"
    )
    wo = read_table(str(to))["attention.wo"]
    (line,) = (line for line in printed if line.startswith("attention.wo "))
    assert [float(word) for word in line.split()[1:]] == pytest.approx(wo, abs=6e-4)


@pytest.mark.parametrize("what", ["no run", "nothing measured", "nowhere to write"])
def test_the_command_ends_with_one_line_where_it_cannot_export(
    maxp_run: Run,
    mup_no_run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
) -> None:
    run = {"no run": tmp_path, "nothing measured": mup_no_run.folder}.get(what, maxp_run.folder)
    to = tmp_path / ("missing/table.json" if what == "nowhere to write" else "table.json")
    line = command(monkeypatch, str(run), "--to", str(to))
    assert isinstance(line, str)
    assert line.startswith("error: ")
    assert "\n" not in line
    assert not to.exists()


def test_only_finite_values_are_averaged() -> None:
    records = [record(1, w=(0.5, 0.5, 0.5)), record(2, w=(math.nan, math.inf, 0.7))]
    assert average(records, 0) == {"w": pytest.approx((0.5, 0.5, 0.6))}
