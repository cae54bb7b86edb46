"""Exported checkpoints: transformers' LLaMA and ours give the same logits, and torchtitan reads it.

The oracle is the model that trained, with the multipliers that training used.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from harness import Run, run, tiny
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torchtitan.components.tokenizer import HuggingFaceTokenizer
from torchtitan.models.llama3 import Llama3StateDictAdapter
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from maxp import Parametrization
from maxp.overrides import PARAMETRIZATIONS
from maxp.shards import local
from train import export
from train.checkpoint_files import find_checkpoint
from train.data.corpus import BOS_TOKEN, EOS_TOKEN, prepare_embedded
from train.export import hf_config, multipliers
from train.model.decoders import model_config
from train.model.scales import get_scale

# Method and flags by name; cpu64 is half as wide as the debug scale, and twice as deep.
RUNS: dict[str, tuple[str, ...]] = {
    "maxP": ("maxP",),
    "mup-no": ("mup-no",),
    "sp": ("sp",),
    "other depth": (
        *("mup-full", "--maxp.base_scale", "cpu64", "--maxp.lr_multipliers.embedding", "3"),
        *("--maxp.std_multipliers.readout", "2"),
    ),
    "no base": ("maxP", "--maxp.base_scale", "none"),
}
TOLERANCE = 1e-4
VOCABULARY = 4096
STEPS = 6
CONFIG = model_config(get_scale("debug"), VOCABULARY)
TOKENS = torch.randint(VOCABULARY, (2, 512), generator=torch.Generator().manual_seed(0))
SAVED = ("--steps", str(STEPS), "--checkpoint.enable")


@pytest.fixture(scope="module")
def runs(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A tiny run with a checkpoint, by name."""
    folder = tmp_path_factory.mktemp("runs")
    return {name: run(tiny(folder / name, *RUNS[name], *SAVED)) for name in RUNS}


@pytest.fixture(scope="module")
def exported(runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The exported folder, by name."""
    folder = tmp_path_factory.mktemp("exported")
    for method, done in runs.items():
        export.export(done.folder, folder / method)
    return {name: folder / name for name in RUNS}


@pytest.fixture
def copy(runs: dict[str, Run], tmp_path: Path) -> Path:
    """A run's folder that a test may change."""
    return Path(shutil.copytree(runs["maxP"].folder, tmp_path / "run"))


def trained_weights(done: Run) -> dict[str, torch.Tensor]:
    """As they are in the trainer's memory; its one process holds all of each."""
    return {n: local(w).detach() for n, w in done.trainer.model_parts[0].state_dict().items()}


def our_model(weights: dict[str, torch.Tensor], scales: dict[str, float]) -> Any:
    model = CONFIG.build()
    model.load_state_dict(weights)
    for name, scale in scales.items():
        model.get_submodule(name).scale = scale
    return model


def our_logits(done: Run) -> torch.Tensor:
    """Shape (2, 512, 4096)."""
    scales = {name: site.scale for name, site in done.trainer.parametrization.sites.items()}
    with torch.no_grad():
        return our_model(trained_weights(done), scales)(TOKENS)


def hf_logits(model: Any) -> torch.Tensor:
    assert model.dtype == torch.float32
    with torch.no_grad():
        return model.eval()(TOKENS).logits


def in_memory(weights: dict[str, torch.Tensor]) -> Any:
    """transformers' model with our weights, as they are."""
    model = LlamaForCausalLM(LlamaConfig(**hf_config(CONFIG, 128, 0, 1)))
    model.load_state_dict(Llama3StateDictAdapter(CONFIG, None).to_hf(weights))
    return model


def difference(first: torch.Tensor, second: torch.Tensor) -> float:
    return (first - second).abs().max().item()


# The logits


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_transformers_computes_our_logits(
    runs: dict[str, Run], exported: dict[str, Path], method: str
) -> None:
    model = LlamaForCausalLM.from_pretrained(exported[method])
    assert difference(hf_logits(model), our_logits(runs[method])) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("method", ["maxP", "mup-no"])
def test_without_the_multipliers_the_logits_are_others(runs: dict[str, Run], method: str) -> None:
    unfolded = in_memory(trained_weights(runs[method]))
    assert difference(hf_logits(unfolded), our_logits(runs[method])) > 1000 * TOLERANCE


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
def test_any_parametrization_folds_also_one_that_scales_qk_otherwise(parametrization: str) -> None:
    ab = {**PARAMETRIZATIONS[parametrization], "inner_attention": (0.8, 0.0)}
    model = CONFIG.build()
    model.init_states(buffer_device=torch.device("cpu"))
    Parametrization(model, ab_overrides=ab, seed=3, std_prefactor=2.0)
    with torch.no_grad():
        model.tok_embeddings.weight.mul_(0.01)  # so small that the norms' epsilon counts
    weights, factors = model.state_dict(), multipliers(model)
    folded = {name: weight * factors.get(name, 1.0) for name, weight in weights.items()}
    with torch.no_grad():
        ours = model(TOKENS)
    assert difference(hf_logits(in_memory(folded)), ours) < TOLERANCE
    del factors["layers.0.attention.qkv_linear.wq.weight"]
    partly = {name: weight * factors.get(name, 1.0) for name, weight in weights.items()}
    assert difference(hf_logits(in_memory(partly)), ours) > 10 * TOLERANCE


@pytest.mark.slow
def test_positions_turn_by_the_same_angles(exported: dict[str, Path]) -> None:
    theirs = LlamaForCausalLM.from_pretrained(exported["maxP"]).model.rotary_emb.inv_freq
    ours = CONFIG.build().layers["0"].attention.rope.cache[1].angle()
    torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=0)


# The way back


@pytest.mark.slow
@pytest.mark.parametrize("method", RUNS)
def test_torchtitan_reads_the_folded_weights_bit_for_bit(
    runs: dict[str, Run], exported: dict[str, Path], method: str
) -> None:
    weights = trained_weights(runs[method])
    adapter = Llama3StateDictAdapter(CONFIG, None)
    read = adapter.to_hf({name: torch.full_like(w, torch.nan) for name, w in weights.items()})
    dcp.load(
        read, storage_reader=adapter.get_hf_storage_reader(str(exported[method])), no_dist=True
    )
    back = adapter.from_hf(read)
    sites = runs[method].trainer.parametrization.sites
    assert back.keys() == weights.keys()
    for name, weight in weights.items():
        site = sites.get(name.removesuffix(".weight"))
        assert torch.equal(back[name], weight if site is None else weight * site.scale), name


@pytest.mark.slow
def test_the_tokenizer_comes_along(exported: dict[str, Path]) -> None:
    text = "def forward(self, x):\n    return x"
    tokenizer = AutoTokenizer.from_pretrained(exported["maxP"])
    original = Tokenizer.from_file(str(prepare_embedded().tokenizer / "tokenizer.json"))
    config = json.loads((exported["maxP"] / "config.json").read_text())
    assert tokenizer.encode(text, add_special_tokens=False) == original.encode(text).ids
    assert config["max_position_embeddings"] == 32  # tokens per sequence in training
    text = "for i in range(3): print(i)"
    trained = HuggingFaceTokenizer(tokenizer_path=str(prepare_embedded().tokenizer))
    assert tokenizer(text)["input_ids"] == trained.encode(text, add_bos=True, add_eos=False)
    assert config["bos_token_id"] == original.token_to_id(BOS_TOKEN) == tokenizer.bos_token_id
    assert config["eos_token_id"] == original.token_to_id(EOS_TOKEN) == tokenizer.eos_token_id


# Which checkpoint


@pytest.mark.slow
def test_the_latest_complete_step_is_exported_also_of_the_model_alone(
    copy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {
        n: torch.ones(w.shape, dtype=torch.bfloat16) for n, w in CONFIG.build().state_dict().items()
    }
    dcp.save(state, checkpoint_id=copy / "checkpoint" / "step-10", no_dist=True)
    (copy / "checkpoint" / "step-20").mkdir()
    export.export(copy, tmp_path / "to")
    weights = load_file(tmp_path / "to" / "model.safetensors")
    assert torch.equal(weights["model.norm.weight"], torch.ones(128))
    assert "skipped step-20: it was not written to the end" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "reason"),
    [(".metadata", "it was not written to the end"), ("__0_0.distcp", "__0_0.distcp is missing")],
)
def test_a_checkpoint_with_a_file_missing_is_not_complete(
    copy: Path, lost: str, reason: str
) -> None:
    (copy / "checkpoint" / f"step-{STEPS}" / lost).unlink()
    with pytest.raises(ValueError, match=rf"no checkpoint in .*step-6: {reason}"):
        find_checkpoint(copy, "checkpoint", CONFIG.build().state_dict())


# Bad input


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | str | None:
    """The exit status of ``python -m train.export``, or the line that it ends with."""
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    try:
        export.main()
    except SystemExit as end:
        return end.code
    return 0


def lose_the_checkpoint(folder: Path) -> tuple[str, ...]:
    shutil.rmtree(folder / "checkpoint")
    return ()


def lose_the_config(folder: Path) -> tuple[str, ...]:
    (folder / "config.json").unlink()
    return ()


def change_the_scale(folder: Path) -> tuple[str, ...]:
    record = json.loads((folder / "config.json").read_text())
    record["config"]["scale"] = "cpu64"
    (folder / "config.json").write_text(json.dumps(record))
    return ()


def lose_a_step(folder: Path) -> tuple[str, ...]:
    (folder / "checkpoint" / "step-20").mkdir()
    return ("--step", "20")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lose_the_checkpoint, "no checkpoint in checkpoint/; train with --checkpoint.enable"),
        (lose_the_config, "config.json cannot be read"),
        (
            change_the_scale,
            "it is of another model: tok_embeddings.weight is 4096x128, not 4096x64",
        ),
        (lambda folder: ("--step", "3"), "--step 3: "),
        (lose_a_step, "it was not written to the end (no .metadata); choose one of 6"),
        (lambda folder: ("--tokenizer", str(folder)), "no tokenizer.json there; pass --tokenizer"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_line_and_nothing_is_written(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Any, line: str
) -> None:
    flags = spoil(copy)
    message = command(monkeypatch, str(copy), "--to", str(tmp_path / "to"), *flags)
    assert isinstance(message, str)
    assert message.startswith("error: ")
    assert line in message
    assert "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.slow
def test_a_folder_with_something_in_it_is_refused_and_left_alone(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = tmp_path / "to"
    to.mkdir()
    (to / "notes.txt").write_text("mine")
    message = command(monkeypatch, str(copy), "--to", str(to))
    assert message == f"error: --to {to}: exists and is not an empty folder; choose a new one"
    assert [path.name for path in to.iterdir()] == ["notes.txt"]


@pytest.mark.slow
def test_a_write_that_fails_leaves_nothing(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "save_file", full)
    message = command(monkeypatch, str(copy), "--to", str(tmp_path / "to"))
    assert isinstance(message, str)
    assert message.endswith("cannot be written (No space left on device); choose another folder")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
