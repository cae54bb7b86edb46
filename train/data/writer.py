"""Writes token stores, in one go or over hours: after a kill, writing continues where it stopped.

While a store is written, ``progress.json`` next to ``tokens.bin`` records how many tokens are on
the disk, their checksum, and the position in the texts after them. The tokens are flushed before it
is replaced, so after a kill, anything that follows them can be cut off and written again. The
finished store is byte for byte the one that an uninterrupted process writes.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.data.cache import DataError
from train.data.store import (
    META_FILE,
    TOKENS_FILE,
    DocumentEncoder,
    StoreMeta,
    file_checksum,
    read_meta,
)
from train.progress import progress
from train.run.files import parse_record, write_whole

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"
# Text that is tokenized at once: bounds the memory, feeds the tokenizer's threads, and is what a
# kill can cost.
_BATCH_CHARACTERS = 4_000_000


class Text(Protocol):
    """The documents of one split, in an order that never changes.

    Attributes:
        plan: what it reads, as plain values; another plan gives other documents.
    """

    plan: dict[str, Any]

    def start(self, position: Any) -> None:
        """Go to a position; None is the beginning."""

    def __iter__(self) -> Iterator[str]: ...

    def position(self) -> Any:
        """The position after the last document that was yielded, as a plain value."""


class CountedText:
    """Texts that are quick to read again: the position is the number of texts yielded."""

    def __init__(self, plan: dict[str, Any], texts: Callable[[], Iterable[str]]) -> None:
        self.plan = plan
        self._texts = texts
        self._taken = 0

    def start(self, position: Any) -> None:
        self._taken = position or 0

    def __iter__(self) -> Iterator[str]:
        for text in islice(self._texts(), self._taken, None):
            self._taken += 1
            yield text

    def position(self) -> int:
        return self._taken


class StoreWriter:
    """Writes one token store, or continues one that was begun with the same plan.

    Args:
        folder: made if missing.
        plan: what is written, as plain values.

    Attributes:
        meta: what is written so far.
        position: in the texts, after the last document; None at their beginning.
        finished: whether the store is complete.

    Raises:
        DataError: the folder holds a store of another plan, or one begun by an earlier version.
    """

    def __init__(self, folder: Path, encoder: DocumentEncoder, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self.position: Any = None
        self._encoder = encoder
        self._checksum = hashlib.sha256()
        self.meta = StoreMeta(
            dtype=encoder.dtype,
            bos=encoder.bos,
            eos=encoder.eos,
            encoder=encoder.digest,
            source=json.dumps({**plan, "encoder": encoder.digest}, sort_keys=True),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = (folder / META_FILE).exists()
        if self.finished:
            meta = read_meta(folder)
            self._check_plan(meta)
            self.meta = meta
            (folder / PROGRESS_FILE).unlink(missing_ok=True)  # left by a kill at the very end
        elif (folder / "journal.jsonl").exists():
            raise DataError(
                f"{folder} was begun by an earlier version and cannot be continued: delete that "
                "folder, and run the same command again"
            )
        elif (folder / PROGRESS_FILE).exists():
            record = json.loads((folder / PROGRESS_FILE).read_bytes())
            self._continue(StoreMeta(**record["meta"]), record["position"])

    def write(
        self,
        text: Text,
        *,
        max_documents: float = math.inf,
        max_tokens: float = math.inf,
        label: str | None = None,
    ) -> None:
        """Tokenize documents from `position` to a limit or the end of the text, and finish.

        Args:
            max_documents: stop after this many documents; empty ones do not count.
            max_tokens: stop after the document in which this many tokens are reached.
            label: names the progress bar; by default the folder.

        Raises:
            DataError: the text cannot be read or tokenized, or holds no document.
        """
        if self.finished:
            return

        def full(documents: int, tokens: int) -> bool:
            return documents >= max_documents or tokens >= max_tokens

        by_tokens = max_tokens < math.inf
        text.start(self.position)
        chunks = batches(text, _BATCH_CHARACTERS)
        with progress(
            desc=f"Tokenizing {label or self.folder}",
            unit=" tokens" if by_tokens else " documents",
            unit_scale=True,
            total=max_tokens if by_tokens else max_documents,
            initial=self.meta.count if by_tokens else self.meta.documents,
            delay=1,
        ) as bar:
            while not full(self.meta.documents, self.meta.count) and (chunk := next(chunks, None)):
                kept: list[np.ndarray] = []
                tokens = self.meta.count
                try:
                    documents = self._encoder.encode([document for document in chunk if document])
                except DataError as error:
                    raise DataError(f"{label or self.folder}: {error}") from None
                for encoded in documents:
                    if full(self.meta.documents + len(kept), tokens):
                        break
                    kept.append(encoded)
                    tokens += len(encoded)
                bar.update(tokens - self.meta.count if by_tokens else len(kept))
                self.append(kept, empty=chunk.count(""), position=text.position())
        if not self.meta.documents:
            raise DataError(
                f"{label or self.folder}: no document with text in it: pass other data by "
                "--dataset-path"
            )
        write_whole(self.folder / META_FILE, json.dumps(asdict(self.meta), indent=1) + "\n")
        (self.folder / PROGRESS_FILE).unlink()
        self.finished = True

    def append(self, documents: Sequence[np.ndarray], *, empty: int, position: Any) -> None:
        """Add encoded documents; on return they are on the disk.

        Args:
            empty: documents among them that had no text.
            position: in the texts after them, a plain value.
        """
        data = b"".join(tokens.tobytes() for tokens in documents)
        with (self.folder / TOKENS_FILE).open("ab") as file:
            file.truncate(self.meta.size)  # a killed process may have written more
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        self._checksum.update(data)
        self.position = position
        self.meta = replace(
            self.meta,
            count=self.meta.count + sum(map(len, documents)),
            documents=self.meta.documents + len(documents),
            empty=self.meta.empty + empty,
            sha256=self._checksum.hexdigest(),
        )
        record = {"meta": asdict(self.meta), "position": position}
        write_whole(self.folder / PROGRESS_FILE, json.dumps(record) + "\n")

    def _check_plan(self, meta: StoreMeta) -> None:
        there, here = (parse_record(m.source.encode()) or {} for m in (meta, self.meta))
        keys = {key for key in here.keys() | there.keys() if there.get(key) != here.get(key)}
        if keys:
            raise DataError(
                f"{self.folder} was prepared with another {', '.join(sorted(keys))}: pass the same "
                "flags to continue, or choose another --to"
            )

    def _continue(self, meta: StoreMeta, position: Any) -> None:
        """Keep the recorded tokens if they are intact; cut off what follows them."""
        self._check_plan(meta)
        path = self.folder / TOKENS_FILE
        path.touch()
        os.truncate(path, meta.size)
        checksum = file_checksum(path)
        if checksum.hexdigest() == meta.sha256:
            self.meta, self.position, self._checksum = meta, position, checksum
        else:
            logger.warning("%s is truncated or corrupt: writing it again from the start", path)


def write_store(
    folder: Path, texts: Iterable[str], encoder: DocumentEncoder, *, source: str, label: str
) -> None:
    """Tokenize ``texts``, one document each, into a store at ``folder``, which is made if missing.

    Empty documents are left out, counted and logged.

    Args:
        source: identifies where the texts came from.
        label: names the progress bar and the log line.

    Raises:
        DataError: no document is left.
    """
    writer = StoreWriter(folder, encoder, {"source": source})
    writer.write(CountedText({}, lambda: texts), label=label)
    logger.info("%s: %s", label, writer.meta)


def batches(texts: Iterable[str], characters_each: int) -> Iterator[list[str]]:
    """Lists of consecutive texts, each of at least ``characters_each`` characters but the last."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if characters >= characters_each:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
