"""The HTML report's runs: their state, hardware, hours, log and settings."""

from __future__ import annotations

import json
from pathlib import Path

from fake_runs import write_run
from report_pages import H100, SPEED, data, named, rows

from train.results.collect import collect
from train.results.report import report


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


def test_a_sweep_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    write_run(tmp_path, state="running")
    write_run(tmp_path, seed=1, state=None)
    page = report(collect(tmp_path), "t")
    assert [row[5] for row in rows(page, "runs")] == ["running", "no status"]


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
