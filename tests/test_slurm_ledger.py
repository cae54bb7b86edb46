"""A sweep's folder keeps its runs, and one sweep only."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cases import job, spec

from slurm import snapshot
from slurm.ledger import LedgerError, SweepFolder
from train.run.folder import RunFolder


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    sweep = SweepFolder(tmp_path / "runs" / "s")
    with sweep.lock():
        sweep.enter("s", [spec("a"), spec("b")])
    return sweep


def test_runs_are_read_as_they_were_entered(folder: SweepFolder) -> None:
    assert folder.runs() == [spec("a"), spec("b")]


def test_a_sweep_can_grow(folder: SweepFolder) -> None:
    folder.enter("s", [spec("c"), spec("a")])
    assert [run.name for run in folder.runs()] == ["a", "b", "c"]


def test_another_sweep_in_the_folder_is_refused_and_nothing_changes(folder: SweepFolder) -> None:
    with pytest.raises(LedgerError, match="holds the sweep 's', not 'other'"):
        folder.enter("other", [spec("c")])
    assert [run.name for run in folder.runs()] == ["a", "b"]


def test_a_run_of_the_same_name_with_other_settings_is_refused(folder: SweepFolder) -> None:
    folder.give("a", job())
    other = spec("a", identity="other", arguments=("--scale", "debug", "--lr", "0.01", "--x", "1"))
    with pytest.raises(LedgerError, match=r"a with other settings \(x: absent there, 1 here\)"):
        folder.enter("s", [other])
    assert folder.runs() == [spec("a"), spec("b")]


def test_a_run_that_an_earlier_version_entered_is_the_same_run(folder: SweepFolder) -> None:
    folder.give("a", job())
    again = spec("a", identity="hashed by another rule")
    folder.enter("s", [again])
    assert folder.runs() == [again, spec("b")]


def test_settings_of_a_run_that_never_began_are_replaced(folder: SweepFolder) -> None:
    other = spec("a", identity="other")
    folder.enter("s", [other])
    assert folder.runs() == [other, spec("b")]


def test_a_run_that_was_never_given_to_a_job_leaves_nothing(folder: SweepFolder) -> None:
    folder.give("a", job())
    RunFolder(folder.run("a")).set_status("queued")
    folder.restore("a", None)
    assert not folder.run("a").exists()


def test_a_run_gets_its_former_job_back_and_keeps_what_it_has_done(folder: SweepFolder) -> None:
    folder.give("a", job(token="new"))
    RunFolder(folder.run("a")).set_status("preempted", step=3)
    folder.restore("a", job())
    assert folder.job("a") == job()
    assert '"preempted"' in (folder.run("a") / "status.json").read_text()


def test_commands_at_work_are_those_whose_process_lives(folder: SweepFolder) -> None:
    with folder.worked_on():
        assert [process.pid for process in folder.commands()] == [os.getpid()]
    assert folder.commands() == []
    killed = subprocess.Popen(["true"])
    killed.wait()
    mark = folder.path / ".sweep" / "commands" / f"{socket.gethostname()}.{killed.pid}"
    mark.touch()
    assert folder.commands() == []


def test_a_corrupt_list_of_runs_is_named(folder: SweepFolder) -> None:
    (folder.path / "sweep.json").write_text("{")
    with pytest.raises(LedgerError, match=r"sweep\.json cannot be read .*submit the sweep again"):
        folder.runs()


def test_a_job_is_written_down_and_forgotten(folder: SweepFolder) -> None:
    assert folder.job("a") is None
    folder.give("a", job())
    assert folder.job("a") == job()
    folder.restore("a", None)
    assert folder.job("a") is None


def test_the_trainer_takes_a_folder_in_which_only_the_sweep_has_written(
    folder: SweepFolder,
) -> None:
    folder.give("a", job())
    run = RunFolder(folder.run("a"))
    run.set_status("queued")
    assert run.claim({"scale": "debug"}) == "new"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(LedgerError, match=r"--runs-dir .* cannot be written"),
        SweepFolder(tmp_path / "s").lock(),
    ):
        pass


def test_a_folder_below_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(LedgerError, match=r"--runs-dir .*file cannot be written"),
        SweepFolder(tmp_path / "file" / "s").lock(),
    ):
        pass


# The code's snapshot


def test_the_same_code_is_copied_once(tmp_path: Path) -> None:
    first, second = (snapshot.take(tmp_path, "abc") for _ in range(2))
    assert first == second
    assert [p.name for p in tmp_path.iterdir()] == [first.folder.name]


def test_python_takes_the_packages_from_the_snapshot_even_in_the_checkout(tmp_path: Path) -> None:
    taken = snapshot.take(tmp_path, "abc+dirty")
    text = "import train, slurm; from train.run.folder import git_commit; "
    done = subprocess.run(
        [sys.executable, "-c", text + "print(train.__file__, slurm.__file__, git_commit())"],
        cwd=snapshot.ROOT,
        env=snapshot.environment(str(taken.folder)),
        capture_output=True,
        text=True,
        check=True,
    )
    train, slurm, commit = done.stdout.split()
    assert train == str(taken.folder / "train" / "__init__.py")
    assert slurm == str(taken.folder / "slurm" / "__init__.py")
    assert commit == "abc+dirty"
