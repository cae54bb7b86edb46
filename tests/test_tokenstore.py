"""The token store, and the cache that prepared data is made in."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from text_cases import VOCAB_SIZE, small_encoder, texts
from tokenizers import Tokenizer

from train.data.cache import DataError, build_once, cache_root
from train.data.store import DocumentEncoder, TokenStore
from train.data.writer import write_store


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> DocumentEncoder:
    return small_encoder(tmp_path_factory.mktemp("tiny") / "tokenizer")


def test_a_store_holds_bos_and_the_tokens_of_each_document(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    write_store(tmp_path, texts(5), encoder, source="here", label="five")
    expected = [i for text in texts(5) for i in [0, *encoder.tokenizer.encode(text).ids]]
    store = TokenStore.open(tmp_path)
    assert store.tokens.tolist() == expected
    assert (store.meta.documents, store.meta.count) == (5, len(expected))


def test_special_tokens_in_the_text_stay_text(tmp_path: Path, encoder: DocumentEncoder) -> None:
    text = "abc <|begin_of_text|> def <|end_of_text|>"
    write_store(tmp_path, [text], encoder, source="", label="one")
    tokens = TokenStore.open(tmp_path).tokens.tolist()
    assert (tokens.count(encoder.bos), tokens.count(encoder.eos)) == (1, 0)
    assert encoder.tokenizer.decode(tokens[1:]) == text


def test_empty_documents_are_left_out_and_counted(tmp_path: Path, encoder: DocumentEncoder) -> None:
    write_store(tmp_path, ["", "abc", ""], encoder, source="", label="one")
    meta = TokenStore.open(tmp_path).meta
    assert (meta.documents, meta.empty) == (1, 2)


def test_a_store_without_documents_is_refused(tmp_path: Path, encoder: DocumentEncoder) -> None:
    with pytest.raises(DataError, match="no document"):
        write_store(tmp_path, [""], encoder, source="", label="none")


def test_a_vocabulary_over_65536_is_stored_in_32_bits(encoder: DocumentEncoder) -> None:
    large = Tokenizer.from_str(encoder.tokenizer.to_str())
    large.add_tokens([f"token{i}" for i in range(2**16)])
    [tokens] = replace(encoder, tokenizer=large).encode(["token65535"])
    assert tokens.dtype == np.uint32
    assert tokens.tolist() == [0, VOCAB_SIZE + 65535]


def with_a_gap(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with its last token renumbered, beyond the size."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.get)] = 70_000
    return Tokenizer.from_str(json.dumps(content))


def test_a_token_beyond_the_tokenizers_size_is_refused_with_its_document(
    tmp_path: Path, encoder: DocumentEncoder
) -> None:
    gap = replace(encoder, tokenizer=with_a_gap(encoder.tokenizer))
    bad = encoder.tokenizer.decode([VOCAB_SIZE - 1])
    with pytest.raises(DataError, match=rf"^my data: the document that begins '{bad}' has token 7"):
        write_store(tmp_path, ["abc", bad], gap, source="", label="my data")


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "tokens.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "tokens.bin").write_bytes(data)


def cut_the_end(folder: Path) -> None:
    data = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(data[:-2])


@pytest.mark.parametrize(
    ("damage", "how"),
    [
        (flip_a_bit, "corrupt"),
        (cut_the_end, "truncated"),
        (lambda folder: (folder / "meta.json").unlink(), "unreadable"),
        (lambda folder: (folder / "meta.json").write_text("{}"), "unreadable"),
    ],
)
def test_a_damaged_store_is_refused(
    tmp_path: Path, encoder: DocumentEncoder, damage: Callable[[Path], object], how: str
) -> None:
    write_store(tmp_path, ["abc def"], encoder, source="", label="one")
    TokenStore.open(tmp_path)
    damage(tmp_path)
    with pytest.raises(DataError, match=rf"{re.escape(str(tmp_path))} is {how}.*: delete it"):
        TokenStore.open(tmp_path)


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def fail(partial: Path) -> None:
        (partial / "half").write_text("written")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        build_once(tmp_path / "data", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["data.lock"]


def test_what_a_killed_preparation_left_is_not_in_the_next(tmp_path: Path) -> None:
    (tmp_path / "data.partial").mkdir()
    (tmp_path / "data.partial" / "half").write_text("written")
    build_once(tmp_path / "data", lambda partial: None)
    assert list((tmp_path / "data").iterdir()) == []


def test_a_cache_that_cannot_be_written_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DataError, match="set MAXP_CACHE"):
        build_once(tmp_path / "file" / "data", lambda partial: None)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"MAXP_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/maxp"),
        ({"HOME": "/home/someone"}, "/home/someone/.cache/maxp"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    monkeypatch.delenv("MAXP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_root() == Path(expected)


def test_one_rank_of_a_node_checks_the_content_and_all_the_size(
    tmp_path: Path, encoder: DocumentEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    write_store(folder, texts(5), encoder, source="here", label="five")
    file = folder / "tokens.bin"
    content = file.read_bytes()
    monkeypatch.setenv("LOCAL_RANK", "1")
    file.write_bytes(bytes(len(content)))
    TokenStore.open(folder)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(DataError, match="corrupt"):
        TokenStore.open(folder)
    monkeypatch.setenv("LOCAL_RANK", "1")
    file.write_bytes(content[:-2])
    with pytest.raises(DataError, match="truncated"):
        TokenStore.open(folder)
