"""A checkpoint that cannot be used is refused with its reason, and the one before it is used."""

from __future__ import annotations

import os
import random
import resource
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from harness import Run, run, tiny

from train.checkpoint_files import complete_steps, fault
from train.trainer import MaxPTrainer

EVERY_8 = ("--checkpoint.enable", "--checkpoint.interval", "8")


@pytest.fixture(scope="module")
def finished(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(tiny(tmp_path_factory.mktemp("run") / "run", "maxP", *EVERY_8))


@pytest.fixture
def interrupted(finished: Run, tmp_path: Path) -> Path:
    """The run as it is when it is killed between step 16, its last checkpoint, and its end."""
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "checkpoint" / "step-24")
    (folder / "status.json").write_text('{"state": "running"}')
    return folder


def truncate(checkpoint: Path) -> None:
    file = next(checkpoint.glob("*.distcp"))
    os.truncate(file, file.stat().st_size // 2)


def again(folder: Path, *flags: str) -> Run:
    return run(tiny(folder, "maxP", *EVERY_8, *flags))


def test_after_a_truncated_checkpoint_the_one_before_it_is_used(
    interrupted: Path, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    truncate(interrupted / "checkpoint" / "step-16")
    done = again(interrupted)
    assert done.code == 0
    assert len(done.lrs) == 24 - 8
    assert done.losses == finished.losses
    (message,) = [r.getMessage() for r in caplog.records if "checkpoint refused" in r.getMessage()]
    assert "step-16: __0_0.distcp is truncated" in message
    assert (interrupted / "checkpoint" / "refused-16-1").is_dir()


def test_a_checkpoint_without_one_of_its_files_is_refused(
    interrupted: Path, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    next((interrupted / "checkpoint" / "step-16").glob("*.distcp")).unlink()
    assert again(interrupted).losses == finished.losses
    assert "__0_0.distcp is missing" in caplog.text


def test_a_file_of_full_size_that_cannot_be_read_is_refused_as_well(
    interrupted: Path, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    file = next((interrupted / "checkpoint" / "step-16").glob("*.distcp"))
    file.write_bytes(bytes(file.stat().st_size))
    assert again(interrupted).losses == finished.losses
    assert "checkpoint refused: step-16" in caplog.text


def test_where_no_checkpoint_is_usable_the_run_ends_and_nothing_is_lost(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (8, 16):
        truncate(interrupted / "checkpoint" / f"step-{step}")
    metrics = (interrupted / "metrics.jsonl").read_bytes()
    assert again(interrupted).code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    assert "no checkpoint can be used (step-16: __0_0.distcp is truncated" in line
    assert "step-8: __0_0.distcp is truncated" in line
    assert "--output-dir" in line
    assert (interrupted / "metrics.jsonl").read_bytes() == metrics
    assert len(list((interrupted / "checkpoint").glob("refused-*/*.distcp"))) == 2
    assert Run(interrupted).record.status["state"] == "failed"


def test_a_checkpoint_that_is_asked_for_and_unusable_is_not_replaced_by_another(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truncate(interrupted / "checkpoint" / "step-8")
    assert again(interrupted, "--checkpoint.load_step", "8").code == 2
    assert "step-8: __0_0.distcp is truncated" in capsys.readouterr().err
    assert (interrupted / "checkpoint" / "step-8").is_dir()


def test_a_checkpoint_of_a_larger_model_is_refused_as_foreign(
    interrupted: Path, finished: Run, caplog: pytest.LogCaptureFixture
) -> None:
    step = interrupted / "checkpoint" / "step-16"
    state = {"tok_embeddings.weight": torch.zeros(4096, 256)}
    shutil.rmtree(step)
    dcp.save(state, checkpoint_id=step)
    assert again(interrupted).losses == finished.losses
    assert "of another model: tok_embeddings.weight is 4096x256, not 4096x128" in caplog.text


def test_a_checkpoint_of_the_same_model_without_the_methods_state_is_foreign(
    tmp_path: Path,
) -> None:
    model = {"w": torch.zeros(3, 4)}
    dcp.save({"w": torch.ones(3, 4), "train_state": {"step": 3}}, checkpoint_id=tmp_path / "c")
    assert "not of a maxP run" in str(fault(tmp_path / "c", model))
    assert fault(tmp_path / "c", model, model_only=True) is None


def test_a_list_of_contents_that_is_no_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".metadata").write_bytes(b"not a pickle")
    assert "its .metadata cannot be read" in str(fault(tmp_path, {}))


def test_a_checkpoint_that_was_not_written_to_its_end_does_not_count(tmp_path: Path) -> None:
    for step in (2, 10, 9):
        (tmp_path / f"step-{step}").mkdir()
        (tmp_path / f"step-{step}" / ".metadata").touch()
    (tmp_path / "step-11").mkdir()
    (tmp_path / "refused-12-1").mkdir()
    (tmp_path / "refused-12-1" / ".metadata").touch()
    assert complete_steps(tmp_path) == [10, 9, 2]


def test_while_a_checkpoint_is_written_over_an_older_one_it_does_not_count(
    interrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def interrupted_save(*args: object, **kwargs: object) -> None:
        seen.append((interrupted / "checkpoint" / "step-16" / ".metadata").exists())
        raise KeyboardInterrupt

    monkeypatch.setattr(dcp, "save", interrupted_save)
    done = again(interrupted, "--checkpoint.load_step", "8")
    assert done.code == 130
    assert seen == [False]


# Checksums


def flip(content: bytearray, draw: random.Random) -> None:
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)


def erase(content: bytearray, draw: random.Random) -> None:
    """Zero a range that is not zero already."""
    while True:
        start = draw.randrange(len(content))
        end = start + draw.randint(1, 4096)
        if any(content[start:end]):
            content[start:end] = bytes(len(content[start:end]))
            return


def unnoticed(checkpoint: Path, name: str, flips: int, ranges: int) -> int:
    """How many of the changes to one file `fault` does not notice."""
    file, draw, count = checkpoint / name, random.Random(0), 0
    original = file.read_bytes()
    assert fault(checkpoint, {}) is None
    for change in [flip] * flips + [erase] * ranges:
        content = bytearray(original)
        change(content, draw)
        file.write_bytes(content)
        count += fault(checkpoint, {}) is None
    file.write_bytes(original)
    return count


FILES = (".metadata", "__0_0.distcp", "manifest.json")


@pytest.mark.parametrize("name", FILES)
def test_a_changed_byte_in_any_file_is_noticed(interrupted: Path, name: str) -> None:
    assert unnoticed(interrupted / "checkpoint" / "step-16", name, flips=5, ranges=2) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_hundred_changed_bytes_and_twenty_ranges_are_noticed(
    interrupted: Path, name: str
) -> None:
    assert unnoticed(interrupted / "checkpoint" / "step-16", name, flips=100, ranges=20) == 0


@pytest.mark.parametrize("name", FILES)
def test_after_a_changed_byte_the_checkpoint_before_is_used(
    interrupted: Path, finished: Run, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    file = interrupted / "checkpoint" / "step-16" / name
    content = bytearray(file.read_bytes())
    flip(content, random.Random(1))
    file.write_bytes(content)
    done = again(interrupted)
    assert len(done.lrs) == 24 - 8
    assert done.losses == finished.losses
    assert f"step-16: its {name}" in caplog.text or f"step-16: {name} is damaged" in caplog.text


# Folders and disks that cannot be used


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that starts with "error:"."""
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    return line


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint/step-8"])
def test_a_file_where_a_folder_belongs_is_refused_before_the_first_step(
    corpus_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    folder = tmp_path / "run"
    assert run(tiny(folder, "maxP", *EVERY_8), before_step=interrupt).code == 130
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    done = again(folder)
    assert (done.code, len(done.lrs)) == (2, 0)
    assert f"{folder / name} is not a folder" in error_of(capsys)
    assert Run(folder).record.status["state"] == "failed"


def interrupt(trainer: MaxPTrainer) -> None:
    raise KeyboardInterrupt


def test_a_step_that_has_no_checkpoint_is_refused_with_those_that_have(
    interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = (interrupted / "metrics.jsonl").read_bytes()
    assert again(interrupted, "--checkpoint.load_step", "7").code == 2
    line = error_of(capsys)
    assert "--checkpoint.load_step 7: no such checkpoint" in line
    assert "choose one of 8, 16" in line
    assert (interrupted / "metrics.jsonl").read_bytes() == metrics


@pytest.mark.parametrize("mode", ["disabled", "async"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_one_line(
    finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit_file_size(trainer: MaxPTrainer) -> None:
        if trainer.step == 16:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))

    command = tiny(tmp_path / "run", "maxP", *EVERY_8, "--checkpoint.async_mode", mode)
    try:
        failed = run(command, before_step=limit_file_size)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert failed.code == 1
    line = error_of(capsys)
    assert f"{failed.folder / 'checkpoint' / 'step-16'}" in line
    assert "cannot be written" in line
    assert failed.record.status["state"] == "failed"
    assert "step-16" in failed.record.status["reason"]
    assert not (failed.folder / "checkpoint" / "step-16").exists()
    assert run(command).losses == finished.losses


# torchtitan's own ways to load and to save


@pytest.mark.parametrize(
    ("method", "flags", "line"),
    [
        (
            "sp",
            ("--checkpoint.last_save_in_hf", "--checkpoint.last_save_model_only"),
            "run python -m train.export RUN --to FOLDER",
        ),
        (
            "sp",
            ("--checkpoint.initial_load_in_hf", "--checkpoint.initial_load_model_only"),
            "--checkpoint.initial_load_in_hf: ",
        ),
        ("maxP", ("--checkpoint.initial_load_path", "/nope"), "measured against the initial"),
        ("sp", ("--checkpoint.exclude_from_loading", "train_state"), "the step and the learning"),
        ("sp", ("--checkpoint.create_seed_checkpoint",), "each run draws its weights from --seed"),
        ("sp", ("--checkpoint.initial_load_path", "/nope"), "initial_load_model_only as well"),
    ],
)
def test_flags_that_ignore_the_parametrization_are_refused(
    corpus_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    method: str,
    flags: tuple[str, ...],
    line: str,
) -> None:
    assert run(tiny(tmp_path / "run", method, *EVERY_8, *flags)).code == 2
    assert line in error_of(capsys)
    assert not (tmp_path / "run").exists()


def test_without_measurements_a_run_starts_from_the_weights_of_another(
    corpus_cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ("--steps", "2", "--checkpoint.enable")
    first = run(tiny(tmp_path / "first", "sp", *short))
    weights = first.folder / "checkpoint" / "step-2"
    flags = (
        *("--checkpoint.initial_load_path", str(weights)),
        "--checkpoint.initial_load_model_only",
    )
    second = run(tiny(tmp_path / "second", "sp", *short, *flags))
    assert list(second.steps) == [1, 2]
    assert second.losses[0] < first.losses[1]  # the batch of step 1, after two steps on it
    truncate(weights)
    assert run(tiny(tmp_path / "third", "sp", *short, *flags)).code == 2
    assert "step-2: __0_0.distcp is truncated" in error_of(capsys)
    shutil.rmtree(weights)
    assert run(tiny(tmp_path / "fourth", "sp", *short, *flags)).code == 2
    assert "step-2: no checkpoint there; pass a folder" in error_of(capsys)
