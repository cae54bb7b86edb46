"""Runs on images: measuring, base width, probes, labels, counts, resuming and refusals."""

from __future__ import annotations

import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Run, run
from image_cases import folder, picture
from image_runs import STEPS, tiny_images
from torch.nn import functional as F

from scripts.torture.ranks import run_ranks
from train.classification import ClassificationLoss
from train.cli import parse, record
from train.model.classifier import Classifier
from train.preemption import StopFlag
from train.run.identity import DATA_DIGEST, differences
from train.run.summary import read_summary

CHECKPOINTS = ("--checkpoint.enable", "--checkpoint.interval", "4")


def curves(done: Run) -> dict[int, tuple[Any, ...]]:
    return {step: (r["loss"], r["grad_norm"], r.get("sites")) for step, r in done.steps.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run of maxP."""
    done = run(tiny_images(tmp_path_factory.mktemp("images") / "run", "maxP", *CHECKPOINTS))
    assert done.code == 0
    return done


def test_a_run_measures_and_solves(whole: Run) -> None:
    assert whole.record.status["state"] == "completed"
    sites = whole.steps[STEPS]["sites"]
    for name in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"):
        assert 0.4 < sites[name]["align_z0_dW"] < 1.05
    assert whole.c[0] != whole.c[-1]
    assert sites["blocks.0.attn.qkv"]["lr"] != sites["head"]["lr"]


def test_images_are_counted(whole: Run) -> None:
    assert [r["images"] for r in whole.steps.values()] == [32 * n for n in range(1, STEPS + 1)]
    assert all(r["images_per_second"] > 0 and "tokens" not in r for r in whole.steps.values())
    assert read_summary(whole.folder, "completed")[0].tokens == 32 * STEPS  # type: ignore[index]


def test_accuracy_is_that_of_the_trained_model_on_all_held_out_images(whole: Run) -> None:
    (record,) = [r for r in whole.record.metrics if "validation_loss" in r]
    model = whole.trainer.model_parts[0]
    data = whole.trainer.config.validator.dataloader.build(
        dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=1, local_batch_size=360
    )
    inputs, labels = next(iter(data))
    assert (labels >= 0).sum() == 360
    with torch.no_grad():
        logits = model(inputs["input"])
    assert record["validation_accuracy"] == (logits.argmax(1) == labels).float().mean()
    assert record["validation_loss"] == pytest.approx(float(F.cross_entropy(logits, labels)))
    assert read_summary(whole.folder, "completed")[0].accuracy == record["validation_accuracy"]  # type: ignore[index]


def test_a_run_that_is_stopped_goes_on_to_the_bit(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tiny_images(tmp_path / "run", "maxP", *CHECKPOINTS)
    seen: list[int] = []

    def stop(self: StopFlag) -> str | None:
        seen.append(1)
        return "SIGUSR2" if len(seen) == 6 else None

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "agreed", stop)
        assert run(command).code == 75
    done = run(command)
    assert done.code == 0
    assert curves(done) == curves(whole)
    assert done.validation_losses == whole.validation_losses


def kill_at(folder: Path, step: int, command: list[str]) -> None:
    """Kill a process of its own in a step after the last checkpoint."""
    begun = max((int(p.parent.name[5:]) for p in folder.glob("checkpoint/step-*/.metadata")),
                default=0)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STOP", str(begun + step))
        patch.setenv("STOP_SIGNAL", "SIGKILL")
        killed = run_ranks("rank_worker", str(folder.parent), *command, processes=1)
    assert killed.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, pytest.param(10, marks=pytest.mark.exhaustive)])
def test_kills_at_arbitrary_steps_leave_the_curves_as_they_are(kills: int, tmp_path: Path) -> None:
    more = ("--checkpoint.enable", "--checkpoint.interval", "3", "--steps", "40")
    whole = run(tiny_images(tmp_path / "whole", "maxP", *more))
    command = tiny_images(tmp_path / "run", "maxP", *more)
    for number in range(kills):
        kill_at(tmp_path / "run", 2 + number % 3, command)
    done = run(command)
    assert done.code == 0
    assert curves(done) == curves(whole)
    assert done.validation_losses == whole.validation_losses


@pytest.mark.parametrize("kind", ["vit", "mlp"])
def test_at_base_width_the_methods_with_fixed_learning_rates_are_one_run(
    kind: str, tmp_path: Path
) -> None:
    runs = [
        run(tiny_images(tmp_path / method, method, "--steps", "4", scale=f"{kind}-debug-base"))
        for method in ("sp", "mup-full", "mup-no")
    ]
    first, *others = ({step: r["loss"] for step, r in done.steps.items()} for done in runs)
    assert all(other == first for other in others)


def test_at_another_width_they_are_not(tmp_path: Path) -> None:
    sp, mup = (run(tiny_images(tmp_path / m, m, "--steps", "3")) for m in ("sp", "mup-full"))
    assert sp.losses != mup.losses


def test_a_fixed_probe_and_an_mlp_measure_too(tmp_path: Path) -> None:
    done = run(tiny_images(tmp_path / "run", "maxP", "--maxp.probe", "fixed", scale="mlp-debug"))
    assert done.code == 0
    assert 0.4 < done.steps[STEPS]["sites"]["layers.1"]["align_z0_dW"] < 1.05


def test_mixed_labels_weigh_and_count_each_image_once(tmp_path: Path) -> None:
    mixed = ("--dataloader.mixup", "0.8", "--dataloader.label_smoothing", "0.1", "--steps", "4")
    done = run(tiny_images(tmp_path / "run", "mup-full", *mixed))
    assert done.code == 0
    assert [r["images"] for r in done.steps.values()] == [32, 64, 96, 128]
    assert done.losses[0] == pytest.approx(math.log(10), rel=0.2)


def test_the_loss_of_shares_is_that_of_torch() -> None:
    torch.manual_seed(0)
    logits, shares = torch.randn(6, 5), torch.softmax(torch.randn(6, 5), 1)
    loss, _ = ClassificationLoss.Config().build()(logits, shares, torch.tensor(shares.numel()))
    assert float(loss) == pytest.approx(float(F.cross_entropy(logits, shares)), rel=1e-6)


def test_the_model_gets_the_classes_and_the_size_of_the_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", {"train": 3, "val": 2}, "abc")
    config = parse(
        ["--scale", "vit-debug", "--dataset", "folder", "--dataset-path", str(root),
         "--dataloader.channels", "3", "--dataloader.image_size", "10"]
    )  # fmt: skip
    assert config.model_spec is not None
    model = config.model_spec.model
    assert isinstance(model, Classifier.Config)
    assert (model.num_classes, model.channels, model.image_size) == (3, 3, 10)
    held_out: Any = config.validator.dataloader
    assert (held_out.num_classes, held_out.channels, held_out.image_size) == (3, 3, 10)


def test_validation_reads_images_as_training_does() -> None:
    """Else a model would be validated on images that are normalised, or cropped, in another way."""
    flags = {
        "augment": "timm", "interpolation": "nearest", "crop_pct": 0.5, "mean": (0.25,),
        "std": (0.5,), "image_column": "photo", "label_column": "kind",
    }  # fmt: skip
    words = [
        word
        for name, value in flags.items()
        for word in (f"--dataloader.{name}", str(value[0] if isinstance(value, tuple) else value))
    ]
    config = parse(["--scale", "vit-debug", *words])
    held_out: Any = config.validator.dataloader
    assert {name: getattr(held_out, name) for name in flags} == flags
    own = ["--validator.dataloader.mean", "0.75", "--validator.dataloader.crop_pct", "1"]
    held_out = parse(["--scale", "vit-debug", *words, *own]).validator.dataloader
    assert (held_out.mean, held_out.std, held_out.crop_pct) == ((0.75,), (0.5,), 1.0)


def test_a_class_that_is_added_does_not_enter_a_run_that_has_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = folder(tmp_path / "images", {"train": 40, "val": 2})
    data = ("--dataset", "folder", "--dataset-path", str(root), "--dataloader.image_size", "8",
            "--dataloader.channels", "3")  # fmt: skip
    command = tiny_images(tmp_path / "run", "mup-full", *data, "--steps", "2")
    assert run(command).code == 0
    for split in ("train", "val"):
        (root / split / "z").mkdir()
        (root / split / "a" / "0.png").rename(root / split / "z" / "0.png")
    assert run(command).code == 2
    printed = capsys.readouterr().err
    assert "holds the run of another configuration" in printed
    assert "num_classes: 2 there, 3 here" in printed


def test_images_that_were_written_again_make_it_another_run(tmp_path: Path) -> None:
    """Else seeds on some images would be averaged with seeds on others, under the same path."""
    root = tmp_path / "images"
    command = ["--scale", "vit-debug", "--dataset", "folder", "--dataset-path", str(root)]
    configs = []
    for size in (10, 10, 12):
        shutil.rmtree(root, ignore_errors=True)
        for split in ("train", "val"):
            for name in "ab":
                (root / split / name).mkdir(parents=True)
                picture(0, size).save(root / split / name / "0.png")
        configs.append(record(parse(command)))
    assert differences(configs[0], configs[1]) == []
    changed = [text.partition(":")[0] for text in differences(configs[1], configs[2])]
    assert changed == [f"{part}dataloader.{DATA_DIGEST}" for part in ("", "validator.")]
    (root / "val" / "b" / "0.png").unlink()
    (root / "val" / "b" / "0.png").symlink_to("nowhere")
    assert differences(configs[2], record(parse(command)))[0].startswith("validator.dataloader")


REFUSED = {
    "--training.seq_len 8": "--training.seq_len 8: an image has no sequence",
    "--dataloader.image_size 9": "must be a multiple of the 2 pixels",
    "--dataset embedded": "'embedded' is unknown",
    "--maxp.base_scale s1": "--maxp.base_scale s1: another kind of model",
    "--maxp.probe_tokens 64": "--maxp.probe_tokens 64: the probe",
    "--dataloader.no-infinite --steps 1000": "the data has 1437 images",
}


@pytest.mark.parametrize(
    ("flags", "remedy"),
    [
        ("--dataloader.dataset folder --dataloader.dataset_path {digits}", "reads digits, but"),
        ("--dataset folder --dataset-path {ab} --validator.dataloader.dataset_path {az}",
         "reads .*az, but training .*ab, with classes of its own: pass --dataset and"),
        ("--dataloader.split validation", r"--dataloader\.split validation: must be train"),
        ("--validator.dataloader.split train", r"--validator\.dataloader\.split train: must be"),
    ],
)  # fmt: skip
def test_validation_on_other_classes_or_on_training_images_is_refused(
    flags: str, remedy: str, tmp_path: Path
) -> None:
    classes = {"digits": "0123456789", "ab": "ab", "az": "az"}
    roots = {
        name: folder(tmp_path / name, {"train": 2, "val": 1}, some)
        for name, some in classes.items()
    }
    command = ["--scale", "vit-debug", *flags.format(**roots).split()]
    with pytest.raises(ValueError, match=remedy):
        parse(command)


@pytest.mark.parametrize("flags", REFUSED)
def test_bad_input_is_refused_in_one_line(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--scale", "vit-debug", "--output-dir", str(tmp_path / "run"), *flags.split()]
    assert run(command).code == 2
    printed = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(printed) == 1
    assert REFUSED[flags] in printed[0]


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--scale vit-debug: image classifiers train on one"):
        parse(["--scale", "vit-debug"])


def test_a_loss_that_is_not_finite_is_a_result(tmp_path: Path) -> None:
    done = run(tiny_images(tmp_path / "run", "sp", "--lr", "1e30", scale="mlp-debug"))
    assert done.code == 0
    assert done.record.status["state"] == "diverged"
