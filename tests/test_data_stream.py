"""Hub datasets, read from local folders in the hub's layout."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset
from text_cases import small_encoder, texts
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from train.data.loader import DataError, TextDataLoader
from train.data.stream import DATASETS
from train.data.windows import Batch
from train.method.probe import FreshText, draw_probe

SEQ_LEN = 16
FINEWEB_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*/*
- config_name: sample-10BT
  data_files:
  - split: train
    path: sample/10BT/*
- config_name: sample-100BT
  data_files:
  - split: train
    path: sample/100BT/*
---
"""
C4_CARD = """---
configs:
- config_name: en
  data_files:
  - split: train
    path: en/c4-train.*.json.gz
  - split: validation
    path: en/c4-validation.*.json.gz
---
"""
DOCUMENTS = texts(100)
FULL, SAMPLE_100BT, SAMPLE_10BT = DOCUMENTS[:60], DOCUMENTS[60:80], DOCUMENTS[80:]


def write_parquet(path: Path, documents: list[str], field: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({field: documents, "id": documents}), path, row_group_size=7)


@pytest.fixture(scope="module")
def fineweb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fineweb-edu")
    (folder / "README.md").write_text(FINEWEB_CARD)
    for shard in range(4):
        write_parquet(
            folder / f"data/CC-MAIN-2013/{shard}.parquet", FULL[shard * 15 : shard * 15 + 15]
        )
    write_parquet(folder / "sample/100BT/000.parquet", SAMPLE_100BT)
    write_parquet(folder / "sample/10BT/000.parquet", SAMPLE_10BT)
    return folder


@pytest.fixture(scope="module")
def c4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("c4")
    (folder / "README.md").write_text(C4_CARD)
    (folder / "en").mkdir()
    for name, documents in {"train.0": FULL, "validation.0": SAMPLE_10BT}.items():
        lines = "".join(json.dumps({"text": text, "url": "a"}) + "\n" for text in documents)
        (folder / f"en/c4-{name}.json.gz").write_bytes(gzip.compress(lines.encode()))
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    small_encoder(folder)
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


def build(
    tokenizer: HuggingFaceTokenizer,
    path: Path | str | None,
    *,
    rank: int = 0,
    ranks: int = 1,
    **options: Any,
) -> TextDataLoader:
    settings: dict[str, Any] = {"dataset": "fineweb-edu", "infinite": False, "shuffle_buffer": 0}
    location = None if path is None else str(path)
    return TextDataLoader.Config(dataset_path=location, **(settings | options)).build(
        dp_world_size=ranks,
        dp_rank=rank,
        tokenizer=tokenizer,
        seq_len=SEQ_LEN,
        local_batch_size=1,
    )


def rows(batches: Iterable[Batch]) -> list[list[int]]:
    return [row for inputs, _ in batches for row in inputs["input"].tolist()]


def stream_of(documents: list[str], tokenizer: HuggingFaceTokenizer) -> list[list[int]]:
    """The windows of some documents in that order."""
    flat = [i for text in documents for i in tokenizer.encode(text, add_bos=True)]
    return [flat[i : i + SEQ_LEN] for i in range(0, len(flat) - SEQ_LEN + 1, SEQ_LEN)]


def numbers(read: list[list[int]], tokenizer: HuggingFaceTokenizer) -> list[str]:
    """The first words of the documents that begin in some windows: their numbers in `texts`."""
    flat = [i for row in read for i in row]
    pieces = tokenizer.decode(flat, skip_special_tokens=False).split("<|begin_of_text|>")[1:]
    return [piece.split()[0] for piece in pieces[:-1]]  # the last may be cut off


@pytest.mark.parametrize(
    ("dataset", "documents"),
    [
        ("fineweb-edu", FULL),
        ("fineweb-edu-100bt", SAMPLE_100BT),
        ("fineweb-edu-10bt", SAMPLE_10BT),
    ],
)
def test_each_fineweb_dataset_reads_its_own_files(
    fineweb: Path, tokenizer: HuggingFaceTokenizer, dataset: str, documents: list[str]
) -> None:
    read = rows(build(tokenizer, fineweb, dataset=dataset))
    assert read == stream_of(documents, tokenizer)


def test_a_local_copy_asks_for_no_network(
    fineweb: Path, tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr("socket.getaddrinfo", lambda host, *args, **kwargs: asked.append(host))
    assert rows(build(tokenizer, fineweb))
    assert asked == []


def test_c4_reads_its_training_files(c4: Path, tokenizer: HuggingFaceTokenizer) -> None:
    assert rows(build(tokenizer, c4, dataset="c4")) == stream_of(FULL, tokenizer)


@pytest.mark.parametrize("dataset", ["fineweb-edu", "fineweb-edu-10bt", "c4"])
def test_validation_is_c4s_in_order_for_all(
    c4: Path, tokenizer: HuggingFaceTokenizer, dataset: str
) -> None:
    loader = build(tokenizer, c4, dataset=dataset, split="validation", shuffle_buffer=8)
    assert rows(loader) == stream_of(SAMPLE_10BT, tokenizer)


def test_a_shuffled_pass_has_every_document_once(
    fineweb: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    read = numbers(rows(build(tokenizer, fineweb, shuffle_buffer=8)), tokenizer)
    assert len(read) == len(set(read)) >= len(FULL) - 2  # the last window's are cut off
    assert read != sorted(read, key=int)


def test_the_shuffle_is_the_seeds(fineweb: Path, tokenizer: HuggingFaceTokenizer) -> None:
    def read(seed: int) -> list[list[int]]:
        return rows(build(tokenizer, fineweb, shuffle_buffer=8, seed=seed))

    assert read(0) == read(0) != read(1)


def test_one_file_is_shuffled_anew_by_each_seed_and_in_each_block(
    fineweb: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    def blocks(seed: int) -> list[list[int]]:
        loader = build(tokenizer, fineweb, dataset="fineweb-edu-10bt", shuffle_buffer=8, seed=seed)
        read = [int(number) for number in numbers(rows(loader), tokenizer)]
        return [[number - 80 for number in read[:8]], [number - 88 for number in read[8:16]]]

    orders = [*blocks(0), *blocks(1)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_of_the_files_is_shuffled(fineweb: Path, tokenizer: HuggingFaceTokenizer) -> None:
    firsts = {
        int(numbers(rows(build(tokenizer, fineweb, shuffle_buffer=1, seed=seed)), tokenizer)[0])
        for seed in range(8)
    }
    assert len(firsts) > 1
    assert firsts <= {0, 15, 30, 45}


def test_the_next_pass_is_in_another_order(fineweb: Path, tokenizer: HuggingFaceTokenizer) -> None:
    stream = iter(build(tokenizer, fineweb, shuffle_buffer=8, infinite=True))
    once = len(stream_of(FULL, tokenizer))
    passes = [numbers(rows(islice(stream, once)), tokenizer) for _ in range(2)]
    assert passes[0] != passes[1]
    assert len(set(passes[0]) & set(passes[1])) >= len(FULL) - 4


@pytest.mark.parametrize("ranks", [2, 3])  # 4 files: by file, and document by document
def test_ranks_read_different_documents(
    fineweb: Path, tokenizer: HuggingFaceTokenizer, ranks: int
) -> None:
    shares = [
        numbers(
            rows(build(tokenizer, fineweb, rank=rank, ranks=ranks, shuffle_buffer=8)), tokenizer
        )
        for rank in range(ranks)
    ]
    every = [number for share in shares for number in share]
    assert len(every) == len(set(every)) >= len(FULL) - 2 * ranks


@pytest.mark.parametrize("shuffle_buffer", [0, 8])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("passes", [0.1, 0.6, 1.3])
def test_a_resumed_stream_is_the_uninterrupted_one(
    fineweb: Path, tokenizer: HuggingFaceTokenizer, shuffle_buffer: int, ranks: int, passes: float
) -> None:
    def loader() -> TextDataLoader:
        return build(
            tokenizer, fineweb, infinite=True, shuffle_buffer=shuffle_buffer, rank=1, ranks=ranks
        )

    once = len(stream_of(FULL, tokenizer)) // ranks
    taken = int(passes * once)
    whole = rows(islice(loader(), taken + once))
    first = loader()
    assert rows(islice(first, taken)) == whole[:taken]
    resumed = loader()
    resumed.load_state_dict(first.state_dict())
    assert rows(islice(resumed, once)) == whole[taken:]


def test_another_number_of_ranks_is_refused(fineweb: Path, tokenizer: HuggingFaceTokenizer) -> None:
    state = build(tokenizer, fineweb, ranks=2).state_dict()
    with pytest.raises(DataError, match="split between 2 data-parallel ranks, now there are 4"):
        build(tokenizer, fineweb, ranks=4).load_state_dict(state)


def test_a_missing_local_copy_is_refused(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--dataset-path .*missing: no such folder"):
        build(tokenizer, tmp_path / "missing")


def test_a_local_copy_of_another_layout_is_refused(
    tokenizer: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    write_parquet(tmp_path / "a.parquet", FULL)
    with pytest.raises(DataError, match=r"README\.md included") as caught:
        build(tokenizer, tmp_path, dataset="fineweb-edu-10bt")
    assert "\n" not in str(caught.value)


def test_a_local_copy_without_text_is_refused(
    tokenizer: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    (tmp_path / "README.md").write_text(FINEWEB_CARD)
    write_parquet(tmp_path / "data/x/0.parquet", FULL, field="body")
    with pytest.raises(DataError, match=r'--dataset fineweb-edu: no field "text"'):
        next(iter(build(tokenizer, tmp_path)))


def test_the_probe_reads_only_the_documents_that_it_needs(
    tokenizer: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def documents() -> Iterator[dict[str, str]]:
        for index, text in enumerate(DOCUMENTS):
            read.append(index)
            yield {"text": text}

    entry = replace(
        DATASETS["fineweb-edu"], loader=lambda path: IterableDataset.from_generator(documents)
    )
    monkeypatch.setitem(DATASETS, "fineweb-edu", entry)
    config = TextDataLoader.Config(dataset="fineweb-edu", seed=3, num_workers=2)
    inputs, _ = draw_probe(config, tokenizer, seq_len=SEQ_LEN, sequences=4)
    assert inputs["input"].tolist() == stream_of(DOCUMENTS, tokenizer)[:4]
    lengths = [len(tokenizer.encode(text, add_bos=True)) for text in DOCUMENTS]
    needed = next(n for n in range(100) if sum(lengths[:n]) >= 4 * SEQ_LEN)
    assert len(read) == needed


def test_the_probe_is_the_same_for_every_seed_and_shuffle(
    fineweb: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    def probe(**options: int) -> list[list[int]]:
        config = TextDataLoader.Config(dataset="fineweb-edu", dataset_path=str(fineweb), **options)
        inputs, _ = draw_probe(config, tokenizer, seq_len=SEQ_LEN, sequences=4)
        return inputs["input"].tolist()

    assert probe() == probe(seed=5) == probe(shuffle_buffer=0)


def test_workers_with_files_of_different_lengths_resume_exactly(
    tmp_path: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    """One worker is in its next epochs while the other is in its first."""
    (tmp_path / "README.md").write_text(FINEWEB_CARD)
    for shard, documents in enumerate((FULL[:3], FULL[3:])):
        write_parquet(tmp_path / f"data/CC-MAIN-2013/{shard}.parquet", documents)

    def loader() -> TextDataLoader:
        options: Any = {"infinite": True, "shuffle_buffer": 8, "num_workers": 2}
        return build(tokenizer, tmp_path, **options)

    whole = rows(islice(loader(), 120))
    begun, rest = loader(), loader()
    first = rows(islice(begun, 61))
    rest.load_state_dict(begun.state_dict())
    assert first + rows(islice(rest, 59)) == whole


def test_fresh_text_of_a_stream_continues_from_a_saved_position(
    fineweb: Path, tokenizer: HuggingFaceTokenizer
) -> None:
    config = TextDataLoader.Config(dataset="fineweb-edu", dataset_path=str(fineweb), seed=3)

    def text() -> FreshText:
        return FreshText(config, tokenizer, seq_len=SEQ_LEN, sequences=2)

    def draw(text: FreshText, number: int) -> list[Any]:
        return [text.draw()[0]["input"].tolist() for _ in range(number)]

    whole, first, rest = text(), text(), text()
    expected = draw(whole, 5)
    assert len({str(probe) for probe in expected}) == 5
    begun = draw(first, 2)
    rest.load_state_dict(first.state_dict())
    assert begun + draw(rest, 3) == expected


UNREACHABLE = """
from train.data.loader import TextDataLoader
TextDataLoader.Config(dataset="fineweb-edu").build(
    dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=8, local_batch_size=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}]
)
def test_an_unreachable_hub_is_one_line_with_the_ways_out(
    tmp_path: Path, network: dict[str, str]
) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", UNREACHABLE],
        env=os.environ | {"PYTHONPATH": str(root), "HF_HOME": str(tmp_path)} | network,
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("train.data.cache.DataError: --dataset fineweb-edu cannot")
    assert "pass --dataset embedded" in last
