"""The trainer: the same seed is the same run, measuring changes nothing, divergence is a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import STEPS, Run, run, stop_at_validation, tiny
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from train.data.corpus import prepare_embedded
from train.data.loader import TextDataLoader
from train.method.probe import FreshText, TrainerParametrization, draw_probe

FIRST_MEASURED = 4  # measure_from 1, solve_interval 3
HIDDEN = "layers.1.feed_forward.w1"


@pytest.fixture(scope="module")
def measured_mup_no_run(
    corpus_cache: Path, mup_no_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """The run of mup-no, measuring what it does not follow."""
    return run(tiny(tmp_path_factory.mktemp("run") / "measured", "mup-no", "--maxp.measure"))


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return len(first) == len(second) and all(map(torch.equal, first, second))


# The same seed, the same data


def test_the_same_seed_gives_the_same_losses_bit_for_bit(
    corpus_cache: Path, maxp_run: Run, tmp_path: Path
) -> None:
    again = run(tiny(tmp_path / "again", "maxP"))
    assert again.losses == maxp_run.losses
    assert again.validation_losses == maxp_run.validation_losses
    assert again.lrs == maxp_run.lrs


def test_another_seed_gives_other_weights_and_other_data(
    corpus_cache: Path, maxp_run: Run, tmp_path: Path
) -> None:
    other = run(tiny(tmp_path / "other", "maxP", "--seed", "2", "--steps", "1"))
    assert not torch.equal(other.batches[0], maxp_run.batches[0])
    assert other.losses[0] != maxp_run.losses[0]


def test_the_data_does_not_depend_on_the_method(
    maxp_run: Run, mup_no_run: Run, sp_run: Run
) -> None:
    assert len(maxp_run.batches) == STEPS
    assert same(maxp_run.batches, mup_no_run.batches)
    assert same(maxp_run.batches, sp_run.batches)


def test_measuring_changes_neither_the_data_nor_a_static_methods_losses(
    mup_no_run: Run, measured_mup_no_run: Run
) -> None:
    assert "align_z0_dW" in measured_mup_no_run.steps[STEPS]["sites"][HIDDEN]
    assert "align_z0_dW" not in mup_no_run.steps[STEPS]["sites"][HIDDEN]
    assert same(mup_no_run.batches, measured_mup_no_run.batches)
    assert mup_no_run.losses == measured_mup_no_run.losses
    assert mup_no_run.validation_losses == measured_mup_no_run.validation_losses


def test_measuring_is_not_counted_as_training(maxp_run: Run) -> None:
    tokens = {step: record["tokens"] for step, record in maxp_run.steps.items()}
    assert tokens == {step: step * 4 * 32 for step in range(1, STEPS + 1)}


def test_drawing_the_initial_weights_again_measures_the_same_as_keeping_them(
    corpus_cache: Path, maxp_run: Run, tmp_path: Path
) -> None:
    again = run(tiny(tmp_path / "run", "maxP", "--maxp.resample_w0", "--steps", "8"))
    assert again.trainer.parametrization.state_dict()["measurement"]["w0"] is None
    # The decay of the shorter run is at other steps, but begins after its first measurement.
    assert again.c[FIRST_MEASURED] == maxp_run.c[FIRST_MEASURED]


def test_the_probe_is_the_same_text_whatever_the_runs_seed(corpus_cache: Path) -> None:
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(prepare_embedded().tokenizer))
    first, second = (
        draw_probe(TextDataLoader.Config(seed=seed), tokenizer, seq_len=32, sequences=2)
        for seed in (1, 2)
    )
    assert first[0]["input"].shape == (2, 32)
    assert torch.equal(first[0]["input"], second[0]["input"])


def texts(seed: int, numbers: range, state: bytes | None = None) -> tuple[list[Any], bytes]:
    """Some probes of fresh text, and the reader's state after them."""
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(prepare_embedded().tokenizer))
    text = FreshText(TextDataLoader.Config(seed=seed), tokenizer, seq_len=32, sequences=2)
    if state is not None:
        text.load_state_dict(state)
    return [text.draw()[0]["input"].tolist() for _ in numbers], text.state_dict()


def test_fresh_text_is_new_each_time_and_another_for_another_seed(corpus_cache: Path) -> None:
    sequences = [s for seed in (1, 2) for probe in texts(seed, range(8))[0] for s in probe]
    assert len(sequences) == 2 * 8 * 2
    assert len({tuple(s) for s in sequences}) == len(sequences)


def test_fresh_text_continues_from_a_saved_position(corpus_cache: Path) -> None:
    whole, _ = texts(1, range(8))
    first, state = texts(1, range(3))
    rest, _ = texts(1, range(5), state)
    assert first + rest == whole


def test_a_run_measures_on_new_text_each_time(
    corpus_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    forward = TrainerParametrization.forward

    def watched(self: TrainerParametrization, x: Any) -> None:
        seen.append(x[0]["input"].tolist())
        forward(self, x)

    monkeypatch.setattr(TrainerParametrization, "forward", watched)
    run(tiny(tmp_path / "run", "maxP", "--steps", "10"))
    # With the initial and the current weights, at steps 4, 7 and 10.
    assert seen[::2] == seen[1::2]
    assert len({str(probe) for probe in seen}) == 3


# Validation and divergence


def test_validation_is_every_so_many_steps_and_after_the_last(
    corpus_cache: Path, tmp_path: Path
) -> None:
    done = run(tiny(tmp_path / "run", "mup-no", "--steps", "8", "--validator.freq", "3"))
    assert set(done.validation_losses) == {3, 6, 8}


def test_a_run_whose_loss_overflows_ends_as_diverged_with_its_metrics(
    corpus_cache: Path, sp_run: Run, tmp_path: Path
) -> None:
    done = run(tiny(tmp_path / "run", "sp", "--lr", "1e6", "--training.max_norm", "1e9"))
    assert (done.code, done.record.status["state"]) == (0, "diverged")
    last = done.record.status["step"]
    assert 1 < last < STEPS
    assert list(done.steps) == list(range(1, last + 1))
    assert done.losses[0] == sp_run.losses[0]
    assert done.losses[-1] is None


def test_a_divergence_between_two_logged_steps_is_seen_at_the_last(
    corpus_cache: Path, tmp_path: Path
) -> None:
    flags = ("--lr", "1e6", "--metrics.log_freq", "1000", "--validator.no-enable")
    done = run(tiny(tmp_path / "run", "sp", *flags))
    assert (done.code, done.record.status["state"]) == (0, "diverged")
    assert done.record.status["step"] == STEPS


def test_a_run_that_diverges_in_its_last_step_is_not_completed(
    corpus_cache: Path, tmp_path: Path
) -> None:
    # The first steps of the run above: the loss of step 2 is from before the update that overflows.
    flags = ("--lr", "1e6", "--steps", "2", "--lr_scheduler.total_steps", str(STEPS))
    done = run(tiny(tmp_path / "run", "sp", *flags, "--training.max_norm", "1e9"))
    assert done.record.metrics[1]["loss"] < 10
    assert (done.code, done.record.status["state"]) == (0, "diverged")
    assert done.validation_losses == {2: None}


def test_a_run_stopped_before_its_last_validation_makes_it_when_resumed(
    corpus_cache: Path, tmp_path: Path
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no", "--steps", "4", "--checkpoint.enable")
    stop_at_validation(arguments)
    resumed = run(arguments)
    assert (resumed.code, len(resumed.lrs)) == (0, 0)
    assert set(resumed.validation_losses) == {4}
