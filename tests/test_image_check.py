"""The coordinate check of image classifiers: flat under muP, and not with one learning rate."""

from __future__ import annotations

import pytest
import torch

from maxp.diagnose.slopes import SiteStats
from scripts.coord_check import Options, check
from scripts.image_check import measure_images
from train.method.methods import get_method


def measured(kind: str, method: str, *widths: int) -> dict[str, SiteStats]:
    lr = 1e-2 if kind == "mlp" else 1e-3
    return measure_images(
        kind, get_method(method), widths, torch.device("cpu"), images=4, steps=3, seeds=4, lr=lr
    )


def steep(stats: dict[str, SiteStats]) -> set[str]:
    """The sites whose change is not flat within 0.05, or three standard errors."""
    slopes = {name: site.change for name, site in stats.items()}
    return {name for name, s in slopes.items() if abs(s.mean) > max(0.05, 3 * s.error)}


def test_changes_of_an_mlp_are_flat_under_mup_and_grow_under_sp() -> None:
    assert not steep(measured("mlp", "mup-full", 64, 128, 256, 512))
    standard = measured("mlp", "sp", 64, 128, 256, 512)
    assert {"layers.1", "head"} <= steep(standard)
    assert standard["head"].change.mean > 0.3


@pytest.mark.slow
def test_changes_of_a_vit_are_flat_under_mup() -> None:
    stats = measured("vit", "mup-full", 64, 128, 256)
    # The random part of an update, which falls with the width, still counts in the last ones.
    assert steep(stats) <= {"blocks.1.mlp.fc2", "head"}
    assert all(-0.15 < stats[name].change.mean < 0 for name in steep(stats))
    assert {"cls_token", "pos_embed", "blocks.1.attn.qkv", "head"} <= stats.keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(model="cnn"), "--model cnn: choose one of llama3, vit, mlp"),
        (Options(model="vit", widths=(64, 100)), "--widths 100: --model vit has multiples of 16"),
    ],
)
def test_bad_options_are_refused_in_one_line(options: Options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(options)
