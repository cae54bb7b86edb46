"""The measurements of docs/theory.md: what they compare, and what their commands print and refuse.

The commands are scripts.theory.muon and scripts.theory.decoders.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.theory import decoders, muon
from train.data.corpus import prepare_embedded


@pytest.fixture(scope="module")
def corpus(corpus_cache: Path) -> np.ndarray:
    return prepare_embedded().train.tokens


def gradients(corpus: np.ndarray, width: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The inputs and gradients of the LLaMA-3, by the last part of the names in its first block."""
    torch.manual_seed(0)
    tokens = muon.draw_batch(corpus, 1, muon.TOKENS)
    model, parametrization = muon.make_model(width)
    names = [n for n in parametrization.weights if n.startswith("layers.0") and n[-2] == "w"]
    values = muon.gradients(model, tokens, names)
    return {name.rpartition(".")[2]: value for name, value in values.items()}


def test_the_exact_update_keeps_the_norm_of_its_own_input_at_every_width(
    corpus: np.ndarray,
) -> None:
    for width in (64, 128):
        for name in muon.KINDS:
            z, gradient = gradients(corpus, width)[name]
            rows, columns = gradient.shape
            kept = muon.own_part(z, muon.exact(gradient)) * (rows / columns) ** 0.5
            assert kept == pytest.approx(1, abs=1e-6), (name, width)


def test_the_exact_update_is_that_of_a_full_decomposition(corpus: np.ndarray) -> None:
    _, gradient = gradients(corpus, 64)["w2"]
    u, _, vh = torch.linalg.svd(gradient.double(), full_matrices=False)
    rank = muon.TOKENS
    torch.testing.assert_close(muon.exact(gradient), u[:, :rank] @ vh[:rank], atol=1e-6, rtol=0)


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (128, 64)])
def test_the_steps_in_float64_are_torchs_but_for_rounding(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    out, z = (torch.randn(muon.TOKENS, size, dtype=torch.float64) for size in shape)
    x = out.T @ z
    x /= x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    steps, torchs = muon.five_steps(out.T @ z), muon.torchs_steps((out.T @ z).float())
    torch.testing.assert_close(steps, x, atol=1e-9, rtol=0)
    # Rounding also adds directions, which the gradient's own inputs do not have.
    assert muon.own_part(z, torchs) == pytest.approx(muon.own_part(z, steps), rel=0.02)
    assert float((torchs * steps).sum()) > 0


def test_a_step_with_the_exact_update_moves_hidden_weights_by_it_times_the_lr(
    corpus: np.ndarray,
) -> None:
    torch.manual_seed(0)
    tokens = muon.draw_batch(corpus, 1, muon.TOKENS)
    model, parametrization = muon.make_model(64)
    muon.loss_fn(model(tokens), tokens).backward()
    weight: Any = model.get_submodule("layers.0.feed_forward.w1").weight
    before, gradient = weight.detach().clone(), weight.grad
    muon.ExactMuonAdamW(parametrization.param_groups, muon={"weight_decay": 0.0}).step()
    wanted = muon.LR * (224 / 64) ** 0.5 * muon.exact(gradient)
    torch.testing.assert_close((before - weight).double(), wanted, atol=1e-7, rtol=0)


def test_without_updates_nothing_changes(
    corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "STEPS", 0)
    for router in decoders.ROUTERS.values():
        assert decoders.changes("gptoss-cpu64", 0, corpus, router) == (0, 0, 0)


def test_with_all_experts_chosen_only_scores_are_those_of_init(
    corpus: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = decoders.get_scale("gptoss-cpu64")
    assert scale.experts is not None
    all_chosen = replace(scale, experts=replace(scale.experts, chosen=scale.experts.number))
    monkeypatch.setattr(decoders, "get_scale", lambda _: all_chosen)
    as_at_init, change, moved = decoders.changes("all", 0, corpus, decoders.ROUTERS["readout"])
    assert moved == 0
    assert 0 < as_at_init < change


def printed(module: Any, flags: str, monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    monkeypatch.setattr("sys.argv", ["theory", *flags.split()])
    assert module.main() == status


def test_the_command_of_muon_prints_a_column_per_kind(
    corpus_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    printed(muon, "--widths 128 64 --seeds 2", monkeypatch, 0)
    table, ranges = capsys.readouterr().out.split("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert {len(row) for row in rows} == {4}
    assert rows[0][1:] == ["`wv`", "`wo`", "`w2`"]
    by_name = {row[0]: row[1:] for row in rows}
    assert {cell.lstrip("+-") for cell in by_name["exact `U V^T`"]} == {"0.000 +- 0.000"}
    assert "at width 128" in by_name
    assert ranges.count("whole changes of all 14 hidden sites") == 2


def test_the_command_of_decoders_prints_a_row_per_router(
    corpus_cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(decoders, "FAMILIES", {"GPT-OSS": "gptoss-cpu"})
    printed(decoders, "--widths 64 128 --seeds 2", monkeypatch, 0)
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()]
    names = [(row[0].strip(), row[1].strip()) for row in rows[2:]]
    assert names == [(name, router) for name in decoders.FAMILIES for router in decoders.ROUTERS]
    assert all(cell.count("+-") == 1 for row in rows[2:] for cell in row[2:4])
    assert all(row[4].count("%") == 2 for row in rows[2:])


@pytest.mark.parametrize("module", [muon, decoders])
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--widths 64", "--widths 64: give two different ones of 64 128 256"),
        ("--widths 64 65", "--widths 64 65: give two different ones of 64 128 256"),
        ("--seeds 1", "--seeds 1: must be at least 2"),
    ],
)
def test_a_wrong_option_is_one_line(
    module: Any,
    flags: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed(module, flags, monkeypatch, 2)
    assert message in capsys.readouterr().err
