"""Held-out loss is measured on the same sequences, however many ranks share them."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import run, tiny
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from train.data.corpus import prepare_embedded
from train.data.loader import TextDataLoader
from train.metrics import HeldOutValidator, available_sequences, share


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 64])
@pytest.mark.parametrize("largest", [1, 3, 16, 100])
def test_all_ranks_together_take_the_sequences_that_were_asked_for(
    ranks: int, largest: int
) -> None:
    batch, batches = share(64, ranks, largest)
    assert batch * batches * ranks == 64
    assert 1 <= batch <= largest


def test_ranks_that_cannot_share_evenly_take_more_and_say_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert share(64, 3, 11) == (11, 2)
    assert "validating on 66 sequences, not 64" in caplog.text


def test_the_loss_does_not_depend_on_the_batch(corpus_cache: Path, tmp_path: Path) -> None:
    flags = ("--steps", "1", "--validator.sequences", "6")
    losses = []
    for batch in ("1", "4"):
        arguments = tiny(tmp_path / batch, "mup-no", *flags, "--training.local_batch_size", batch)
        losses.append(run(arguments).validation_losses[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    more = tiny(tmp_path / "more", "mup-no", *flags[:2], "--validator.sequences", "12")
    assert abs(run(more).validation_losses[1] - losses[0]) > 1e-4


def test_no_sequence_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tiny(tmp_path / "run", "mup-no", "--validator.sequences", "0")).code == 2
    assert "error: --validator.sequences 0: must be at least 1\n" in capsys.readouterr().err


def test_more_sequences_than_there_are_become_all_of_them_and_say_so(
    corpus_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = prepare_embedded()
    held_out = len(corpus.validation.tokens) // 32
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(corpus.tokenizer))
    data = TextDataLoader.Config(split="validation")
    for asked, used in [(8, 8), (held_out, held_out), (1_000_000, held_out)]:
        config = HeldOutValidator.Config(sequences=asked, dataloader=data)
        assert available_sequences(config, tokenizer, 32) == used
    (record,) = [r for r in caplog.records if r.levelname == "WARNING"]
    line = f"--validator.sequences 1000000: validating on {held_out}, which is all held-out data"
    assert line in record.getMessage()
