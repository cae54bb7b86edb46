"""On a GPU nothing is switched on by hand, and nothing that is measured is different.

The tests marked ``gpu`` say why they did not run; what an accelerator changes in a run's
configuration is tested everywhere.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Run, run, tiny, torchrun
from test_alignment import IN, by_definition, random_site
from torchtitan.models.common.attention import FlexAttention

from maxp import compute_alignment
from maxp.w0 import InitialWeights, draw_like
from train.alignment_table import ALIGNMENTS
from train.config import Flags, make_config

ACCELERATOR = torch.accelerator.is_available()


def on_gpu(test: Any) -> Any:
    skip = pytest.mark.skipif(not ACCELERATOR, reason="torch sees no GPU on this machine")
    return pytest.mark.gpu(skip(test))


# What is decided from whether there is an accelerator


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


@pytest.mark.usefixtures("accelerator", "corpus_cache")
@pytest.mark.parametrize(("scale", "compiled"), [("debug", False), ("cpu64", False), ("s1", True)])
def test_an_accelerator_is_used_unasked(scale: str, compiled: bool) -> None:
    config = make_config(Flags(scale))
    assert config.training.mixed_precision_param == "bfloat16"
    assert config.training.mixed_precision_reduce == "float32"
    assert config.optimizer.implementation == "fused"
    assert config.compile.enable is compiled
    assert config.model_spec is not None
    for layer in config.model_spec.model.layers:
        assert issubclass(layer.attention.inner_attention._owner, FlexAttention)


# On one


@pytest.fixture
def gpu() -> torch.device:
    device = torch.accelerator.current_accelerator()
    assert device is not None
    return device


# A FlexAttention block is 128 tokens.
FLAGS = ("--training.seq_len", "128")


@on_gpu
def test_a_debug_run_picks_the_gpu_up(
    gpu: torch.device, corpus_cache: Path, tmp_path: Path
) -> None:
    done = run(tiny(tmp_path / "run", "maxP", *FLAGS))
    assert done.record.status["state"] == "completed"
    assert done.trainer.device.type == gpu.type
    assert {p.device.type for p in done.trainer.model_parts[0].parameters()} == {gpu.type}
    groups = [group for optimizer in done.trainer.optimizers for group in optimizer.param_groups]
    assert all(group["fused"] for group in groups)
    assert done.record.config["training"]["mixed_precision_param"] == "bfloat16"
    assert_measured(done)


@on_gpu
def test_a_compiled_run_in_bfloat16_measures_and_learns(
    gpu: torch.device, corpus_cache: Path, tmp_path: Path
) -> None:
    flags = ("--compile.enable", "--training.mixed_precision_param", "bfloat16", *FLAGS)
    arguments = tiny(tmp_path / "run", "maxP", *flags, "--lr", "1e-1", scale="cpu128")
    done = torchrun("-m", "train", *arguments, processes=1)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = Run(tmp_path / "run")
    assert seen.losses[-1] < seen.losses[0]
    assert_measured(seen)


def assert_measured(done: Run) -> None:
    """Every site that contracts something has exponents, of which none is above full alignment."""
    last = done.steps[max(done.steps)]["sites"]
    weighted = {name: v for name, v in last.items() if name.endswith(("wq", "w2", "lm_head"))}
    assert weighted
    for values in weighted.values():
        # Bounded by Cauchy-Schwarz for each token: y <= |x| |M|, that is exponent <= 1.
        assert all(0 < values[name] <= 1 + 1e-6 for name in ALIGNMENTS)


@on_gpu
@pytest.mark.parametrize("seed", range(4))
def test_alignment_on_a_gpu_is_that_of_float64_on_the_cpu(gpu: torch.device, seed: int) -> None:
    site = random_site(seed)
    z0, w0, z, w = (tensor.to(gpu, torch.float32) for tensor in site)
    exponents = compute_alignment(z0, w0, z, w, IN)
    assert exponents == pytest.approx(by_definition(*site, IN), abs=1e-5)


@on_gpu
def test_initial_weights_drawn_again_are_those_that_were_kept(gpu: torch.device) -> None:
    weights = {"w": torch.empty(3000, 300, device=gpu)}  # several blocks of random numbers
    weights["w"].copy_(draw_like(weights["w"], 7, 0.1))
    make = (
        InitialWeights(weights, {"w": 7}, {"w": 0.1}, resample=again) for again in (False, True)
    )
    kept, drawn = (initial.rows("w") for initial in make)
    for start, stop in ((0, 3000), (0, 1), (871, 2999)):
        assert torch.equal(kept(start, stop), drawn(start, stop))


@on_gpu
def test_a_run_that_draws_w0_again_measures_what_one_that_keeps_it_does(
    gpu: torch.device, corpus_cache: Path, tmp_path: Path
) -> None:
    first, second = (
        run(tiny(tmp_path / name, "mup-no", "--maxp.measure", *FLAGS, *IN_FLOAT32, *flags))
        for name, flags in (("kept", ()), ("drawn", ("--maxp.resample_w0",)))
    )
    assert first.losses == pytest.approx(second.losses, rel=1e-4)
    for step, record in first.steps.items():
        for site, values in record["sites"].items():
            for name in values.keys() & set(ALIGNMENTS):
                other = second.steps[step]["sites"][site][name]
                assert values[name] == pytest.approx(other, abs=1e-3)


# Kernels that are tuned anew may add in another order; in bfloat16 that would hide more.
IN_FLOAT32 = ("--training.mixed_precision_param", "float32")


@on_gpu
def test_measuring_changes_no_loss(gpu: torch.device, corpus_cache: Path, tmp_path: Path) -> None:
    plain = run(tiny(tmp_path / "plain", "mup-no", *FLAGS, *IN_FLOAT32))
    measured = run(tiny(tmp_path / "measured", "mup-no", "--maxp.measure", *FLAGS, *IN_FLOAT32))
    assert measured.losses == pytest.approx(plain.losses, rel=1e-4)
