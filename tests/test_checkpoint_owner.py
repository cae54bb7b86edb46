"""A run loads its own checkpoints only, also from a folder that many runs share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from harness import Run, run, tiny

from train import export
from train.run.owner import checkpoint_folder

STEPS = ("--steps", "8", "--checkpoint.enable", "--checkpoint.interval", "4")
SETTINGS = {
    "a": ("--lr", "1e-1"),
    "b": ("--lr", "3e-2"),
    "c": ("--lr", "1e-1", "--seed", "2"),
}


def records(done: Run) -> list[tuple[object, ...]]:
    """What a run measured, without its speed."""
    keys = ("step", "loss", "grad_norm", "validation_loss", "sites")
    return [tuple(r.get(key) for key in keys) for r in done.record.metrics]


def shared(folder: Path, base: Path, *more: str) -> Run:
    return run(tiny(folder, "maxP", *STEPS, "--checkpoint.folder", str(base), *more))


def stop_after(folder: Path, checkpoints: Path, step: int) -> None:
    """Make a completed run look as if it was killed after the checkpoint of ``step``."""
    for path in checkpoints.glob("step-*"):
        if int(path.name[5:]) > step:
            shutil.rmtree(path)
    (folder / "status.json").write_text('{"state": "running"}')


def the_error(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error:")]
    return line


@pytest.fixture(scope="module")
def alone(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Runs with checkpoints in their own folders, by name."""
    runs = tmp_path_factory.mktemp("alone")
    return {n: run(tiny(runs / n, "maxP", *STEPS, *flags)) for n, flags in SETTINGS.items()}


@pytest.fixture
def interrupted(alone: dict[str, Run], tmp_path: Path) -> Path:
    """A copy of run a, killed after step 4."""
    folder = Path(shutil.copytree(alone["a"].folder, tmp_path / "a"))
    stop_after(folder, folder / "checkpoint", 4)
    return folder


def test_runs_over_one_shared_folder_give_the_metrics_that_they_give_alone(
    alone: dict[str, Run], tmp_path: Path
) -> None:
    base = tmp_path / "scratch"
    for name, flags in SETTINGS.items():
        done = shared(tmp_path / name, base, *flags)
        assert done.code == 0
        assert records(done) == records(alone[name])
    assert len(list(base.iterdir())) == len(SETTINGS)


def test_a_run_over_a_shared_folder_resumes_from_its_own_checkpoint(
    alone: dict[str, Run], tmp_path: Path
) -> None:
    base = tmp_path / "scratch"
    folders = {name: tmp_path / name for name in ("a", "b")}
    for name, folder in folders.items():
        shared(folder, base, *SETTINGS[name])
    stop_after(folders["a"], checkpoint_folder(folders["a"], str(base)), 4)
    again = shared(folders["a"], base, *SETTINGS["a"])
    assert len(again.lrs) == 4
    assert records(again) == records(alone["a"])


def test_the_same_experiment_in_two_folders_does_not_share_checkpoints(
    alone: dict[str, Run], tmp_path: Path
) -> None:
    for name in ("first", "second"):
        done = shared(tmp_path / name, tmp_path / "scratch", *SETTINGS["a"])
        assert records(done) == records(alone["a"])


def test_a_run_whose_folder_was_moved_finds_its_checkpoints(
    alone: dict[str, Run], tmp_path: Path
) -> None:
    base = tmp_path / "scratch"
    shared(tmp_path / "here", base, *SETTINGS["a"])
    stop_after(tmp_path / "here", checkpoint_folder(tmp_path / "here", str(base)), 4)
    (tmp_path / "here").rename(tmp_path / "there")
    again = shared(tmp_path / "there", base, *SETTINGS["a"])
    assert len(again.lrs) == 4
    assert records(again) == records(alone["a"])


def test_a_checkpoint_of_another_run_is_refused_and_nothing_is_changed(
    alone: dict[str, Run], interrupted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(alone["b"].folder / "checkpoint/step-8", interrupted / "checkpoint/step-8")
    metrics = (interrupted / "metrics.jsonl").read_bytes()
    assert run(tiny(interrupted, "maxP", *STEPS, *SETTINGS["a"])).code == 2
    line = the_error(capsys)
    theirs, ours = ("debug_maxP_lr3e-02_seed1", "debug_maxP_lr1e-01_seed1")
    assert f"step-8 belongs to the run {theirs}" in line
    assert f"not to this run, {ours}" in line
    assert "move it away" in line
    assert Run(interrupted).record.status["state"] == "failed"
    assert (interrupted / "metrics.jsonl").read_bytes() == metrics
    names = sorted(path.name for path in (interrupted / "checkpoint").iterdir())
    assert names == ["step-4", "step-8"]


def test_a_checkpoint_of_an_earlier_version_in_the_runs_own_folder_is_loaded(
    alone: dict[str, Run], interrupted: Path
) -> None:
    (interrupted / "checkpoint/step-4/manifest.json").unlink()
    again = run(tiny(interrupted, "maxP", *STEPS, *SETTINGS["a"]))
    assert len(again.lrs) == 4
    assert records(again) == records(alone["a"])


def test_checkpoints_of_an_earlier_version_in_a_shared_folder_are_refused_until_moved(
    alone: dict[str, Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, folder = tmp_path / "scratch", tmp_path / "a"
    shared(folder, base, *SETTINGS["a"])
    content = json.loads((folder / "config.json").read_text())
    content.pop("id")
    (folder / "config.json").write_text(json.dumps(content))
    own = checkpoint_folder(folder, str(base))
    (former,) = base.iterdir()
    stop_after(folder, former, 4)
    (former / "step-4/manifest.json").unlink()
    (former / "step-4").rename(base / "step-4")
    assert shared(folder, base, *SETTINGS["a"]).code == 2
    assert f"move the step-* folders to {own}" in the_error(capsys)
    own.mkdir()
    (base / "step-4").rename(own / "step-4")
    assert records(shared(folder, base, *SETTINGS["a"])) == records(alone["a"])


def test_an_export_finds_checkpoints_in_a_shared_folder(corpus_cache: Path, tmp_path: Path) -> None:
    shared(tmp_path / "a", tmp_path / "scratch", *SETTINGS["a"])
    export.export(tmp_path / "a", tmp_path / "exported")
    assert (tmp_path / "exported/model.safetensors").is_file()


def test_an_export_refuses_a_checkpoint_of_another_run(
    alone: dict[str, Run], interrupted: Path, tmp_path: Path
) -> None:
    shutil.rmtree(interrupted / "checkpoint")
    shutil.copytree(alone["b"].folder / "checkpoint", interrupted / "checkpoint")
    with pytest.raises(ValueError, match="step-8: it belongs to the run debug_maxP_lr3e-02_seed1"):
        export.export(interrupted, tmp_path / "exported")
