"""A disk that is full or read-only ends a run with one line, and costs nothing but time."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from harness import Run, run, tiny

from scripts.torture.ranks import run_ranks
from train.run.folder import RunFolder
from train.trainer import MaxPTrainer

CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "8")
MIB = 1 << 20  # a checkpoint has 22


@dataclass
class Disk:
    """A file system of its own."""

    path: Path

    def fill(self, free: int = 0) -> None:
        """Leave ``free`` bytes."""
        with contextlib.suppress(OSError), self._ballast.open("wb", buffering=0) as file:
            while (much := shutil.disk_usage(self.path).free - free) > 0:
                file.write(b"\0" * much)

    def empty(self) -> None:
        self._ballast.unlink()

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def remount(self, option: str) -> None:
        mount = ["mount", "-o", f"remount,{option}", str(self.path)]
        subprocess.run(mount, check=True, capture_output=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """One of 160 MiB."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    path = tmp_path / "disk"
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield Disk(path)
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture(scope="module")
def whole(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tiny(tmp_path_factory.mktemp("whole") / "run", "maxP", *CHECKPOINTS))


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line that a command wrote to stderr."""

    def line() -> str:
        written = capsys.readouterr().err
        assert "Traceback" not in written
        (line,) = [x for x in written.splitlines() if x.startswith("error:")]
        return line

    return line


def at(step: int, act: Callable[[], None]) -> Callable[[MaxPTrainer], None]:
    def before_step(trainer: MaxPTrainer) -> None:
        if trainer.step == step:
            act()

    return before_step


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run but TensorBoard's and the ballast."""
    files = [file for file in folder.rglob("*") if file.is_file() and "tb" not in file.parts]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def assert_same(done: Run, whole: Run) -> None:
    assert done.code == 0
    assert done.record.status["state"] == "completed"
    assert done.record.skipped_lines == 0
    assert done.validation_losses == whole.validation_losses
    keys = ("loss", "grad_norm", "tokens", "sites")
    assert done.steps.keys() == whole.steps.keys()
    for step, record in whole.steps.items():
        assert [done.steps[step][key] for key in keys] == [record[key] for key in keys]


@pytest.mark.parametrize("mode", ["disabled", "async"])
@pytest.mark.parametrize("place", ["run", "checkpoints"])
def test_a_disk_that_is_full_when_a_checkpoint_is_saved(
    mode: str, place: str, disk: Disk, whole: Run, tmp_path: Path, error: Callable[[], str]
) -> None:
    folder = (disk.path if place == "run" else tmp_path) / "run"
    saved = folder / "checkpoint" if place == "run" else disk.path / "checkpoints"
    flags = ("--checkpoint.async_mode", mode, "--checkpoint.folder", str(saved))
    arguments = tiny(folder, "maxP", *CHECKPOINTS, *flags)
    failed = run(arguments, before_step=at(16, lambda: disk.fill(MIB)))
    assert failed.code == 1
    line = error()
    # During an asynchronous save the next step may be the first that finds no room.
    others = (folder / "metrics.jsonl", folder / "tb") if mode == "async" else ()
    assert any(str(path) in line for path in (saved, *others))
    assert re.search(r"cannot be written \((No space left on device|.* as on a full disk)\)", line)
    assert failed.record.status["state"] == "failed"
    assert failed.record.status["reason"] in line
    steps = [path.name for path in saved.rglob("step-*")]
    assert steps == ["step-8"]
    disk.empty()
    assert_same(run(arguments), whole)


def test_a_disk_that_is_full_when_a_step_is_logged(
    disk: Disk, whole: Run, error: Callable[[], str]
) -> None:
    folder = disk.path / "run"
    # TensorBoard writes in a thread, whose error may be the first.
    arguments = tiny(folder, "maxP", *CHECKPOINTS, "--metrics.no-enable-tensorboard")
    failed = run(arguments, before_step=at(12, disk.fill))
    assert failed.code == 1
    assert f"{folder / 'metrics.jsonl'} cannot be written (No space left on device)" in error()
    assert (folder / "checkpoint" / "step-8" / "manifest.json").exists()
    disk.empty()
    assert_same(run(arguments), whole)


def test_a_disk_that_is_full_when_a_run_is_resumed(
    disk: Disk, whole: Run, error: Callable[[], str]
) -> None:
    folder = disk.path / "run"
    arguments = tiny(folder, "maxP", *CHECKPOINTS)
    run(arguments, before_step=at(12, disk.fill))
    error()
    before = contents(folder)
    assert run(arguments).code == 1
    assert f"{folder / 'status.json'} cannot be written (No space left on device)" in error()
    assert contents(folder) == before
    disk.empty()
    assert_same(run(arguments), whole)


def test_a_disk_that_is_full_when_a_run_begins(
    disk: Disk, whole: Run, error: Callable[[], str]
) -> None:
    folder = disk.path / "run"
    folder.mkdir()
    disk.fill()
    arguments = tiny(folder, "maxP", *CHECKPOINTS)
    assert run(arguments).code == 2
    assert f"--output-dir {folder} cannot be used (No space left on device)" in error()
    assert list(folder.iterdir()) == []
    disk.empty()
    assert_same(run(arguments), whole)


def test_a_disk_that_is_full_when_the_result_is_written(
    disk: Disk, whole: Run, error: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = disk.path / "run"
    arguments = tiny(folder, "maxP", *CHECKPOINTS)
    with monkeypatch.context() as patch:
        patch.setattr(MaxPTrainer, "remarks", lambda self: disk.fill())
        assert run(arguments).code == 1
    assert f"{folder / 'status.json'} cannot be written (No space left on device)" in error()
    assert RunFolder(folder).describe() == "running"
    disk.empty()
    assert_same(run(arguments), whole)


def test_a_disk_that_is_full_when_the_corpus_is_prepared(
    disk: Disk, error: Callable[[], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(disk.path))
    disk.fill()
    assert run(tiny(tmp_path / "run", "maxP")).code == 2
    line = error()
    assert str(disk.path) in line
    assert "No space left on device" in line
    assert not (tmp_path / "run").exists()


def test_checkpoints_whose_disk_becomes_read_only(
    disk: Disk, whole: Run, tmp_path: Path, error: Callable[[], str]
) -> None:
    flags = ("--checkpoint.folder", str(disk.path))
    arguments = tiny(tmp_path / "run", "maxP", *CHECKPOINTS, *flags)
    failed = run(arguments, before_step=at(16, lambda: disk.remount("ro")))
    assert failed.code == 1
    assert "step-16 cannot be written (Read-only file system)" in error()
    assert failed.record.status["state"] == "failed"
    assert run(arguments).code == 2
    assert f"--checkpoint.folder {disk.path}" in error()
    disk.remount("rw")
    assert_same(run(arguments), whole)


def test_a_run_on_a_disk_that_is_read_only(
    disk: Disk, whole: Run, error: Callable[[], str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    folder = disk.path / "run"
    arguments = tiny(folder, "maxP", *CHECKPOINTS)
    assert run(arguments, before_step=at(12, interrupt)).code == 130
    before = contents(folder)
    disk.remount("ro")
    assert run(arguments).code == 1
    assert f"{folder / 'status.json'} cannot be written (Read-only file system)" in error()
    assert contents(folder) == before
    disk.remount("rw")
    assert_same(run(arguments), whole)


TWO = ("--training.local_batch_size", "2")


@pytest.fixture(scope="module")
def whole_of_two(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same by two processes."""
    folder = tmp_path_factory.mktemp("whole") / "two"
    done = run_ranks("train.__main__", *tiny(folder, "maxP", *CHECKPOINTS, *TWO))
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_two_processes_whose_disk_is_full_when_a_checkpoint_is_saved(
    mode: str, whole_of_two: Run, disk: Disk
) -> None:
    folder = disk.path / "run"
    arguments = tiny(folder, "maxP", *CHECKPOINTS, *TWO, "--checkpoint.async_mode", mode)
    disk.fill(30 * MIB)  # room for one checkpoint
    failed = run_ranks("train.__main__", *arguments)
    assert failed.returncode == 1
    lines = [x for x in failed.stderr.splitlines() if x.startswith("error:")]
    named = [x for x in lines if re.search(r"/(step-16|metrics.jsonl|tb).* cannot be written", x)]
    assert len(named) == 1
    assert "Traceback" not in failed.stderr
    assert Run(folder).record.status["state"] == "failed"
    disk.empty()
    assert run_ranks("train.__main__", *arguments).returncode == 0
    done = Run(folder)
    done.code = 0
    assert_same(done, whole_of_two)
