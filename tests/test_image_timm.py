"""Any model of timm as a scale: training, sites, export, sweeps and refusals."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import timm_models
import torch
from harness import run
from image_cases import folder
from image_runs import tiny_images

from slurm import __main__ as cli
from slurm.config_file import ConfigError
from slurm.sweep import expand, load_sweep
from train.cli import parse
from train.export import export
from train.model.scales import find_scale
from train.model.timm_models import parse_model
from train.preemption import StopFlag

DIGITS = (
    *("--dataset", "digits", "--dataloader.image_size", "8", "--dataloader.channels", "1"),
    *("--metrics.log_freq", "1", "--steps", "4"),
)
VIT = "timm-vit_base_patch16_224,patch_size=2,depth=2"
DEIT = "timm-deit_tiny_patch16_224,patch_size=2,depth=2"
SMALL, LARGE = f"{DEIT},embed_dim=16,num_heads=1", f"{DEIT},embed_dim=32,num_heads=2"
BEIT = "timm-beit_base_patch16_224,patch_size=2,depth=2"
CONVNEXT = "timm-convnext_atto,depths=(1,1,1,1),dims="
PAIRS = {
    "deit": (LARGE, SMALL),
    "dinov2": tuple(
        f"timm-vit_small_patch14_dinov2,patch_size=2,depth=2,embed_dim={16 * n},num_heads={n}"
        for n in (2, 1)
    ),
    # Its qkv layers are never called: other code reads their weights.
    "beit": (f"{BEIT},embed_dim=64,num_heads=4", f"{BEIT},embed_dim=32,num_heads=2"),
    "convnext": (f"{CONVNEXT}(16,16,32,32)", f"{CONVNEXT}(8,8,16,16)"),
    # Its class token is an argument of a module.
    "cait": tuple(
        f"timm-cait_xxs24_224,patch_size=2,depth=2,embed_dim={16 * n},num_heads={n}" for n in (4, 2)
    ),
}
MORE = ("--checkpoint.enable", "--lr", "3e-2", "--maxp.solve_interval", "1")
READOUTS = {"deit": "head", "beit": "head", "dinov2": "head", "convnext": "head.fc", "cait": "head"}


def of_timm(to: Path, scale: str, base: str, method: str, *more: str) -> list[str]:
    size = ("--dataloader.image_size", "32") if "convnext" in scale else ()
    return tiny_images(to, method, *DIGITS, *size, "--maxp.base_scale", base, *more, scale=scale)


def test_a_vit_of_timm_is_the_same_run_as_the_scale_of_its_sizes(tmp_path: Path) -> None:
    scale, base = f"{VIT},embed_dim=64,num_heads=4", f"{VIT},embed_dim=16,num_heads=1"
    ours = run(tiny_images(tmp_path / "ours", "maxP", *DIGITS))
    theirs = run(of_timm(tmp_path / "theirs", scale, base, "maxP"))
    assert ours.code == theirs.code == 0
    assert theirs.losses == ours.losses
    assert theirs.lrs == ours.lrs
    assert theirs.validation_losses == ours.validation_losses


@pytest.mark.parametrize("case", PAIRS)
def test_other_models_train_and_are_exported(case: str, tmp_path: Path) -> None:
    scale, base = PAIRS[case]
    done = run(
        of_timm(
            tmp_path / "run",
            scale,
            base,
            "maxP",
            "--checkpoint.enable",
            "--lr",
            "3e-2",
            "--maxp.solve_interval",
            "1",
        )
    )
    assert done.code == 0
    sites = done.steps[4]["sites"]
    assert 0.3 < sites[READOUTS[case]]["align_z0_dW"] < 1.1
    multiplied = {n for n, s in done.trainer.parametrization.sites.items() if s.scale != 1}
    assert READOUTS[case] in multiplied

    to = tmp_path / "out"
    export(done.folder, to)
    content = json.loads((to / "config.json").read_text())
    by_file = timm_models.timm.create_model(
        content["architecture"], checkpoint_path=to / "model.safetensors", **content["model_args"]
    )
    by_folder = timm_models.timm.create_model(f"local-dir:{to}", pretrained=True)
    size = content["pretrained_cfg"]["input_size"]
    images = torch.randn(8, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = done.trainer.model_parts[0].eval()(images)
        for theirs in (by_file, by_folder):
            torch.testing.assert_close(theirs.eval()(images), logits, rtol=0, atol=1e-5)


def test_dropout_goes_on_to_the_bit_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [f"{scale},drop_rate=0.2,drop_path_rate=0.5" for scale in (LARGE, SMALL)]
    whole, command = (
        of_timm(tmp_path / name, *models, "maxP", "--checkpoint.enable")
        for name in ("whole", "run")
    )
    steps = iter(range(1, 3))
    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "agreed", lambda _: "SIGUSR2" if next(steps) == 2 else None)
        assert run(command).code == 75
    done, expected = run(command), run(whole)
    assert done.code == expected.code == 0
    assert done.validation_losses == expected.validation_losses
    for step, record in expected.steps.items():
        for key in ("loss", "grad_norm", "sites"):
            assert done.steps[step][key] == record[key]


def test_at_the_base_every_method_with_fixed_learning_rates_is_one_run(tmp_path: Path) -> None:
    flags = ("--sites-from", LARGE)
    runs = [
        run(of_timm(tmp_path / method, SMALL, SMALL, method, *flags))
        for method in ("sp", "mup-full", "mup-no")
    ]
    assert [done.code for done in runs] == [0, 0, 0]
    assert runs[0].losses == runs[1].losses == runs[2].losses
    assert runs[0].record.config["model_spec"]["model"]["other"] == LARGE.removeprefix("timm-")


def test_learning_rates_follow_from_the_ratio_of_widths(tmp_path: Path) -> None:
    done = run(of_timm(tmp_path / "run", LARGE, SMALL, "mup-full", "--steps", "1"))
    lrs = done.lrs[0]
    for hidden in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
        assert lrs[f"blocks.1.{hidden}"] / lrs["head"] == pytest.approx(2**-0.5)  # c is 1 and 1/2


def test_a_run_without_a_base_needs_a_model_to_compare_with() -> None:
    command = ["--scale", LARGE, *DIGITS]
    with pytest.raises(ValueError, match=r"pass --maxp\.base_scale timm-NAME"):
        parse(command)
    config = parse([*command, "--sites-from", SMALL])
    assert config.maxp.base_scale == "none"


def test_the_size_of_the_images_and_the_number_of_parameters_are_the_models() -> None:
    scale = find_scale("timm-vit_small_patch14_dinov2")
    assert (scale.image_size, scale.channels) == (518, 3)  # type: ignore[union-attr]
    with torch.device("meta"):
        model = timm_models.timm.create_model("deit_tiny_patch16_224")
    deit = find_scale("timm-deit_tiny_patch16_224")
    assert deit.params == sum(p.numel() for p in model.parameters())  # type: ignore[union-attr]


def test_arguments_are_python_literals() -> None:
    name, arguments = parse_model("convnext_atto,dims=(8,16),ls_init_value=1e-6,conv_mlp=True", "")
    assert name == "convnext_atto"
    assert arguments == {"dims": (8, 16), "ls_init_value": 1e-6, "conv_mlp": True}


def test_images_of_a_folder_set_the_classes(tmp_path: Path) -> None:
    root = folder(tmp_path / "images", {"train": 3, "val": 2}, "abc")
    config = parse(
        ["--scale", "timm-deit_small_patch16_224", "--dataset", "folder", "--dataset-path",
         str(root), "--maxp.base_scale", "timm-deit_tiny_patch16_224"]
    )  # fmt: skip
    assert config.model_spec is not None
    model = config.model_spec.model.plain()
    assert model.head.weight.shape == (3, 384)


REFUSED = {
    f"--scale timm-deit_smal_patch16_224 --maxp.base_scale {SMALL}":
        "--scale timm-deit_smal_patch16_224: timm .* did you mean timm-deit_small_patch16_224,",
    f"--scale {SMALL} --maxp.base_scale {SMALL}":
        f"--scale {SMALL}: its sites are found .* to train the base itself --sites-from",
    f"--scale {SMALL} --maxp.base_scale {SMALL},qkv_bias=True":
        "no weight of .*qkv_bias=True has another shape, .* pass a model of another width",
    f"--scale {LARGE} --maxp.base_scale {SMALL.replace('depth=2', 'depth=3')}":
        r"differ in more than width: blocks\.2\..* is not in both, .* the same structure",
    f"--scale {LARGE} --maxp.base_scale {CONVNEXT}(8,8,16,16)":
        "differ in more than width: .* the same structure",
    f"--scale {LARGE} --maxp.base_scale vit-s":
        "--maxp.base_scale vit-s: no model of timm; pass timm-NAME",
    f"--scale vit-debug --maxp.base_scale {SMALL}":
        "--maxp.base_scale timm.*: another kind of model than --scale vit-debug",
    f"--scale vit-debug --sites-from {SMALL}":
        "--sites-from timm.*: only --scale timm-NAME takes it; leave it out",
    f"--scale debug --sites-from {SMALL}":
        "--sites-from .*: --scale debug is no model of timm; leave it out",
    f"--scale {LARGE},embed_dimm=3 --maxp.base_scale {SMALL}":
        "timm cannot build it .*embed_dimm.*; correct the arguments after its name",
    f"--scale {LARGE},num_classes=3 --maxp.base_scale {SMALL}":
        "leave num_classes out; the classes of the images set it",
    f"--scale {LARGE},a=b/c --maxp.base_scale {SMALL}": "write timm-NAME,KEY=VALUE,...",
    f"--scale {LARGE} --maxp.base_scale {SMALL} --dataloader.image_size 1":
        "it fails on images of --dataloader.image_size 1 .*; pass what the model takes",
}  # fmt: skip


@pytest.mark.parametrize("flags", REFUSED)
def test_a_model_that_cannot_be_used_is_one_line(
    flags: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = flags.startswith("--scale debug")
    data = () if text else DIGITS
    to = tmp_path / "run"
    done = run(["--method", "maxP", "--output-dir", str(to), *data, *flags.split()])
    assert done.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error: ")]
    assert re.search(REFUSED[flags], line), line
    assert not to.exists()


def test_an_unknown_base_names_its_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--scale", LARGE, *DIGITS, "--maxp.base_scale", "timm-no"])
    assert "--maxp.base_scale timm-no" in " ".join(capsys.readouterr().err.split())


SWEEP = f"""
scales = ["{SMALL}", "{LARGE}"]
methods = ["mup-full", "sp"]
lrs = [1e-2]
seeds = [1]
steps = 2

[flags]
maxp.base_scale = "{SMALL}"
sites_from = "{LARGE}"
dataset = "digits"
dataloader.image_size = 8
dataloader.channels = 1
training.local_batch_size = 32
training.global_batch_size = 32
"""


def test_a_sweep_over_models_of_timm_has_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "deit.toml"
    file.write_text(SWEEP)
    runs = expand(load_sweep(file))
    assert [(r.scale, r.method) for r in runs] == [
        (SMALL, "mup-full"), *((LARGE, m) for m in ("mup-full", "sp")),
    ]  # fmt: skip
    assert cli.main(["submit", str(file), "--runs-dir", str(tmp_path / "runs")]) == 0
    for action in ("table", "transfer"):
        capsys.readouterr()
        assert cli.main([action, str(tmp_path / "runs" / "deit")]) == 0
        printed = capsys.readouterr().out
        assert LARGE in printed
        assert all(method in printed for method in ("mup-full", "sp"))


def test_a_sweep_with_an_unknown_model_of_timm_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(SWEEP.replace("deit_tiny_patch16_224", "deit_tiy_patch16_224"))
    with pytest.raises(ConfigError, match="did you mean timm-deit_tiny_patch16_224"):
        load_sweep(file)
