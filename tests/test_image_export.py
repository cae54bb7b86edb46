"""An exported classifier: timm and our MLP compute the logits of training's last weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm_models
import torch
from harness import Run, run
from image_runs import tiny_images
from safetensors.torch import load_file
from timm.data import create_transform, resolve_data_config

from train.data.images.digits import Digits
from train.export import export
from train.model.classifier import MLP

TOLERANCE = 1e-5
IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def trained(folder: Path, scale: str, *more: str) -> Run:
    short = ("--steps", "4", "--checkpoint.enable", "--checkpoint.interval", "4")
    done = run(tiny_images(folder, "mup-full", *short, "--lr", "3e-2", *more, scale=scale))
    assert done.code == 0
    return done


def difference(done: Run, theirs: Any) -> float:
    with torch.no_grad():
        return (
            (done.trainer.model_parts[0].eval()(IMAGES) - theirs.eval()(IMAGES)).abs().max().item()
        )


def test_timm_loads_an_exported_vit_by_folder_and_by_file(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", "vit-debug")
    to = tmp_path / "out"
    export(done.folder, to)
    by_folder = timm_models.timm.create_model(f"local-dir:{to}", pretrained=True)
    assert difference(done, by_folder) < TOLERANCE
    config = json.loads((to / "config.json").read_text())
    by_file = timm_models.timm.create_model(
        config["architecture"],
        checkpoint_path=to / "model.safetensors",
        **config["model_args"],
    )
    assert difference(done, by_file) < TOLERANCE
    multiplied = {n for n, s in done.trainer.parametrization.sites.items() if s.scale != 1}
    assert multiplied >= {"patch_embed.proj", "head"}
    assert by_folder.pretrained_cfg["input_size"] == (1, 8, 8)


@pytest.mark.parametrize("flags", [(), ("--dataloader.crop_pct", "0.5")])
def test_timm_reads_images_for_an_exported_model_as_validation_does(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    done = trained(tmp_path / "run", "vit-debug", "--dataloader.interpolation", "nearest", *flags)
    export(done.folder, tmp_path / "out")
    model = timm_models.timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True)
    transform = create_transform(**resolve_data_config({}, model=model))
    digits = Digits("validation")
    held_out = done.trainer.config.validator.dataloader.build(
        dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=1, local_batch_size=len(digits.labels)
    )
    inputs, labels = next(iter(held_out))
    ours = sorted(image.flatten().tolist() for image in inputs["input"])
    assert ours == sorted(transform(digits.open(i)).flatten().tolist() for i in range(len(labels)))


def test_an_exported_mlp_is_an_ordinary_one(tmp_path: Path) -> None:
    done = trained(tmp_path / "run", "mlp-debug")
    export(done.folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    model = MLP(**config["model_args"])
    model.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    assert difference(done, model) < TOLERANCE
    with pytest.raises(ValueError, match=r"--tokenizer .*: an image classifier has none"):
        export(done.folder, tmp_path / "other", tokenizer=tmp_path)
