"""The coordinate check of image classifiers: flat under muP, and not with one learning rate."""

from __future__ import annotations

import pytest
import torch

from maxp.diagnose.slopes import SiteStats
from scripts.coord_check import Options, check
from scripts.image_check import hide_unread, measure_images
from train.method.methods import get_method
from train.model.classifier import classifier_config
from train.model.image_scales import IMAGE_SCALES


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
    assert not steep(stats)
    assert {"cls_token", "pos_embed", "blocks.1.attn.qkv", "head"} <= stats.keys()


def test_what_is_hidden_of_the_last_block_is_read_by_nothing() -> None:
    config = classifier_config(IMAGE_SCALES["vit-debug"])
    torch.manual_seed(0)
    model, images = config.plain(), torch.randn(4, 1, 8, 8)
    outputs: dict[str, torch.Tensor] = {}
    block = model.blocks[-1]
    hidden = {"proj": block.attn.proj, "fc1": block.mlp.fc1, "fc2": block.mlp.fc2}
    for name, site in hidden.items():
        site.register_forward_hook(lambda _, __, out, name=name: outputs.update({name: out}))
    logits = model(images)
    for gradient in torch.autograd.grad(logits.square().sum(), list(outputs.values())):
        assert gradient[:, 1:].abs().max() == 0
        assert gradient[:, 0].abs().max() > 0
    hide_unread(model)
    assert torch.equal(model(images), logits)


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
