"""Preparing a dataset: what is written, and what a kill or damage leaves of it."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from text_cases import small_encoder, texts
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from scripts.torture.ranks import SERVER
from train import prepare
from train.data import writer
from train.data.loader import DataError, TextDataLoader
from train.data.sources import HubText
from train.data.store import DocumentEncoder, TokenStore
from train.data.writer import PROGRESS_FILE, CountedText, StoreWriter, write_store
from train.prepare import Options

CARD = """---
configs:
- config_name: {name}
  data_files:
  - split: {split}
    path: {path}
---
"""
DOCUMENTS = texts(60)
HELD_OUT = texts(75)[60:]


def prepare_in_batches(arguments: list[str], characters: int, last: int | None = None) -> None:
    """The command in a process of its own, which is killed once ``last`` chunks are on the disk."""
    append, chunks = writer.StoreWriter.append, 0

    def counted(self: StoreWriter, *args: Any, **kwargs: Any) -> None:
        nonlocal chunks
        append(self, *args, **kwargs)
        chunks += 1
        if chunks == last:
            os.kill(os.getpid(), signal.SIGKILL)

    writer.StoreWriter.append = counted  # type: ignore[method-assign]
    writer._BATCH_CHARACTERS = characters
    sys.argv[1:] = arguments
    sys.exit(prepare.main())


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    small_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DocumentEncoder:
    return small_encoder(tmp_path_factory.mktemp("encoder") / "tokenizer")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of FineWeb-Edu (three files) and of c4 in the hub's layout."""
    folder = tmp_path_factory.mktemp("hub")
    fineweb, c4 = folder / "fineweb-edu", folder / "c4"
    (fineweb / "sample/10BT").mkdir(parents=True)
    (c4 / "en").mkdir(parents=True)
    card = CARD.format(name="sample-10BT", split="train", path="sample/10BT/*")
    (fineweb / "README.md").write_text(card)
    for shard in range(3):
        table = pa.table({"text": DOCUMENTS[shard * 20 : shard * 20 + 20]})
        pq.write_table(table, fineweb / f"sample/10BT/{shard}.parquet", row_group_size=7)
    card = CARD.format(name="en", split="validation", path="en/c4-validation.*.json")
    (c4 / "README.md").write_text(card)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in HELD_OUT)
    (c4 / "en/c4-validation.0.json").write_text(lines)
    return folder


def options(hub: Path, tokenizer: Path, to: Path, **more: int) -> Options:
    paths = {"dataset_path": hub / "fineweb-edu", "validation_path": hub / "c4"}
    return Options(to=to, tokenizer=tokenizer, **paths, **more)  # type: ignore[arg-type]


def flags(options: Options) -> list[str]:
    pairs = ((f"--{k.replace('_', '-')}", v) for k, v in vars(options).items() if v is not None)
    return [str(word) for pair in pairs for word in pair]


def plain_store(folder: Path, documents: list[str], encoder: DocumentEncoder) -> bytes:
    """The tokens of the documents as the store of local text writes them: the oracle."""
    write_store(folder, documents, encoder, source="", label="oracle")
    return (folder / "tokens.bin").read_bytes()


def tokens(folder: Path, split: str = "train") -> bytes:
    return (folder / split / "tokens.bin").read_bytes()


def test_a_hub_dataset_is_written_in_its_order_with_c4_held_out(
    tmp_path: Path, hub: Path, tokenizer: Path, encoder: DocumentEncoder
) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    assert tokens(tmp_path / "to") == plain_store(tmp_path / "train", DOCUMENTS, encoder)
    held_out = plain_store(tmp_path / "held_out", HELD_OUT, encoder)
    assert tokens(tmp_path / "to", "validation") == held_out


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [1, 4, 9])
def test_killed_and_started_again_it_writes_the_same_bytes(
    tmp_path: Path, hub: Path, tokenizer: Path, chunks: int
) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "whole"))
    to = tmp_path / "killed"
    arguments = flags(options(hub, tokenizer, to))
    process = SERVER.Process(target=prepare_in_batches, args=(arguments, 900, chunks))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (to / "train" / "tokens.bin").stat().st_size > 0
    prepare.prepare(options(hub, tokenizer, to))
    for split in ("train", "validation"):
        for name in ("tokens.bin", "meta.json"):
            there = (to / split / name).read_bytes()
            assert there == (tmp_path / "whole" / split / name).read_bytes()


@pytest.mark.slow
def test_killed_at_any_moment_nothing_is_lost(
    tmp_path: Path, tokenizer: Path, encoder: DocumentEncoder
) -> None:
    many = texts(5_000)
    (tmp_path / "text").mkdir()
    source = tmp_path / "text" / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in many))
    to = tmp_path / "to"
    asked = Options(to=to, tokenizer=tokenizer, dataset="local", dataset_path=source)
    partial = to / "train" / "tokens.bin"
    kills = 0
    while True:
        size = partial.stat().st_size if partial.exists() else 0
        process = SERVER.Process(target=prepare_in_batches, args=(flags(asked), 20_000))
        process.start()
        while process.exitcode is None:
            # Not at a chunk's boundary: whatever the writer is at then.
            if kills < 2 and partial.exists() and partial.stat().st_size > size + 20_000:
                process.kill()
                kills += 1
                process.join()
            time.sleep(0.001)
        if process.exitcode != -signal.SIGKILL:
            break
    assert (process.exitcode, kills) == (0, 2)
    held_out = set(many[::50])
    expected = [text for text in many if text not in held_out]
    assert tokens(to) == plain_store(tmp_path / "oracle", expected, encoder)


def begin(folder: Path, encoder: DocumentEncoder, documents: list[str], chunks: int) -> None:
    """A writer that stops after so many chunks of ten documents."""
    writer = StoreWriter(folder, encoder, {})
    for chunk in range(chunks):
        part = documents[chunk * 10 : chunk * 10 + 10]
        writer.append(encoder.encode(part), empty=0, position=(chunk + 1) * 10)


def end(folder: Path, encoder: DocumentEncoder, documents: list[str]) -> int:
    """Write the rest; returns how many documents were there."""
    writer = StoreWriter(folder, encoder, {})
    kept = writer.meta.documents
    writer.write(CountedText({}, lambda: documents))
    return kept


def cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 100)


def overwrite(file: Path) -> None:
    with file.open("r+b") as opened:
        opened.write(b"\xff\xff")


@pytest.mark.parametrize("damage", [cut_off, overwrite, Path.unlink])
def test_damaged_tokens_are_found_and_written_again(
    tmp_path: Path,
    encoder: DocumentEncoder,
    damage: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    begin(tmp_path / "to", encoder, DOCUMENTS, chunks=3)
    damage(tmp_path / "to" / "tokens.bin")
    assert end(tmp_path / "to", encoder, DOCUMENTS) == 0
    assert "truncated or corrupt: writing it again" in caplog.text
    expected = plain_store(tmp_path / "oracle", DOCUMENTS, encoder)
    assert (tmp_path / "to" / "tokens.bin").read_bytes() == expected
    TokenStore.open(tmp_path / "to")


@pytest.mark.parametrize("chunks", [0, 3, 6])  # 6: nothing is written over them
def test_tokens_that_are_not_recorded_are_cut_off(
    tmp_path: Path, encoder: DocumentEncoder, chunks: int
) -> None:
    begin(tmp_path / "to", encoder, DOCUMENTS, chunks=chunks)
    with (tmp_path / "to" / "tokens.bin").open("ab") as file:
        file.write(b"\1\2\3")
    assert end(tmp_path / "to", encoder, DOCUMENTS) == 10 * chunks
    expected = plain_store(tmp_path / "oracle", DOCUMENTS, encoder)
    assert (tmp_path / "to" / "tokens.bin").read_bytes() == expected


def test_a_kill_before_the_record_is_removed_is_repaired(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    begin(tmp_path / "to", encoder, DOCUMENTS, chunks=6)
    record = (tmp_path / "to" / PROGRESS_FILE).read_bytes()
    end(tmp_path / "to", encoder, DOCUMENTS)
    (tmp_path / "to" / PROGRESS_FILE).write_bytes(record)
    assert end(tmp_path / "to", encoder, DOCUMENTS) == 60
    assert {file.name for file in (tmp_path / "to").iterdir()} == {"meta.json", "tokens.bin"}


def test_a_store_that_an_earlier_version_began_is_refused(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    (tmp_path / "journal.jsonl").write_text("{}\n")
    (tmp_path / "tokens.bin.partial").write_bytes(b"\0\0")
    with pytest.raises(DataError, match=r"earlier version .*: delete that folder, and run"):
        StoreWriter(tmp_path, encoder, {})


def test_a_hub_dataset_goes_on_from_its_end(tmp_path: Path, hub: Path) -> None:
    read = HubText("fineweb-edu-10bt", hub / "fineweb-edu")
    assert list(read) == DOCUMENTS
    again = HubText("fineweb-edu-10bt", hub / "fineweb-edu")
    again.start(json.loads(json.dumps(read.position())))
    assert list(again) == []


def test_a_limit_of_documents_is_exact_and_empty_ones_do_not_count(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    writer = StoreWriter(tmp_path / "to", encoder, {})
    writer.write(CountedText({}, lambda: ["", *DOCUMENTS]), max_documents=7)
    assert (tmp_path / "to" / "tokens.bin").read_bytes() == plain_store(
        tmp_path / "oracle", DOCUMENTS[:7], encoder
    )


def test_a_limit_of_tokens_ends_with_the_document_that_reaches_it(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    lengths = np.cumsum([len(document) for document in encoder.encode(DOCUMENTS)])
    writer = StoreWriter(tmp_path / "to", encoder, {})
    writer.write(CountedText({}, lambda: DOCUMENTS), max_tokens=int(lengths[4]) - 1)
    assert (writer.meta.documents, writer.meta.count) == (5, lengths[4])


def test_it_says_at_its_end_for_which_scales_the_tokens_are_too_few(
    tmp_path: Path, hub: Path, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    line = next(line for line in capsys.readouterr().out.splitlines() if "one epoch" in line)
    assert "enough for no scale; too few for s1 (472M)" in line


def test_ten_billion_tokens_are_enough_for_s3_and_too_few_for_s4_and_s5() -> None:
    # 20 tokens for each of 0.24, 1.09 and 2.79 billion non-embedding parameters.
    enough, too_few = prepare.scales_covered(10_000_000_000).split("; too few for ")
    assert "s3," in enough
    assert "s4 (21.8B), s5 (55.8B)" in too_few


def test_other_flags_do_not_go_on(tmp_path: Path, hub: Path, tokenizer: Path) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to", documents=5))
    before = tokens(tmp_path / "to")
    with pytest.raises(DataError, match="prepared with another documents: pass the same flags"):
        prepare.prepare(options(hub, tokenizer, tmp_path / "to", documents=6))
    assert tokens(tmp_path / "to") == before


def test_a_folder_with_other_files_is_left_alone(
    tmp_path: Path, hub: Path, tokenizer: Path
) -> None:
    (tmp_path / "mine.txt").write_text("text")
    with pytest.raises(DataError, match=r"holds other files \(mine.txt\)"):
        prepare.prepare(options(hub, tokenizer, tmp_path))


@pytest.mark.parametrize("change", [{"documents": 0}, {"tokens": -1}, {"num_workers": -1}])
def test_a_number_that_makes_no_sense_names_its_flag(
    tmp_path: Path, change: dict[str, int]
) -> None:
    flag = next(iter(change)).replace("_", "-")
    with pytest.raises(DataError, match=f"--{flag}"):
        Options(to=tmp_path, **change)  # type: ignore[arg-type]


def loader(folder: Path, tokenizer: Path, split: str) -> TextDataLoader:
    config = TextDataLoader.Config(
        dataset="local",
        dataset_path=str(folder),
        split=split,  # type: ignore[arg-type]
    )
    return TextDataLoader(
        config,
        dp_world_size=1,
        dp_rank=0,
        tokenizer=HuggingFaceTokenizer(tokenizer_path=str(tokenizer)),
        seq_len=16,
        local_batch_size=2,
    )


def test_training_reads_a_prepared_folder_with_its_own_tokenizer(
    tmp_path: Path, hub: Path, tokenizer: Path
) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    for split in ("train", "validation"):
        inputs = next(iter(loader(tmp_path / "to", tmp_path / "to" / "tokenizer", split)))[0]
        assert inputs["input"].shape == (2, 16)


def test_a_truncated_store_is_refused_with_the_remedy(
    tmp_path: Path, hub: Path, tokenizer: Path
) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    os.truncate(tmp_path / "to/train/tokens.bin", 100)
    with pytest.raises(DataError, match=r"is truncated: delete that folder, and run .*prepare"):
        loader(tmp_path / "to", tokenizer, "train")


def test_an_unfinished_folder_is_not_trained_on(tmp_path: Path, hub: Path, tokenizer: Path) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    (tmp_path / "to/validation/meta.json").unlink()
    with pytest.raises(DataError, match="validation is not finished"):
        loader(tmp_path / "to", tokenizer, "validation")


def test_another_tokenizer_is_refused(tmp_path: Path, hub: Path, tokenizer: Path) -> None:
    prepare.prepare(options(hub, tokenizer, tmp_path / "to"))
    from train.data.corpus import train_tokenizer

    train_tokenizer(texts(), tmp_path / "other", 310)
    with pytest.raises(DataError, match="prepared with another tokenizer"):
        loader(tmp_path / "to", tmp_path / "other", "train")
