"""A tokenized split on disk: one flat, memory-mapped array, checked when it is opened.

The array holds the *inputs* of all documents, ``[BOS, t1, ..., tn]`` for each. EOS is not stored,
because it is only ever a label: the label at position ``i`` is ``tokens[i + 1]``, or EOS where that
is a BOS or the array ends. So no label crosses into the next document, as in torchtitan's
``hf_datasets/text_datasets.py``.

A store is a folder: ``tokens.bin`` (little-endian uint16, or uint32 for vocabularies over 65,536)
and ``meta.json``, which is written last. `train.data.writer` writes it.

``python -m train.prepare`` writes a folder with the stores of both splits and their tokenizer.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from train.data.cache import DamagedError, DataError
from train.progress import progress

TOKENS_FILE = "tokens.bin"
META_FILE = "meta.json"
PREPARED = "prepared.json"
"""Marks a folder of `train.prepare`, from its first file on."""
TOKENIZER = "tokenizer"

_PREPARE_AGAIN = "run the same `python -m train.prepare` again"


@dataclass(frozen=True)
class DocumentEncoder:
    """Encodes a text as the inputs of one document, ``[BOS, t1, ..., tn]``.

    The literal text of a special token is encoded as ordinary text, so BOS appears only at the
    start of a document.
    """

    tokenizer: Tokenizer
    bos: int
    eos: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that determines the token ids."""
        identity = f"{self.tokenizer.to_str()}\nbos={self.bos} eos={self.eos}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def dtype(self) -> str:
        """The narrower of the two on-disk types that can hold every id."""
        return "<u2" if self.tokenizer.get_vocab_size() <= 2**16 else "<u4"

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """One array of type `dtype` per text, of shape ``(1 + n,)``.

        Raises:
            DataError: an id is not below the size of the tokenizer, which the model has.
        """
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
        size = self.tokenizer.get_vocab_size()
        for text, encoding in zip(texts, encodings, strict=True):
            if (largest := max(encoding.ids, default=0)) >= size:
                raise DataError(
                    f"the document that begins {text[:40]!r} has token {largest}, but the "
                    f"tokenizer has only {size} tokens: number them from 0 without gaps in its "
                    "tokenizer.json, or pass another --tokenizer"
                )
        return [np.array([self.bos, *encoding.ids], dtype=self.dtype) for encoding in encodings]

    @cached_property
    def _plain(self) -> Tokenizer:
        # A copy: the caller's tokenizer keeps its own handling of special tokens and lengths.
        plain = Tokenizer.from_str(self.tokenizer.to_str())
        plain.encode_special_tokens = True
        plain.no_truncation()
        plain.no_padding()
        return plain


@dataclass(frozen=True, kw_only=True)
class StoreMeta:
    """What ``meta.json`` holds. ``count`` is in tokens, ``empty`` in documents left out."""

    dtype: str
    count: int = 0
    documents: int = 0
    empty: int = 0
    bos: int
    eos: int
    encoder: str
    source: str
    sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes of the tokens."""
        return self.count * np.dtype(self.dtype).itemsize

    def written_by(self, encoder: DocumentEncoder) -> bool:
        """Whether the store holds what ``encoder`` gives."""
        expected = (encoder.digest, encoder.dtype, encoder.bos, encoder.eos)
        return (self.encoder, self.dtype, self.bos, self.eos) == expected

    def __str__(self) -> str:
        return (
            f"{self.count:,} tokens in {self.documents:,} documents, "
            f"{self.empty:,} empty ones left out"
        )


@dataclass(frozen=True)
class TokenStore:
    """An opened store; ``tokens`` is a read-only map of shape ``(meta.count,)``."""

    folder: Path
    meta: StoreMeta
    tokens: np.ndarray

    @classmethod
    def open(cls, folder: Path, encoder: DocumentEncoder | None = None) -> "TokenStore":
        """Map a store, after checking its size and, on the first rank of a node, its SHA-256.

        The checksum of an unchanged file is computed once per process.

        Args:
            encoder: what wrote the store, if that is known; then ``meta.json`` must agree.

        Raises:
            DamagedError: it is missing, truncated or corrupt.
        """
        path = folder / TOKENS_FILE
        meta = read_meta(folder)
        try:
            status = path.stat()
        except OSError as error:
            raise _damaged(folder, f"unreadable ({type(error).__name__})") from error
        if status.st_size != meta.size:
            raise _damaged(folder, "truncated")
        first = os.environ.get("LOCAL_RANK", "0") == "0"
        if first and _sha256(path, status.st_size, status.st_mtime_ns) != meta.sha256:
            raise _damaged(folder, "corrupt")
        if encoder is not None and not meta.written_by(encoder):
            raise _damaged(folder, "corrupt")
        return cls(folder, meta, np.memmap(path, dtype=meta.dtype, mode="r"))


def read_meta(folder: Path) -> StoreMeta:
    """The ``meta.json`` of a store.

    Raises:
        DamagedError: the file is missing or damaged.
    """
    try:
        meta = StoreMeta(**json.loads((folder / META_FILE).read_bytes()))
        if not isinstance(meta.count, int):
            raise TypeError
        np.dtype(meta.dtype)
        return meta
    except (OSError, TypeError, ValueError) as error:
        raise _damaged(folder, f"unreadable ({type(error).__name__})") from error


def is_prepared(path: Path) -> bool:
    """Whether `train.prepare` wrote the folder ``path``, or has begun to."""
    return (path / PREPARED).is_file()


def prepared_meta(path: Path, split: str) -> StoreMeta:
    """The ``meta.json`` of one split of a folder that `train.prepare` wrote.

    Raises:
        DataError: the split is not finished, or the file is damaged.
    """
    with _prepared(path, split) as folder:
        return read_meta(folder)


def open_prepared(path: Path, split: str, encoder: DocumentEncoder) -> TokenStore:
    """The store of one split of a folder that `train.prepare` wrote.

    Raises:
        DataError: it is not finished, damaged, or was made with another tokenizer.
    """
    with _prepared(path, split) as folder:
        store = TokenStore.open(folder)
    if store.meta.encoder != encoder.digest:
        raise DataError(
            f"--dataset-path {path} was prepared with another tokenizer: "
            f"pass --tokenizer {path / TOKENIZER}"
        )
    if not store.meta.written_by(encoder):
        raise DataError(
            f"{folder / META_FILE} is corrupt: delete the folder {folder}, and {_PREPARE_AGAIN}"
        )
    return store


@contextmanager
def _prepared(path: Path, split: str) -> Iterator[Path]:
    """The folder of a split. Adds the remedy to the error if it is not finished or damaged."""
    folder = path / split
    if not (folder / META_FILE).is_file():
        raise DataError(f"--dataset-path {path}: {split} is not finished: {_PREPARE_AGAIN}")
    try:
        yield folder
    except DamagedError as error:
        raise DataError(f"{error.damage}: delete that folder, and {_PREPARE_AGAIN}") from error


def file_checksum(path: Path) -> "hashlib._Hash":
    """The SHA-256 of a file, to which more can be added."""
    checksum = hashlib.sha256()
    size = path.stat().st_size
    bar = progress(desc=f"Checking {path}", total=size, unit="B", unit_scale=True, delay=2)
    with path.open("rb") as file, bar:
        while chunk := file.read(2**24):
            checksum.update(chunk)
            bar.update(len(chunk))
    return checksum


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """The file's checksum; size and time are in the key, since validation reopens its store."""
    return file_checksum(path).hexdigest()


def _damaged(folder: Path, how: str) -> DamagedError:
    return DamagedError(f"the token store {folder} is {how}")
