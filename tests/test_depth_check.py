"""The coordinate check of LLaMA-3 over depth: what it measures, reports and refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from scripts import depth_check
from scripts.coord_check import build_model, draw_batch, next_token_loss
from scripts.depth_check import MEASURED, Options, stream_sizes
from train.data.corpus import prepare_embedded
from train.method.methods import get_method
from train.model.decoders import base_model
from train.model.scales import VOCAB_SIZE, get_scale


@pytest.fixture(scope="module")
def tokens(corpus_cache: Path) -> np.ndarray:
    return prepare_embedded().train.tokens


def slopes(tokens: np.ndarray, exponent: float) -> dict[str, float]:
    options = Options(depths=(2, 32), exponent=exponent, seq_len=16)
    sizes = [[stream_sizes(options, d, seed, tokens) for d in options.depths] for seed in (0, 1)]
    (low, high) = np.log(sizes).mean(0)
    return dict(zip(MEASURED, (high - low) / math.log(16), strict=True))


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_stream_changes_by_the_same_part_at_2_and_32_layers(
    tokens: np.ndarray, exponent: float
) -> None:
    assert abs(slopes(tokens, exponent)["change relative to the stream"]) < 0.1


def test_without_scaling_the_stream_and_its_change_grow_with_depth(tokens: np.ndarray) -> None:
    grown = slopes(tokens, 0.0)
    assert grown["stream at init"] > 0.4
    assert grown["change of the stream"] > 0.4


def test_at_the_base_the_sizes_are_those_of_the_model_without_depth(tokens: np.ndarray) -> None:
    options = Options(depths=(4, 8), steps=1, seq_len=8)
    torch.manual_seed(3)
    batch = draw_batch(tokens, options.sequences, options.seq_len)
    scale = get_scale("cpu64")  # it has 4 layers
    model, parametrization = build_model(
        scale, get_method("mup-full"), options.lr, options.seq_len,
        base=base_model(scale, scale, VOCAB_SIZE),
    )  # fmt: skip
    streams: list[torch.Tensor] = []
    model.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0].detach()))
    optimizer = torch.optim.AdamW(parametrization.param_groups)
    next_token_loss(model(batch), batch).backward()
    optimizer.step()
    model(batch)
    change = (streams[1] - streams[0]).double().square().mean().sqrt()
    assert stream_sizes(options, 4, 3, tokens)[1] == pytest.approx(float(change), rel=1e-5)


def test_the_command_prints_a_row_per_size_and_writes_both_files(
    corpus_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--depths", "1", "2", "--seeds", "2", "--seq-len", "8", "--steps", "1"]
    files = [f"--png={tmp_path / 'd.png'}", f"--json={tmp_path / 'd.json'}"]
    monkeypatch.setattr("sys.argv", ["depth_check", *flags, *files])
    assert depth_check.main() == 0
    printed = capsys.readouterr().out
    sizes = json.loads((tmp_path / "d.json").read_text())["sizes"]
    assert (tmp_path / "d.png").stat().st_size > 0
    for name in MEASURED:
        assert f"{sizes[name]['slope']:+.3f}" in printed
        assert np.array(sizes[name]["rms"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--depths 2 2", "--depths 2 2: give two different numbers of layers"),
        ("--depths 0 2", "--depths 0 2: give two different numbers of layers, from 1"),
        ("--exponent -1", "--exponent -1.0: must not be negative"),
        ("--seeds 1", "--seeds 1: must be at least 2"),
        ("--branch-std 0", "--branch-std 0.0: must be positive"),
        ("--scale cpu65", "--scale cpu65: unknown"),
        ("--json nowhere/x.json", "--json nowhere/x.json: no folder nowhere"),
    ],
)
def test_a_wrong_option_is_one_line(
    flags: str, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["depth_check", *flags.split()])
    assert depth_check.main() == 2
    assert message in capsys.readouterr().err
