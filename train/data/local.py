"""Local text: a file or folder of jsonl, parquet or txt, tokenized once into the cache.

The field ``text`` of each row is a document; a ``.txt`` file is one document. Files with
"validation" in their path relative to the folder are held out. If there are none, every 50th
document is. Training documents with the text of a held-out one are left out.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from train.data.cache import DataError, cache_root, one_line, open_cached
from train.data.store import DocumentEncoder, TokenStore
from train.data.writer import write_store

logger = logging.getLogger(__name__)

Rows = Iterator[tuple[str, dict[str, object]]]
"""Rows of a file, each after its place in it, such as ``", line 3"``."""


def _json_rows(file: Path) -> Rows:
    # Bytes that are not UTF-8 become surrogates, so that the error can name their line.
    content = pa.input_stream(str(file))  # it decompresses by the suffix
    with io.TextIOWrapper(content, encoding="utf-8", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            place = f", line {number}"
            try:
                line.encode()
                row = json.loads(line)
            except UnicodeEncodeError:
                raise DataError(f"{_FLAG}: {file}{place}: not UTF-8: save it as UTF-8") from None
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{_FLAG}: {file}{place}: not JSON ({one_line(error)}): correct that line"
                ) from error
            if not isinstance(row, dict):
                raise DataError(
                    f"{_FLAG}: {file}{place}: a line holds {type(row).__name__}, not an object "
                    "with a text"
                )
            yield place, row


def _parquet_rows(file: Path) -> Rows:
    with pq.ParquetFile(file) as content:
        names = content.schema_arrow.names
        # Other columns can be large; without a text, they are named in the error.
        columns = ["text"] if "text" in names else names
        number = 0
        for batch in content.iter_batches(batch_size=1000, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f", row {number}", row


def _whole_text(file: Path) -> Rows:
    yield "", {"text": file.read_text(encoding="utf-8")}


# Reader by suffix, in the order in which files are read.
READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_rows,
    ".jsonl.gz": _json_rows,
    ".jsonl.zst": _json_rows,
    ".parquet": _parquet_rows,
    ".txt": _whole_text,
}
HELD_OUT_EVERY = 50

_FLAG = "--dataset-path"


def open_local(path: Path, split: str, encoder: DocumentEncoder) -> TokenStore:
    """The token store of one split of ``path``, tokenized on first use.

    It is built again when the tokenizer or the name, size or time of a file changes, and when it
    is damaged.

    Raises:
        DataError: the path does not exist or holds no usable file, a row has no field "text", or a
            file cannot be read.
    """
    texts, files = local_texts(path, split)
    key = hashlib.sha256(f"{path.resolve()}\n{encoder.digest}\n{files}".encode()).hexdigest()
    folder = cache_root() / f"local-{key[:16]}-{split}"

    def build(folder: Path) -> None:
        write_store(folder, texts(), encoder, source=key, label=f"{path} {split}")

    return open_cached(folder, build, lambda: TokenStore.open(folder, encoder))


def local_texts(path: Path, split: str) -> tuple[Callable[[], Iterator[str]], str]:
    """A function that reads the texts of one split, and a string that identifies all files.

    Raises:
        DataError: the path does not exist or holds no usable file.
    """
    files = find_files(path)
    read = validation_texts if split == "validation" else training_texts
    identity = ""
    for file in files:
        status = file.stat()
        identity += f"{file.relative_to(path)}\t{status.st_size}\t{status.st_mtime_ns}\n"
    return partial(read, *split_files(path, files)), identity


def find_files(path: Path) -> list[Path]:
    """The usable files under ``path`` (or ``path`` itself), sorted, without hidden ones.

    Raises:
        DataError: the path does not exist or holds no usable file.
    """
    if not path.exists():
        raise DataError(f"{_FLAG} {path}: no such file or folder")
    candidates = sorted(path.rglob("*")) if path.is_dir() else [path]
    splits: tuple[list[Path], list[Path]] = ([], [])
    for file in candidates:
        if file.is_file() and not file.name.startswith("."):
            splits[file.name.endswith(tuple(READERS))].append(file)
    others, files = splits
    if not files:
        raise DataError(f"{_FLAG} {path}: holds none of *{', *'.join(READERS)}")
    if others:
        _report_others(path, len(others), others[0])
    return files


@lru_cache  # validation asks again
def _report_others(path: Path, count: int, first: Path) -> None:
    logger.warning(
        "%s %s: %d files are not read (such as %s); only *%s are",
        *(_FLAG, path, count, first.relative_to(path), ", *".join(READERS)),
    )


def split_files(path: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Training files, and those with "validation" in their path relative to ``path``.

    Raises:
        DataError: all of them are validation files.
    """
    splits: tuple[list[Path], list[Path]] = ([], [])
    for file in files:
        splits["validation" in file.relative_to(path).as_posix()].append(file)
    if not splits[0]:
        raise DataError(
            f"{_FLAG} {path}: every file is a validation file, none is left to train on"
        )
    return splits


def held_out_texts(train: Sequence[Path], validation: Sequence[Path]) -> Iterator[str]:
    """The texts of ``validation``, or if that is empty, every 50th document of ``train``."""
    if validation:
        yield from read_texts(validation)
        return
    for index, text in enumerate(read_texts(train)):
        if index % HELD_OUT_EVERY == 0:
            yield text


def validation_texts(train: Sequence[Path], validation: Sequence[Path]) -> Iterator[str]:
    """The `held_out_texts`.

    Raises:
        DataError: at the end, if all of them are empty.
    """
    empty = True
    for text in held_out_texts(train, validation):
        empty = empty and not text
        yield text
    if empty:
        raise DataError(
            f"{_FLAG}: no held-out document of {_names(validation or train)} has text in it: "
            + (
                "add documents to the validation files"
                if validation
                else f"document 1 and every {HELD_OUT_EVERY}th after it are held out: remove the "
                'empty ones, or add a file with "validation" in its name'
            )
        )


def training_texts(train: Sequence[Path], validation: Sequence[Path]) -> Iterator[str]:
    """The texts of ``train``, without held-out ones, whose number is logged at the end.

    Raises:
        DataError: at the end, if all documents are held out.
    """
    held_out = {_digest(text) for text in held_out_texts(train, validation)}
    kept = left_out = 0
    for text in read_texts(train):
        if _digest(text) in held_out:
            left_out += 1
        else:
            kept += 1
            yield text
    if left_out and not kept:
        raise DataError(
            f"{_FLAG}: {_names(train)}: no document is left to train on, because all "
            f"{left_out} are held out for validation: "
            + (
                "add documents that the validation files do not have"
                if validation
                else "split the text into more documents (lines of a .jsonl file, or .txt "
                'files), or add a file with "validation" in its name'
            )
        )
    logger.info("%d documents are left out of training because they are held out", left_out)


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """The field "text" of every row, or an empty text where it is null.

    The order is that of `READERS`' suffixes, then that of the files.

    Raises:
        DataError: the field is missing or not a text, or a file cannot be read; the message names
            the file and the line or row.
    """
    files = list(files)
    for suffix, reader in READERS.items():
        for file in (file for file in files if file.name.endswith(suffix)):
            place = ""
            try:
                for place, row in reader(file):
                    yield text_field(row, f"{_FLAG}: {file}{place}")
            except DataError:
                raise
            except Exception as error:  # each reader raises its own types
                after = f" after{place.removeprefix(',')}" if place else ""
                raise DataError(
                    f"{_FLAG}: {file}: cannot be read{after} ({one_line(error)}): "
                    "replace or remove that file"
                ) from error


def text_field(row: dict[str, object], where: str) -> str:
    """``row["text"]``, or an empty text if it is None.

    Raises:
        DataError: the field is missing or not a text, or the text holds a lone surrogate; the
            message begins with ``where``.
    """
    if "text" not in row:
        raise DataError(f'{where}: no field "text", only {sorted(row)}: rename the one to train on')
    text = row["text"]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f'{where}: the field "text" holds {type(text).__name__}, not text')
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where}: the text holds the lone surrogate {text[error.start]!a} at character "
            f"{error.start}, which cannot be tokenized: replace it, for example with U+FFFD"
        ) from None
    return text


def _names(files: Sequence[Path]) -> str:
    return str(files[0]) + (f" and {len(files) - 1} other files" if len(files) > 1 else "")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
