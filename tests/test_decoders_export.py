"""Exported decoders: transformers' models and ours give the same logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import run, tiny
from transformers import AutoModelForCausalLM

from maxp import Parametrization
from maxp.overrides import PARAMETRIZATIONS
from maxp.shards import local
from train import export
from train.method.base import base_arguments
from train.method.settings import MaxPSettings
from train.model.decoders import model_config
from train.model.hf_config import hf_config
from train.model.scales import get_scale

DEBUG = ("qwen3-debug", "qwen3-moe-debug", "deepseek-debug", "gptoss-debug")
VOCABULARY = 4096
TOLERANCE = 1e-5
TOKENS = torch.randint(VOCABULARY, (2, 200), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cpu_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def parametrized(name: str, parametrization: str, **settings: Any) -> Any:
    """A model with the multipliers of a run, and random biases and sinks."""
    config = model_config(get_scale(name), VOCABULARY)
    model = config.build()
    model.init_weights(buffer_device=None)
    base = base_arguments(MaxPSettings(base_scale=f"{name}-base", **settings), name, config)
    ab: dict[str, Any] = dict(PARAMETRIZATIONS[parametrization])
    Parametrization(model, seed=0, ab_overrides=ab, **base)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "bias" in path or path.endswith("sinks"):
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        out = model.eval()(TOKENS)
    return out if isinstance(out, torch.Tensor) else out.logits


def exported(model: Any, name: str, to: Path) -> Any:
    """transformers' model of the folder that `train.export` writes."""
    factors = export.multipliers(model)
    tensors = {n: t.clone() * factors.get(n, 1.0) for n, t in model.state_dict().items()}
    family = get_scale(name).family
    export.write_folder(
        to, export.renamed(model.config, family, tensors), hf_config(model.config, 200, 0, 1)
    )
    return AutoModelForCausalLM.from_pretrained(to, dtype=torch.float32)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("name", DEBUG)
def test_transformers_computes_our_logits(tmp_path: Path, name: str, parametrization: str) -> None:
    model = parametrized(name, parametrization)
    ours, theirs = logits(model), logits(exported(model, name, tmp_path / "exported"))
    assert float((ours - theirs).abs().max()) < TOLERANCE * float(ours.abs().max())


@pytest.mark.parametrize("name", DEBUG)
def test_without_the_multipliers_the_logits_are_others(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = parametrized(name, "mup")
    monkeypatch.setattr(export, "multipliers", lambda model: {})
    ours, theirs = logits(model), logits(exported(model, name, tmp_path / "exported"))
    assert float((ours - theirs).abs().max()) > 1000 * TOLERANCE * float(ours.abs().max())


@pytest.mark.parametrize("name", DEBUG)
def test_another_scale_of_q_times_k_is_folded_into_the_queries(tmp_path: Path, name: str) -> None:
    model = parametrized(name, "mup")
    for layer in model.layers.values():
        layer.attention.inner_attention.set_a(0.8)
    ours, theirs = logits(model), logits(exported(model, name, tmp_path / "exported"))
    assert float((ours - theirs).abs().max()) < TOLERANCE * float(ours.abs().max())


@pytest.mark.parametrize("name", DEBUG)
def test_a_run_is_exported(corpus_cache: Path, tmp_path: Path, name: str, capsys: Any) -> None:
    flags = ("--steps", "3", "--checkpoint.enable", "--lr", "1e-2")
    done = run(tiny(tmp_path / "run", "maxP", *flags, scale=name))
    export.export(done.folder, tmp_path / "exported")
    noted = "without the bias that balances their load" in capsys.readouterr().out
    assert noted == (name in ("qwen3-moe-debug", "gptoss-debug"))
    model = model_config(get_scale(name), VOCABULARY).build()
    state = {n: local(t).detach() for n, t in done.trainer.model_parts[0].state_dict().items()}
    if noted:
        state = {n: 0 * t if n.endswith("expert_bias_E") else t for n, t in state.items()}
    model.init_weights(buffer_device=None)
    model.load_state_dict(state)
    for site, trained in done.trainer.parametrization.sites.items():
        if not hasattr(trained, "owner"):  # the multiplier of experts is 1 at the base's depth
            model.get_submodule(site).scale = trained.scale
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    ours = logits(model)
    assert float((ours - logits(theirs)).abs().max()) < TOLERANCE * float(ours.abs().max())


def test_softmax_scores_of_deepseek_are_refused() -> None:
    config = model_config(get_scale("deepseek-16b"), VOCABULARY)
    with pytest.raises(ValueError, match=r"^RUN: its experts have softmax scores"):
        hf_config(config, 128, 0, 1)
