"""A checkpoint that cannot be used is refused with its reason, and the one before it is used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from harness import Run, run, tiny

from train.checkpoint_files import complete_steps, fault

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
