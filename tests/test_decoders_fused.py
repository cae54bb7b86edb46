"""Fused projections of q, k and v, as torchtitan's models have them by default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Run, run, stop_at, tiny
from torchtitan.models.common.attention import FusedQKVLinear
from transformers import AutoModelForCausalLM

from maxp.module import find_sites
from maxp.shards import local
from scripts.torture.ranks import run_ranks
from train import export
from train.alignment_table import ALIGNMENTS
from train.model.decoders import fused_blocks, model_config
from train.model.scales import get_scale

FUSED = "--fuse-qkv"
FEW = ("--steps", "5", "--lr", "1e-2", "--maxp.measure_from", "0", "--maxp.solve_interval", "2")
SCALES = ("debug", "qwen3-debug", "gptoss-debug")
PARTS = ("wq", "wk", "wv")


def weights(trainer: Any) -> dict[str, torch.Tensor]:
    """Copies of the weights of a run on one process, by their names without fusing."""
    state = trainer.model_parts[0].state_dict()
    return {name: local(tensor).detach().clone() for name, tensor in state.items()}


def fused_from(state: dict[str, torch.Tensor], trainer: Any) -> None:
    """Give a fused run the weights of another."""
    model, state = trainer.model_parts[0], dict(state)
    for name, module in model.named_modules():
        if isinstance(module, FusedQKVLinear):
            module._merge_qkv_on_load(module, state, f"{name}.")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            local(parameter).copy_(state[name])


def pair(folder: Path, method: str, scale: str, *flags: str) -> tuple[Run, Run]:
    """A run, and the fused run with the same initial weights."""
    first: list[dict[str, torch.Tensor]] = []

    def keep(trainer: Any) -> None:
        if not first:
            first.append(weights(trainer))

    def take(trainer: Any) -> None:
        if trainer.step == 1:
            fused_from(first[0], trainer)
            if trainer.measures:
                trainer._capture_initial()  # of these weights

    one = run(tiny(folder / "one", method, *FEW, *flags, scale=scale), keep)
    return one, run(tiny(folder / "fused", method, *FEW, *flags, FUSED, scale=scale), take)


@pytest.mark.parametrize("scale", SCALES)
def test_a_fused_run_has_the_losses_of_the_run_that_is_not(
    corpus_cache: Path, tmp_path: Path, scale: str
) -> None:
    one, fused = pair(tmp_path, "mup-full", scale)
    assert fused.losses == pytest.approx(one.losses, rel=1e-6)
    assert len(fused.losses) == 5
    last = weights(fused.trainer)
    for name, weight in weights(one.trainer).items():
        # Not by entry: where a gradient is nothing but rounding, Adam makes a whole step of it.
        assert (last[name] - weight).norm() < 1e-5 * weight.norm()


def test_a_fused_weight_has_the_rows_of_q_k_and_v_of_each_key_head() -> None:
    config = model_config(get_scale("debug"), 50, fuse_qkv=True)
    assert fused_blocks(config) == {"qkv_linear.wqkv": [64, 32, 32] * 2}
    with torch.device("meta"):
        site = find_sites(config.build())["layers.0.attention.qkv_linear.wqkv"]
    assert (site.width_dim, site.layer_type, tuple(site.weight.shape)) == (
        128,
        "hidden",
        (256, 128),
    )


def test_a_fused_weight_has_the_alignment_of_its_most_cautious_part(
    corpus_cache: Path, tmp_path: Path
) -> None:
    one, fused = pair(tmp_path, "mup-full", "debug", "--maxp.measure")
    whole, parts = fused.trainer.parametrization.measured, one.trainer.parametrization.measured
    for layer in ("layers.0", "layers.1"):
        linear = f"{layer}.attention.qkv_linear"
        largest = [max(term) for term in zip(*(parts[f"{linear}.{p}"] for p in PARTS), strict=True)]
        # The largest over key heads is a little above the largest of their means.
        for ours, least in zip(whole[f"{linear}.wqkv"], largest, strict=True):
            assert least - 1e-4 < ours < least + 0.05
        others = f"{layer}.feed_forward.w1"
        assert whole[others] == pytest.approx(parts[others], abs=1e-3)


@pytest.mark.parametrize("scale", ["debug", "qwen3-debug"])
def test_a_fused_run_resumes_bit_for_bit_and_is_exported(
    corpus_cache: Path, tmp_path: Path, scale: str
) -> None:
    flags = (*FEW, FUSED, "--checkpoint.enable", "--checkpoint.interval", "2")
    whole = run(tiny(tmp_path / "whole", "maxP", *flags, scale=scale))
    assert run(tiny(tmp_path / "run", "maxP", *flags, scale=scale), stop_at(4)).code == 130
    resumed = run(tiny(tmp_path / "run", "maxP", *flags, scale=scale))
    assert resumed.losses == whole.losses
    export.export(resumed.folder, tmp_path / "exported")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    model = model_config(get_scale(scale), 4096).build()
    model.init_weights(buffer_device=None)
    model.load_state_dict(weights(resumed.trainer))
    scales = {n: s.scale for n, s in resumed.trainer.parametrization.sites.items()}
    for name, site in find_sites(model).items():
        site.scale = scales[name if name in scales else f"{name.rpartition('.')[0]}.wqkv"]
    tokens = torch.randint(4096, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, logits = model.eval()(tokens), theirs(tokens).logits
    assert float((ours - logits).abs().max()) < 1e-5 * float(ours.abs().max())


@pytest.mark.parametrize(
    ("scale", "reason"),
    [
        ("deepseek-debug", "q, k and v of --scale deepseek-debug are projections of different"),
        ("mlp-debug", "--scale mlp-debug is no language model; leave it out"),
    ],
)
def test_a_model_that_cannot_fuse_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], scale: str, reason: str
) -> None:
    assert run(["--scale", scale, FUSED, "--output-dir", str(tmp_path / "run")]).code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: --fuse-qkv: {reason}")


@pytest.mark.slow
def test_two_tensor_parallel_processes_are_one(corpus_cache: Path, tmp_path: Path) -> None:
    flags, scale = (*FEW, FUSED), "qwen3-debug"
    one = run(tiny(tmp_path / "one", "maxP", *flags, scale=scale))
    parallel = ("--parallelism.tensor_parallel_degree", "2")
    done = run_ranks(
        "train.__main__", *tiny(tmp_path / "two", "maxP", *flags, *parallel, scale=scale)
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = Run(tmp_path / "two")
    assert two.losses == pytest.approx(one.losses, rel=1e-5)
    assert len(two.losses) == 5
    first, last = one.steps[1]["sites"], one.steps[5]["sites"]
    assert any(first[site]["c"] != last[site]["c"] for site in last)  # it was measured and solved
    for site, values in two.steps[5]["sites"].items():
        for name in {*ALIGNMENTS, "c"} & values.keys():
            assert values[name] == pytest.approx(last[site][name], abs=1e-4)
