"""The command line and its folder: what is in it decides whether the run starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from harness import STEPS, Run, run, tiny
from test_cli_bad_input import refused

pytestmark = pytest.mark.usefixtures("corpus_cache")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_same_run_again_does_nothing(
    mup_no_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(mup_no_run.folder)
    again = run(tiny(mup_no_run.folder, "mup-no"))
    assert (again.code, again.trainer) == (0, None)
    assert contents(mup_no_run.folder) == before
    said = f"{mup_no_run.folder}: already completed at step {STEPS}; nothing to do\n"
    assert capsys.readouterr().out == said


def test_another_configurations_folder_is_refused_and_left_alone(
    mup_no_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(mup_no_run.folder)
    line = refused(tiny(mup_no_run.folder, "mup-no", "--lr", "0.02"), capsys)
    assert f"--output-dir {mup_no_run.folder} holds the run of another configuration" in line
    assert "lr: 0.01 there, 0.02 here" in line
    assert contents(mup_no_run.folder) == before


def test_a_strangers_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    line = refused(tiny(tmp_path, "mup-no"), capsys)
    assert f"--output-dir {tmp_path} is not empty (thesis.tex, ...)" in line
    assert contents(tmp_path) == {"thesis.tex": b"all my work"}


def test_a_folder_that_another_process_is_training_in_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no")

    def interrupt(trainer: Any) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt

    run(arguments, before_step=interrupt)
    with FileLock(tmp_path / "run" / ".lock"):
        before = contents(tmp_path / "run")
        line = refused(arguments, capsys)
        assert f"--output-dir {tmp_path / 'run'}: another process is running this run" in line
        assert contents(tmp_path / "run") == before


def test_the_lock_of_a_run_is_free_after_it(mup_no_run: Run) -> None:
    with FileLock(mup_no_run.folder / ".lock").acquire(timeout=0) as lock:
        assert lock.is_locked
