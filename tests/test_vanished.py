"""A run whose process is gone without a word is not taken for one that runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import write_run

from slurm.states import State, judge
from train import table
from train.results.collect import collect
from train.run.folder import RunFolder, read_status

HOLD = """
import signal, sys, time
from train.run.folder import RunFolder
signal.signal(signal.SIGQUIT, signal.SIG_DFL)  # ignored in the background of a script
RunFolder(sys.argv[1]).set_status("running", step=3)
print(flush=True)
time.sleep(1000)
"""


def begin(folder: Path) -> subprocess.Popen[str]:
    """Another process that says that it runs the run."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    return process


@pytest.fixture(params=[signal.SIGKILL, signal.SIGQUIT])
def left(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """The folder of a run whose process was ended by a signal that it does not handle."""
    folder = write_run(tmp_path, records=[{"step": 3, "loss": 4.0}])
    process = begin(folder)
    process.send_signal(request.param)
    process.wait()
    assert read_status(folder)["state"] == "running"
    return folder


def test_a_process_that_is_there_runs(tmp_path: Path) -> None:
    folder = write_run(tmp_path)
    process = begin(folder)
    try:
        assert collect(tmp_path)["state"].tolist() == ["running"]
        assert RunFolder(folder).describe() == "running at step 3"
    finally:
        process.kill()
        process.wait()


def test_results_say_that_a_run_vanished(left: Path) -> None:
    (row,) = collect(left.parent).to_dict("records")
    assert row["state"] == "vanished"
    assert row["description"] == "vanished at step 3: its process is gone"


def test_a_table_counts_it_as_vanished(left: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.main(left.parent)
    assert "not finished: 1 vanished" in capsys.readouterr().out


def test_its_folder_says_so(left: Path) -> None:
    assert RunFolder(left).describe() == "vanished at step 3: its process is gone"


def test_the_status_of_a_sweep_says_so(left: Path) -> None:
    assert judge(read_status(left), None, None)[0] is State.VANISHED


def test_a_process_of_another_machine_counts_as_running(left: Path) -> None:
    status = read_status(left) | {"host": "elsewhere"}
    (left / "status.json").write_text(json.dumps(status))
    assert collect(left.parent)["state"].tolist() == ["running"]
