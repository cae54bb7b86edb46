"""The table of alignments that a run exports for method maxP-frozen."""

from __future__ import annotations

import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_runs import write_run
from harness import STEPS, Run

from train import alignment_table
from train.alignment_table import (
    choose,
    condense,
    export,
    kind,
    pool,
    quartiles,
    read_table,
    write_table,
)

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


RECORDS = [
    record(5, layers__0__w=(0.5, 0.6, 0.7), layers__1__w=(0.7, 0.6, 0.5), head=(0.1, 0.2, 0.3)),
    record(6, layers__0__w=(0.6, 0.6, 1.0), layers__1__w=(1.0, 0.6, 0.7), head=(0.3, 0.2, 0.1)),
]


def test_the_layers_of_a_kind_and_the_steps_are_pooled() -> None:
    samples = pool(RECORDS)
    assert samples["w"] == ([0.5, 0.7, 0.6, 1.0], [0.6] * 4, [0.7, 0.5, 1.0, 0.7])
    assert list(samples) == ["head", "w"]


def test_a_table_holds_medians_or_means_by_choice() -> None:
    assert condense(pool(RECORDS), "median")["w"] == pytest.approx((0.65, 0.6, 0.7))
    assert condense(pool(RECORDS), "mean")["w"] == pytest.approx((0.7, 0.6, 0.725))


def test_quartiles_are_interpolated() -> None:
    assert quartiles([4.0, 1.0, 2.0, 3.0]) == (1.75, 3.25)
    assert quartiles([0.5]) == (0.5, 0.5)


def test_a_site_that_is_never_measured_is_not_in_the_table() -> None:
    records = [record(1, embedding=(None, None, None), head=(0.1, 0.2, 0.3))]
    assert list(pool(records)) == ["head"]


def test_an_exponent_that_is_missing_now_and_then_counts_where_it_is_there() -> None:
    records = [record(1, w=(None, 0.5, 0.5)), record(2, w=(0.8, None, 0.7)), {"step": 2, "loss": 1}]
    assert pool(records) == {"w": ([0.8], [0.5], [0.5, 0.7])}


@pytest.mark.parametrize(
    "records", [[], [{"step": 9, "loss": 1.0}], [record(9, w=(None, 0.5, 0.5))]]
)
def test_an_exponent_that_is_never_there_is_told_with_the_remedy(records: list[Any]) -> None:
    with pytest.raises(ValueError, match=r"alignment for (w|any site) in .*--maxp\.measure"):
        pool(records)


def test_a_run_exports_the_median_over_its_last_quarter(maxp_run: Run, tmp_path: Path) -> None:
    export((maxp_run.folder,), tmp_path / "table.json", first_step=0)
    rows = [
        {"kind": site.split(".", 2)[-1], "step": step, **values}
        for step, r in maxp_run.steps.items()
        for site, values in r["sites"].items()
        if "align_z0_dW" in values
    ]
    frame = pd.DataFrame(rows).query(f"step >= {STEPS * 3 // 4}")
    expected = frame.groupby("kind")[list(NAMES)].median()
    spread = frame.groupby("kind")[list(NAMES)].quantile([0.25, 0.75])
    table = read_table(str(tmp_path / "table.json"))
    assert set(table) == set(expected.index) == {*kinds(), "lm_head"}
    content = json.loads((tmp_path / "table.json").read_text())
    for name, values in table.items():
        assert values == pytest.approx(tuple(expected.loc[name]), rel=1e-12)
        low, high = zip(*content["quartiles"][name], strict=True)
        assert low == pytest.approx(tuple(spread.loc[name, 0.25]), rel=1e-12)
        assert high == pytest.approx(tuple(spread.loc[name, 0.75]), rel=1e-12)
        assert content["samples"][name] == (frame["kind"] == name).sum()


def kinds() -> set[str]:
    attention = {f"attention.qkv_linear.{name}" for name in ("wq", "wk", "wv")}
    feed_forward = {f"feed_forward.{name}" for name in ("w1", "w2", "w3")}
    return attention | feed_forward | {"attention.inner_attention", "attention.wo"}


def test_the_table_says_which_runs_and_steps_it_is_from(maxp_run: Run, tmp_path: Path) -> None:
    rule: dict[str, Any] = {"statistic": "mean", "last_fraction": 1, "first_step": 20}
    for name in ("a", "b"):
        export((maxp_run.folder,), tmp_path / name, **rule)
    config = json.loads((maxp_run.folder / "config.json").read_text())
    assert json.loads((tmp_path / "a").read_text())["source"] == {
        "scale": "debug",
        "method": "maxP",
        "lr": 0.01,
        "steps": STEPS,
        "seeds": [1],
        "from_step": 20,
        "to_step": STEPS,
        "runs": [{"name": maxp_run.folder.name, "identity": config["identity"]}],
        **rule,
    }
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def measured(root: Path, scale: str, method: str, lr: float, seed: int, loss: float | None) -> Path:
    """A run whose site ``w`` measures lr + seed / 100 from step 300 on, and 9 before."""
    value = lr + seed / 100
    records = [
        {**record(step, w=(value,) * 3 if step >= 300 else (9.0, 9.0, 9.0)), "loss": 1.0}
        for step in (99, 100, 200, 300, 400)
    ]
    return write_run(
        *(root,),
        scale=scale,
        method=method,
        lr=lr,
        seed=seed,
        state="completed" if loss else "diverged",
        validation=loss,
        records=records,
        settings={"maxp": {"base_scale": "cpu64"}},
    )


def sweep(root: Path) -> None:
    for seed in (1, 2, 3):
        for lr, loss in {1e-3: 4.0, 1e-2: 3.5, 1e-1: 3.0 if seed < 3 else None}.items():
            measured(root, "cpu64", "mup-no", lr, seed, loss)
        measured(root, "cpu32", "mup-no", 1e-3, seed, 3.0)
        measured(root, "cpu64", "maxP", 1e-3, seed, 3.0)


def test_of_a_sweep_all_seeds_of_mup_no_at_the_bases_best_lr_are_taken(tmp_path: Path) -> None:
    sweep(tmp_path / "runs")
    assert [path.name for path in choose([tmp_path / "runs"])] == [
        f"cpu64-mup-no-0.01-{seed}" for seed in (1, 2, 3)
    ]
    export((tmp_path / "runs",), tmp_path / "table.json")
    assert read_table(str(tmp_path / "table.json")) == {"w": pytest.approx((0.03,) * 3)}
    source = json.loads((tmp_path / "table.json").read_text())["source"]
    assert (source["scale"], source["lr"], source["seeds"]) == ("cpu64", 0.01, [1, 2, 3])
    assert (source["from_step"], source["to_step"]) == (300, 400)


def test_runs_may_be_given_one_by_one(tmp_path: Path) -> None:
    paths = tuple(measured(tmp_path, "cpu64", "mup-no", 1e-2, seed, 3.5) for seed in (1, 2, 3))
    measured(tmp_path, "cpu64", "mup-no", 1e-1, 1, 1.0)
    export(paths, tmp_path / "table.json")
    assert json.loads((tmp_path / "table.json").read_text())["source"]["lr"] == 1e-2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"last_fraction": 0.0}, "--last-fraction 0: must be above 0 and at most 1"),
        ({"last_fraction": 1.5}, "--last-fraction 1.5: must be"),
        ({"first_step": 500}, "--first-step 500: .*mup-no-0.01-1 ends at step 400; pass an earl"),
    ],
)
def test_a_rule_that_chooses_nothing_is_refused(
    tmp_path: Path, flags: dict[str, Any], message: str
) -> None:
    run = measured(tmp_path, "cpu64", "mup-no", 1e-2, 1, 3.5)
    with pytest.raises(ValueError, match=message):
        export((run,), tmp_path / "table.json", **flags)
    assert not (tmp_path / "table.json").exists()


def test_runs_of_two_other_methods_are_refused(tmp_path: Path) -> None:
    for method in ("maxP", "sp"):
        measured(tmp_path, "cpu64", method, 1e-2, 1, 3.5)
    with pytest.raises(ValueError, match="runs of maxP and sp; pass those of one method"):
        choose([tmp_path])


def test_a_folder_in_which_nothing_is_completed_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no completed runs; pass a sweep's folder"):
        choose([tmp_path])
    (write_run(tmp_path) / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"no completed runs \(1 \(.*is corrupt"):
        choose([tmp_path])


def test_a_table_of_another_kind_of_model_is_refused_in_one_line(tmp_path: Path) -> None:
    path = str(tmp_path / "table.json")
    write_table(Path(path), {"attn.c_proj": (0.5, 0.5, 0.5), "head": (0.5, 0.5, 0.5)}, {})
    assert set(read_table(path, ["h.0.attn.c_proj", "head"])) == {"attn.c_proj", "head"}
    with pytest.raises(ValueError, match=r"^--maxp\.alignment-table [^\n]* no attn\.c_proj, but"):
        read_table(path, ["layers.0.attention.wo", "head"])


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
    flags = ("--to", str(to), "--first-step", "0")
    assert command(monkeypatch, str(maxp_run.folder), *flags) == 0
    printed = capsys.readouterr().out.splitlines()
    first = min(step for step in maxp_run.steps if step >= STEPS * 3 // 4)
    assert printed[-1] == (
        f"wrote {to}: 9 kinds of sites, median over maxP at debug, lr 0.01, seeds 1, "
        f"steps {first} to {STEPS}"
    )
    wo = read_table(str(to))["attention.wo"]
    (line,) = (line for line in printed if line.startswith("attention.wo "))
    cells = re.findall(r"([\d.]+) \(([\d.]+) to ([\d.]+)\)", line)
    assert [float(value) for value, *_ in cells] == pytest.approx(wo, abs=6e-4)


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


def test_only_finite_values_count() -> None:
    records = [record(1, w=(0.5, 0.5, 0.5)), record(2, w=(math.nan, math.inf, 0.7))]
    assert pool(records) == {"w": ([0.5], [0.5], [0.5, 0.7])}
