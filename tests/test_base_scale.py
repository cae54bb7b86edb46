"""At the base scale every method is one run, which is torchtitan's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import Run, in_process, run, tiny
from torchtitan.components.optimizer import ParamGroupConfig
from torchtitan.trainer import Trainer

from scripts.torture.ranks import run_ranks
from train.cli import parse
from train.faults import single_process_environment
from train.model.llama3 import plain_config
from train.model.scales import SCALES, VOCAB_SIZE, base_of, get_scale

STATIC = ("sp", "mup-full", "mup-no")
FIFTY = ("--steps", "50")
BASE = "debug-base"


def curve(seen: Run) -> list[tuple[float, float]]:
    return [(record["loss"], record["grad_norm"]) for record in seen.steps.values()]


@pytest.fixture(scope="module")
def at_base(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Method sp at the base scale."""
    return run(tiny(tmp_path_factory.mktemp("base") / "sp", "sp", *FIFTY, scale=BASE))


def test_every_ladder_has_a_base_which_is_its_own() -> None:
    bases = {name: base_of(name) for name in SCALES}
    assert {bases[base] == base for base in bases.values()} == {True}
    assert {bases[name] for name in ("s1", "s5")} == {"s1"}
    assert {bases[name] for name in ("w256", "w4096")} == {"w256"}
    assert {bases[name] for name in ("cpu64", "cpu512")} == {"cpu64"}
    assert base_of("uneven") is None
    debug, base = get_scale("debug"), get_scale("debug-base")
    assert bases["debug"] == base.name
    assert (debug.dim, debug.ffn_dim) == (4 * base.dim, 4 * base.ffn_dim)


def frozen_table(folder: Path) -> tuple[str, ...]:
    """A table in which no exponent is a preset's."""
    names = ("attention.qkv_linear.wq", "attention.qkv_linear.wk", "attention.qkv_linear.wv")
    names += ("attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3", "lm_head")
    rows = ", ".join(f'"{name}": [0.7, 0.52, 0.8]' for name in names)
    (folder / "table.json").write_text(f'{{"alignment": {{{rows}}}}}')
    return "--alignment-table", str(folder / "table.json")


@pytest.mark.parametrize("method", ["mup-full", "mup-no", "maxP-frozen", "maxP"])
def test_at_the_base_scale_a_method_is_the_run_of_every_other(
    method: str, at_base: Run, corpus_cache: Path, tmp_path: Path
) -> None:
    table = frozen_table(tmp_path) if method == "maxP-frozen" else ()
    seen = run(tiny(tmp_path / "run", method, *FIFTY, *table, scale=BASE))
    assert (seen.code, len(curve(seen))) == (0, 50)
    assert curve(seen) == curve(at_base)


@pytest.mark.slow
def test_at_the_base_scale_methods_are_one_run_on_two_processes_too(
    corpus_cache: Path, tmp_path: Path
) -> None:
    def losses(name: str) -> list[tuple[float, float]]:
        batch = ("--training.local_batch_size", "2")
        command = tiny(tmp_path / name, name, *FIFTY, *batch, scale=BASE)
        done = run_ranks("train.__main__", *command)
        assert done.returncode == 0, done.stderr[-2000:]
        return curve(Run(tmp_path / name))

    expected = losses("sp")
    assert losses("mup-full") == expected
    assert losses("mup-no") == expected


def test_away_from_the_base_methods_differ(at_base: Run, mup_no_run: Run, sp_run: Run) -> None:
    assert curve(mup_no_run) != curve(sp_run)


def torchtitans_losses(arguments: Sequence[str], weights: dict[str, torch.Tensor]) -> list[float]:
    """Those of torchtitan's own trainer and model, from these weights, without maxp."""
    config = parse(arguments)
    model = plain_config(get_scale(config.scale), VOCAB_SIZE)
    settings = {f.name: getattr(config, f.name) for f in fields(Trainer.Config)}
    settings["model_spec"] = replace(config.model_spec, model=model)
    [everything] = config.optimizer.param_groups
    gains = ParamGroupConfig(
        pattern="norm",
        optimizer_name=everything.optimizer_name,
        optimizer_kwargs={**everything.optimizer_kwargs, "weight_decay": 0.0},
    )
    settings["optimizer"] = replace(config.optimizer, param_groups=[gains, everything])
    with in_process():
        single_process_environment()
        trainer = Trainer(Trainer.Config(**settings))
        try:
            trainer.model_parts[0].load_state_dict(weights, strict=True)
            trainer.train()
        finally:
            trainer.close()
    lines = (Path(config.dump_folder) / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for record in map(json.loads, lines) if "loss" in record]


def test_at_the_base_scale_torchtitans_own_trainer_has_the_same_losses(
    corpus_cache: Path, tmp_path: Path
) -> None:
    weights: dict[str, torch.Tensor] = {}

    def keep(trainer: Any) -> None:
        if not weights:
            state = trainer.model_parts[0].state_dict()
            weights.update({name: tensor.detach().clone() for name, tensor in state.items()})

    ours = run(tiny(tmp_path / "ours", "mup-full", *FIFTY, scale=BASE), keep)
    theirs = torchtitans_losses(tiny(tmp_path / "theirs", "mup-full", *FIFTY, scale=BASE), weights)
    assert len(theirs) == 50
    assert theirs == pytest.approx(ours.losses, rel=1e-5)


# Away from the base


def first_step(folder: Path, method: str, *flags: str) -> tuple[dict[str, float], dict[str, float]]:
    """By group, the lr and the weight decay of the first step at the debug scale."""
    done = run(tiny(folder, method, "--steps", "1", *flags))
    return done.lrs[0], done.decays[0]


def test_a_multiplier_acts_on_its_layer_type_and_on_what_it_names(
    corpus_cache: Path, tmp_path: Path
) -> None:
    plain, _ = first_step(tmp_path / "plain", "mup-no")
    group = "--maxp.lr_multipliers."
    flags = (f"{group}embedding", "3", f"{group}rest", "0.5", f"{group}sites", "attention.wo", "2")
    scaled, _ = first_step(tmp_path / "scaled", "mup-no", *flags)
    factors = {"tok_embeddings": 3, "rest": 0.5}
    factors |= {f"layers.{i}.attention.wo": 2 for i in (0, 1)}
    assert scaled == pytest.approx({name: factors.get(name, 1) * lr for name, lr in plain.items()})


def test_a_step_decays_all_weights_alike_and_no_gain(corpus_cache: Path, tmp_path: Path) -> None:
    lrs, decays = first_step(tmp_path / "run", "mup-full")
    shrink = {name: lrs[name] * decays[name] / lrs["rest"] for name in lrs}
    assert shrink == pytest.approx({**dict.fromkeys(lrs, 0.1), "rest": 0.0})


def test_coupled_decay_is_adamws_own(corpus_cache: Path, tmp_path: Path) -> None:
    _, decays = first_step(tmp_path / "run", "mup-full", "--maxp.weight_decay", "coupled")
    assert set(decays.values()) == {0.1}
