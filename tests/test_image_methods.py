"""A frozen table, deeper models, and runs without a base, on images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness import run
from image_runs import tiny_images
from torch.nn import functional as F

from maxp import Parametrization
from train.alignment_table import export, kind, read_table
from train.method.base import base_arguments
from train.method.settings import MaxPSettings
from train.model.classifier import classifier_config, classifier_graph
from train.model.image_scales import IMAGE_SCALES

LR = 1e-2


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of a passive run on the digits."""
    folder = tmp_path_factory.mktemp("table")
    done = run(tiny_images(folder / "run", "mup-no", "--maxp.measure"))
    assert done.code == 0
    export((done.folder,), folder / "table.json", first_step=1)
    return folder / "table.json"


def test_c_of_a_frozen_table_has_the_closed_form(table: Path, tmp_path: Path) -> None:
    flags = ("--alignment_table", str(table), "--steps", "2")
    done = run(tiny_images(tmp_path / "run", "maxP-frozen", *flags))
    assert done.code == 0
    c = done.c[0]
    rows = read_table(table, list(c))
    a = {"head": 0.5, "blocks.0.attn.qkv": 0.0, "blocks.1.mlp.fc1": 0.0, "blocks.1.mlp.fc2": 0.0}
    for name, multiplier in a.items():
        z0_dw, _, dz_dw = (min(1.0, max(0.5, value)) for value in rows[kind(name)])
        assert c[name] == pytest.approx(max(z0_dw, dz_dw) - multiplier, abs=1e-6)
    assert c["patch_embed.proj"] == pytest.approx(0.5, abs=1e-6)


def test_at_the_base_a_frozen_table_changes_nothing(table: Path, tmp_path: Path) -> None:
    flags, base = ("--alignment_table", str(table)), {"scale": "vit-debug-base"}
    frozen = run(tiny_images(tmp_path / "frozen", "maxP-frozen", "--steps", "4", *flags, **base))
    plain = run(tiny_images(tmp_path / "plain", "mup-full", "--steps", "4", **base))
    assert frozen.code == plain.code == 0
    assert frozen.losses == plain.losses
    assert frozen.validation_losses == plain.validation_losses


@pytest.mark.parametrize("exponent", [1.0, 0.5, 0.0])
def test_branches_of_a_deeper_vit_are_scaled(exponent: float) -> None:
    """vit-l has twice the blocks of vit-ti; here at a small width and with two blocks."""
    small = {"width": 64, "depth": 2, "head_dim": 16, "image_size": 32}
    config = classifier_config(IMAGE_SCALES["vit-l"], **small)
    settings = MaxPSettings(method="mup-full", lr=LR, base_scale="vit-ti", depth_exponent=exponent)
    model = config.build()
    p = Parametrization(
        model,
        sample_input=classifier_graph(config),
        seed=0,
        lr_prefactor=LR,
        **base_arguments(settings, "vit-l", config),
    )
    fc2, factor = model.blocks[1].mlp.fc2, 2**-exponent
    z = torch.randn(3, 256)
    torch.testing.assert_close(fc2(z), factor * F.linear(z, fc2.weight, fc2.bias))
    assert p.sites["blocks.0.attn.proj"].scale == pytest.approx(factor)
    assert p.sites["blocks.0.mlp.fc1"].scale == 1
    ratio = 64 / 192
    inside = 2 ** (exponent - 1) if exponent else 1.0
    assert p.lrs()["blocks.0.mlp.fc1"] == pytest.approx(LR / ratio * inside)
    assert p.lrs()["head"] == pytest.approx(LR * ratio**-0.5)


def test_without_a_base_the_exponents_act_on_widths(tmp_path: Path) -> None:
    flags = ("--maxp.base_scale", "none", "--steps", "2", "--lr", str(LR))
    done = run(tiny_images(tmp_path / "run", "mup-full", *flags))
    assert done.code == 0
    p = done.trainer.parametrization
    assert p.sites["head"].scale == pytest.approx(64**-0.5)
    assert p.sites["patch_embed.proj"].scale == pytest.approx(64**0.5)
    assert p.sites["blocks.0.mlp.fc2"].scale == 1
    # The second of two steps has the whole lr: the warm-up is over.
    lrs = {name: lr / done.lrs[1]["head"] for name, lr in done.lrs[1].items()}
    assert lrs["blocks.0.mlp.fc2"] == pytest.approx(256**-1 / 64**-0.5)
    assert lrs["blocks.0.attn.qkv"] == pytest.approx(64**-1 / 64**-0.5)
    assert lrs["patch_embed.proj"] == pytest.approx(1)
