"""A tokenized split on disk: one flat, memory-mapped array, checked whenever it is opened.

The array is the *inputs* of all documents, one after the other: each is ``[BOS, t1, ..., tn]``. EOS
is not stored, because it only ever is a label: the label of position ``i`` is ``tokens[i + 1]``,
or EOS where that is a BOS or the array ends. This is the shift within a document of torchtitan's
``hf_datasets/text_datasets.py``, so no label crosses into the next document.

A store is a folder: ``tokens.bin`` (little-endian uint16, or uint32 for vocabularies over 65,536)
and ``meta.json``, written last. `train.data.cache.build_once` makes it whole or not at all.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from train.data.cache import DataError
from train.progress import progress

TOKENS_FILE = "tokens.bin"
META_FILE = "meta.json"
PREPARED = "prepared.json"
"""Stands in the folder from the start of its preparation on."""
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class DocumentEncoder:
    """Text to the inputs of one document, ``[BOS, t1, ..., tn]``.

    The literal text of a special token is encoded as ordinary text, so BOS stands at document
    starts and nowhere else.
    """

    tokenizer: Tokenizer
    bos: int
    eos: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides the token ids."""
        identity = f"{self.tokenizer.to_str()}\nbos={self.bos} eos={self.eos}"
        return hashlib.sha256(identity.encode()).hexdigest()

    @property
    def dtype(self) -> str:
        """The narrowest of the two on-disk types that holds every id."""
        return "<u2" if self.tokenizer.get_vocab_size() <= 2**16 else "<u4"

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """One array of `dtype` a text, shape ``(1 + n,)``."""
        encodings = self._plain.encode_batch_fast(texts, add_special_tokens=False)
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
    def open(cls, folder: Path) -> "TokenStore":
        """Map a store, after checking its size, and on the first rank of a node its SHA-256 (once
        for a file unchanged).

        Raises:
            DataError: it is missing, truncated, or not what was written.
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
        return cls(folder, meta, np.memmap(path, dtype=meta.dtype, mode="r"))


def read_meta(folder: Path) -> StoreMeta:
    """What a store says of itself.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        return StoreMeta(**json.loads((folder / META_FILE).read_bytes()))
    except (OSError, TypeError, ValueError) as error:
        raise _damaged(folder, f"unreadable ({type(error).__name__})") from error


def is_prepared(path: Path) -> bool:
    """Whether ``path`` is a folder that was prepared, or is being prepared."""
    return (path / PREPARED).is_file()


def open_prepared(path: Path, split: str, encoder: DocumentEncoder) -> TokenStore:
    """The store of one split.

    Raises:
        DataError: its preparation was not finished, it is damaged, or of another tokenizer.
    """
    again = "run the same `python -m train.prepare` again"
    folder = path / split
    if not (folder / "meta.json").is_file():
        raise DataError(f"--dataloader.dataset_path {path}: {split} is not finished: {again}")
    try:
        store = TokenStore.open(folder)
    except DataError as error:
        what = str(error).partition(": delete it")[0]
        raise DataError(f"{what}: delete that folder, and {again}") from error
    if store.meta.encoder != encoder.digest:
        raise DataError(
            f"--dataloader.dataset_path {path} was prepared with another tokenizer: "
            f"pass --hf_assets_path {path / TOKENIZER}"
        )
    return store


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


def _damaged(folder: Path, how: str) -> DataError:
    return DataError(
        f"the token store {folder} is {how}: delete it, it is rebuilt on the next start"
    )
