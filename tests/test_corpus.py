"""The embedded corpus, the token store, and the cache that both are made in."""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from text_cases import documents, small_encoder
from tokenizers import Tokenizer
from torchtitan.components.tokenizer import HuggingFaceTokenizer

from train.data.cache import DataError
from train.data.corpus import (
    Document,
    EmbeddedCorpus,
    prepare_corpus,
    prepare_embedded,
    read_documents,
    source_files,
    split_documents,
    train_tokenizer,
)
from train.data.loader import TextDataLoader
from train.data.store import TokenStore
from train.model.scales import VOCAB_SIZE

ROOT = Path(__file__).parents[1]


@pytest.fixture
def embedded(corpus_cache: Path) -> EmbeddedCorpus:
    return prepare_embedded(corpus_cache)


def documents_of(store: TokenStore) -> list[np.ndarray]:
    """The tokens of each document of a store, cut at BOS."""
    starts = np.flatnonzero(store.tokens == store.meta.bos)
    return [piece[1:] for piece in np.split(np.asarray(store.tokens), starts[1:])]


def texts_of(store: TokenStore, tokenizer: Path) -> list[str]:
    """The documents of a store, read back by decoding."""
    decoder = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    return decoder.decode_batch([piece.tolist() for piece in documents_of(store)])


def test_no_text_is_in_both_splits_of_the_embedded_corpus(embedded: EmbeddedCorpus) -> None:
    # Equal texts have equal tokens.
    train = {tokens.tobytes() for tokens in documents_of(embedded.train)}
    assert len(train) == embedded.train.meta.documents
    assert train.isdisjoint(tokens.tobytes() for tokens in documents_of(embedded.validation))


def test_every_embedded_document_is_a_whole_source_file(embedded: EmbeddedCorpus) -> None:
    root = Path(sysconfig.get_path("stdlib"))
    sources = {path.read_bytes() for path in source_files(root)}
    for text in texts_of(embedded.validation, embedded.tokenizer):
        assert text.encode() in sources


def test_about_one_file_in_twenty_is_held_out(embedded: EmbeddedCorpus) -> None:
    held_out = embedded.validation.meta.documents
    assert 0.02 < held_out / (held_out + embedded.train.meta.documents) < 0.08


def test_installed_packages_and_test_suites_are_not_in_the_corpus(tmp_path: Path) -> None:
    for name in ["a.py", "site-packages/b.py", "json/test/c.py", "json/d.py", "e.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [path.relative_to(tmp_path).as_posix() for path in source_files(tmp_path)]
    assert names == ["a.py", "json/d.py"]


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("add_eos", [False, True])
def test_torchtitan_loads_the_tokenizer_and_adds_bos_and_eos_once(
    embedded: EmbeddedCorpus, add_bos: bool, add_eos: bool
) -> None:
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(embedded.tokenizer))
    plain = tokenizer.encode("for i in range(3): print(i)", add_bos=False, add_eos=False)
    ids = tokenizer.encode("for i in range(3): print(i)", add_bos=add_bos, add_eos=add_eos)
    assert ids == [tokenizer.bos_id] * add_bos + plain + [tokenizer.eos_id] * add_eos
    assert not {tokenizer.bos_id, tokenizer.eos_id}.intersection(plain)


def test_the_embedded_tokenizer_has_exactly_4096_tokens(embedded: EmbeddedCorpus) -> None:
    vocabulary = json.loads((embedded.tokenizer / "tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(VOCAB_SIZE)) == list(range(4096))


def test_the_dataloader_reads_the_embedded_corpus_by_default(
    embedded: EmbeddedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(embedded.folder.parent))
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(embedded.tokenizer))
    config = TextDataLoader.Config(split="validation", infinite=False)
    loader = config.build(
        dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=128, local_batch_size=1
    )
    read = np.concatenate([inputs["input"][0] for inputs, _ in loader])
    assert read.tolist() == embedded.validation.tokens[: len(read)].tolist()
    assert len(embedded.validation.tokens) - len(read) < 128


def test_the_embedded_corpus_refuses_another_tokenizer(
    embedded: EmbeddedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", str(embedded.folder.parent))
    small_encoder(tmp_path / "other")
    tokenizer = HuggingFaceTokenizer(tokenizer_path=str(tmp_path / "other"))
    with pytest.raises(DataError, match=re.escape(f"--tokenizer {embedded.tokenizer}")):
        TextDataLoader.Config().build(
            dp_world_size=1, dp_rank=0, tokenizer=tokenizer, seq_len=128, local_batch_size=1
        )


def test_a_file_stays_on_its_side_when_others_come_and_go() -> None:
    some = [document.name for document in split_documents(documents(100)[10:])[1]]
    more = [document.name for document in split_documents(documents(100))[1]]
    assert some == [name for name in more if int(name.removesuffix(".py")) >= 10]


def test_the_order_of_the_files_does_not_matter() -> None:
    assert split_documents(documents()[::-1]) == split_documents(documents())


def test_a_copy_of_a_held_out_file_is_not_trained_on() -> None:
    held_out = split_documents(documents())[1]
    copies = [replace(document, name=f"copy of {document.name}") for document in held_out]
    train, validation = split_documents([*documents(), *copies])
    assert {document.text for document in train}.isdisjoint(held.text for held in validation)
    assert len(train) + len(validation) == len(documents())


def test_a_corpus_without_held_out_files_is_refused() -> None:
    with pytest.raises(DataError, match="0 held-out files"):
        split_documents(split_documents(documents())[0])


def test_files_that_are_not_utf8_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "good.py").write_text("a = 'é'", encoding="utf-8")
    (tmp_path / "bad.py").write_text("a = 'é'", encoding="latin-1")
    with caplog.at_level(logging.INFO):
        read = read_documents(tmp_path, source_files(tmp_path))
    assert read == [Document("good.py", "a = 'é'")]
    assert "1 files that are not UTF-8" in caplog.text


def test_a_tokenizer_is_refused_when_the_text_is_too_short(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="of 300 tokens"):
        train_tokenizer(["ab ab"], tmp_path / "tokenizer", vocab_size=300)


PREPARE = """
import logging, sys
from pathlib import Path
from text_cases import documents
from train.data.corpus import prepare_corpus
logging.basicConfig(level=logging.INFO)
print("ready", flush=True)
sys.stdin.readline()
print(prepare_corpus(documents(2000), Path(sys.argv[1]), vocab_size=350).train.meta.sha256)
"""


def start_preparing(cache: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(cache)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_processes_that_start_at_once_prepare_one_identical_corpus(tmp_path: Path) -> None:
    processes = [start_preparing(tmp_path / "together") for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    replies = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    digests = {stdout for stdout, _ in replies}
    assert len(digests) == 1
    assert sum(stderr.count("embedded train: ") for _, stderr in replies) == 1
    prepare_corpus(documents(2000), tmp_path / "alone", vocab_size=350)
    assert contents(tmp_path / "together") == contents(tmp_path / "alone")


DAMAGES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("train/tokens.bin", lambda content: bytes([content[0] ^ 1]) + content[1:]),
    ("validation/tokens.bin", lambda content: content[:-2]),
    ("train/meta.json", lambda content: content.replace(b'"bos": 0', b'"bos": 2')),
    ("train/meta.json", lambda content: content.replace(b"<u2", b"<u3")),
    ("validation/meta.json", lambda content: b""),
    ("tokenizer/tokenizer.json", lambda content: content[: len(content) // 2]),
    ("tokenizer/tokenizer.json", lambda content: content.replace(b": false", b": true", 1)),
    ("tokenizer/tokenizer_config.json", lambda content: content.replace(b"eos", b"sos")),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_a_damaged_corpus_is_prepared_again_and_says_so_once(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    damage: Callable[[bytes], bytes],
) -> None:
    first = prepare_corpus(documents(100), tmp_path, vocab_size=300)
    intact = contents(first.folder)
    assert damage(intact[name]) != intact[name]
    (first.folder / name).write_bytes(damage(intact[name]))
    with caplog.at_level(logging.WARNING):
        prepare_corpus(documents(100), tmp_path, vocab_size=300)
    assert contents(first.folder) == intact
    [record] = caplog.records
    assert str(first.folder) in record.getMessage()
    assert "deleted and prepared again" in record.getMessage()


def test_a_missing_file_of_the_corpus_is_prepared_again(tmp_path: Path) -> None:
    first = prepare_corpus(documents(100), tmp_path, vocab_size=300)
    intact = contents(first.folder)
    shutil.rmtree(first.folder / "validation")
    prepare_corpus(documents(100), tmp_path, vocab_size=300)
    assert contents(first.folder) == intact


def test_other_sources_are_prepared_apart(tmp_path: Path) -> None:
    first = prepare_corpus(documents(100), tmp_path, vocab_size=300)
    second = prepare_corpus(documents(99), tmp_path, vocab_size=300)
    assert first.folder != second.folder
