"""The scales of image classifiers: models, ladders, costs and sites."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import timm_models
import torch
from torch.utils.flop_counter import FlopCounterMode

from maxp import mark
from maxp.module import find_sites
from train.cli import parse
from train.model.classifier import MLP, classifier_config, classifier_graph
from train.model.image_costs import forward_flops
from train.model.image_scales import IMAGE_SCALES
from train.model.kinds import base_model
from train.model.scales import DECODERS, SCALES, all_scales, base_of

SMALL = ("vit-debug", "mlp-debug")
LADDERS = {
    "vit-ti": ("vit-ti", "vit-s", "vit-b", "vit-l"),
    "mlp-s": ("mlp-s", "mlp-m", "mlp-b", "mlp-l"),
    "vit-w256": ("vit-w256", "vit-w512", "vit-w1024", "vit-w2048", "vit-w4096"),
    "vit-cpu32": ("vit-cpu32", "vit-cpu64", "vit-cpu128"),
    "mlp-cpu64": ("mlp-cpu64", "mlp-cpu128", "mlp-cpu256"),
    "vit-debug-base": ("vit-debug-base", "vit-debug"),
    "mlp-debug-base": ("mlp-debug-base", "mlp-debug"),
}


def on_meta(scale: str) -> torch.nn.Module:
    with torch.device("meta"):
        return classifier_config(IMAGE_SCALES[scale]).build()


def test_every_scale_is_on_a_ladder_and_refers_to_its_first() -> None:
    assert {name: base_of(name) for name in IMAGE_SCALES} == {
        name: base for base, ladder in LADDERS.items() for name in ladder
    }
    assert not SCALES.keys() & IMAGE_SCALES.keys()
    assert all_scales().keys() == SCALES.keys() | DECODERS.keys() | IMAGE_SCALES.keys()


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_a_vit_has_the_parameters_of_timms(size: str) -> None:
    with torch.device("meta"):
        theirs = timm_models.timm.create_model(f"vit_{size}_patch16_224")
    name = "vit-ti" if size == "tiny" else f"vit-{size[0]}"
    ours = on_meta(name)
    shapes = {name: p.shape for name, p in ours.named_parameters()}
    assert shapes == {name: p.shape for name, p in theirs.named_parameters()}
    assert IMAGE_SCALES[name].params == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("scale", ["vit-w256", "mlp-s", "mlp-cpu128"])
def test_the_number_of_parameters_is_that_of_the_model(scale: str) -> None:
    assert IMAGE_SCALES[scale].params == sum(p.numel() for p in on_meta(scale).parameters())


@pytest.mark.parametrize("scale", SMALL)
def test_flops_are_those_that_torch_counts(scale: str) -> None:
    size = IMAGE_SCALES[scale]
    model, images = on_meta(scale), torch.zeros(1, 1, 8, 8, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(images)
    assert forward_flops(size) == counter.get_total_flops()


def test_ladders_of_widths_differ_in_width_alone() -> None:
    for base, ladder in LADDERS.items():
        if base in ("vit-ti", "mlp-s"):
            continue
        for name in ladder:
            first, other = IMAGE_SCALES[base], IMAGE_SCALES[name]
            same = ("n_layers", "head_dim", "image_size", "patch_size", "steps", "classes")
            assert all(getattr(first, key) == getattr(other, key) for key in same)


@pytest.mark.parametrize("kind", ["vit", "mlp"])
def test_sites_are_those_of_the_method(kind: str) -> None:
    types = {n: site.layer_type for n, site in find_sites(on_meta(f"{kind}-debug")).items()}
    if kind == "mlp":
        expected = {"layers.0": "embedding", "layers.1": "hidden", "head": "readout"}
    else:
        inner = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        expected = dict.fromkeys(("cls_token", "pos_embed", "patch_embed.proj"), "embedding")
        expected |= {f"blocks.{i}.{name}": "hidden" for i in (0, 1) for name in inner}
        expected |= {"head": "readout"}
    assert types == expected
    assert {s.site for s in classifier_graph(classifier_config(IMAGE_SCALES[f"{kind}-debug"])).sites
            } == types.keys()  # fmt: skip


@pytest.mark.parametrize("scale", SMALL)
def test_a_base_is_drawn_alike_whatever_the_seed_and_leaves_the_generator_alone(
    scale: str,
) -> None:
    config = classifier_config(IMAGE_SCALES[scale])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = base_model(config, scale, f"{scale}-base")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(2)
    second = base_model(config, scale, f"{scale}-base")
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)


def test_a_base_has_the_depth_of_the_model() -> None:
    deep = classifier_config(IMAGE_SCALES["vit-debug"], depth=5)
    sites = find_sites(base_model(deep, "vit-debug", "vit-debug-base"))
    assert sites["blocks.4.mlp.fc1"].width_dim == 16


@pytest.mark.parametrize("base", ["s1", "mlp-cpu64"])
def test_a_base_of_another_kind_is_refused(base: str) -> None:
    config = classifier_config(IMAGE_SCALES["vit-debug"])
    with pytest.raises(ValueError, match=f"--maxp.base_scale {base}: another kind of model"):
        base_model(config, "vit-debug", base)


def test_activations_of_the_mlp_keep_their_size_over_its_layers() -> None:
    torch.manual_seed(0)
    model = MLP(4096, 512, 4, 10)
    sizes = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, out: sizes.append(out.std().item()))
    model(torch.randn(64, 4096))
    assert all(0.4 < later / sooner < 1.6 for sooner, later in pairwise(sizes))


def test_the_plan_in_the_docs_is_that_of_vit_b_against_vit_s() -> None:
    with torch.device("meta"):
        wide, base = (classifier_config(IMAGE_SCALES[f"vit-{x}"]).plain() for x in "bs")
    plan = str(mark(wide, base)).splitlines()
    shown = [
        line for line in plan if not line.startswith("blocks.") or line.startswith("blocks.0.")
    ]
    page = Path(__file__).parents[1] / "docs" / "vision.md"
    assert "\n".join(shown) in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["vit-debug_mup_full", "mlp-debug"])
def test_torchtitans_command_line_trains_images(name: str) -> None:
    config = parse(["--module", "configs.images", "--config", name])
    assert config.scale == name.partition("_")[0]
    assert config.maxp.method == ("mup-full" if "_" in name else "maxP")
