"""A token store that is written over hours, and goes on after a kill where it stopped.

Beside ``tokens.bin.partial`` lies ``journal.jsonl``. Its first line says what is being written;
each further line stands for a chunk that is on the disk: its tokens, checksum, and the position in
the texts after it. A chunk's bytes are flushed before its line is, so that whatever follows the
last whole line can be cut off and is written again: no document is lost, none is there twice. The
finished store is byte for byte that of a run that was never stopped.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from train.data.cache import DataError
from train.data.store import META_FILE, TOKENS_FILE, DocumentEncoder, StoreMeta
from train.run.files import parse_record, write_whole

logger = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
PARTIAL = f"{TOKENS_FILE}.partial"


class StoreWriter:
    """The store of one split, at ``folder``, which is made if missing.

    Args:
        encoder: what the documents were encoded with.
        plan: what is being written, as plain values; a writer of another plan is refused.

    Attributes:
        tokens, documents, empty: written so far; ``empty`` documents were left out.
        position: in the texts, after the last document; None at their beginning.
        finished: the store is complete.

    Raises:
        DataError: the folder holds a store of another plan; the message names what differs.
    """

    def __init__(self, folder: Path, encoder: DocumentEncoder, plan: Mapping[str, Any]) -> None:
        self.folder = folder
        self._encoder = encoder
        self._plan = {**plan, "encoder": encoder.digest}
        self._itemsize = np.dtype(encoder.dtype).itemsize
        self._checksum = hashlib.sha256()
        self.tokens = self.documents = self.empty = 0
        self.position: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        self.finished = self._is_finished()
        if not self.finished:
            self._tokens_file = self._resume()

    def append(self, documents: Sequence[np.ndarray], *, empty: int, position: Any) -> None:
        """Add a chunk of encoded documents; on return it is on the disk.

        Args:
            empty: documents among them that had no text.
            position: in the texts after them, a plain value.
        """
        data = b"".join(tokens.tobytes() for tokens in documents)
        self._tokens_file.write(data)
        _to_disk(self._tokens_file)
        line = {
            "tokens": len(data) // self._itemsize,
            "documents": len(documents),
            "empty": empty,
            "sha256": hashlib.sha256(data).hexdigest(),
            "position": position,
        }
        with (self.folder / JOURNAL).open("ab") as journal:
            journal.write(json.dumps(line).encode() + b"\n")
            _to_disk(journal)
        self._count(line, data)

    def finish(self) -> None:
        """Make the store usable.

        Raises:
            DataError: it holds no document.
        """
        if not self.documents:
            raise DataError(f"{self.folder}: no document with text in it: prepare other data")
        self._tokens_file.close()
        os.replace(self.folder / PARTIAL, self.folder / TOKENS_FILE)
        meta = StoreMeta(
            dtype=self._encoder.dtype,
            count=self.tokens,
            documents=self.documents,
            empty=self.empty,
            bos=self._encoder.bos,
            eos=self._encoder.eos,
            encoder=self._encoder.digest,
            source=_canonical(self._plan),
            sha256=self._checksum.hexdigest(),
        )
        write_whole(self.folder / META_FILE, json.dumps(asdict(meta), indent=1) + "\n")
        (self.folder / JOURNAL).unlink()
        self.finished = True

    def close(self) -> None:
        """Stop here; a writer of the same plan goes on."""
        if not self.finished:
            self._tokens_file.close()

    def _is_finished(self) -> bool:
        file = self.folder / META_FILE
        if not file.exists():
            return False
        meta = parse_record(file.read_bytes()) or {}
        self._check_plan(parse_record(str(meta.get("source", "")).encode()) or {})
        self.tokens, self.documents = int(meta["count"]), int(meta["documents"])
        self.empty = int(meta["empty"])
        (self.folder / JOURNAL).unlink(missing_ok=True)  # of a kill at the very end
        return True

    def _resume(self) -> BinaryIO:
        """Read the journal, check the chunks that it lists, and cut off all else."""
        partial, journal = self.folder / PARTIAL, self.folder / JOURNAL
        if (self.folder / TOKENS_FILE).exists():  # killed between finish's two steps
            os.replace(self.folder / TOKENS_FILE, partial)
        # What follows the last newline is the line of a writer that was killed.
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.exists() else []
        if lines:
            self._check_plan(parse_record(lines[0]) or {})
        partial.touch()
        file = partial.open("r+b")
        kept = [_canonical(self._plan).encode()]
        for line in tqdm(lines[1:], f"Checking {partial}", unit=" chunks", delay=2):
            chunk = parse_record(line) or {}
            data = file.read(int(chunk.get("tokens", 0)) * self._itemsize)
            if hashlib.sha256(data).hexdigest() != chunk.get("sha256"):
                break
            kept.append(line)
            self._count(chunk, data)
        if damaged := len(lines[1:]) - len(kept[1:]):
            logger.warning(
                "%s: truncated or corrupt after %d tokens: the last %d chunks are made again",
                *(partial, self.tokens, damaged),
            )
        # The file first: a journal never lists what is not there.
        write_whole(journal, b"".join(line + b"\n" for line in kept).decode())
        file.seek(self.tokens * self._itemsize)
        file.truncate()
        return file

    def _check_plan(self, there: Mapping[str, Any]) -> None:
        here = json.loads(_canonical(self._plan))
        if there == here:
            return
        keys = sorted(key for key in here.keys() | there.keys() if there.get(key) != here.get(key))
        raise DataError(
            f"{self.folder} was prepared with another {', '.join(keys)}: pass the same flags to go "
            "on, or choose another --to"
        )

    def _count(self, chunk: Mapping[str, Any], data: bytes) -> None:
        self._checksum.update(data)
        self.tokens += chunk["tokens"]
        self.documents += chunk["documents"]
        self.empty += chunk["empty"]
        self.position = chunk["position"]


def _to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _canonical(plan: Mapping[str, Any]) -> str:
    return json.dumps(plan, sort_keys=True)
