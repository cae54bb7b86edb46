"""Local text: a file or folder of jsonl, parquet or txt, tokenized once into the cache.

Hugging Face `datasets` reads the field ``text`` of each row; a ``.txt`` file is one document. Files
with "validation" in their path relative to the folder are held out. If there are none, every 50th
document is. Training documents with the text of a held-out one are left out.
"""

import glob
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from datasets import IterableDataset

from train.data.cache import DataError, build_once, cache_root, one_line
from train.data.store import DocumentEncoder, TokenStore
from train.data.writer import write_store

logger = logging.getLogger(__name__)

# Reader by suffix. JSON lines are read as text: the JSON reader guesses types from the first rows
# and fails on later rows that differ in fields we do not need. `load_dataset` is not used, because
# it calls the hub to count downloads even if all files are local.
READERS: dict[str, Callable[[list[str]], IterableDataset]] = {
    ".jsonl": IterableDataset.from_text,
    ".jsonl.gz": IterableDataset.from_text,
    ".parquet": IterableDataset.from_parquet,
    ".txt": partial(IterableDataset.from_text, sample_by="document"),
}
HELD_OUT_EVERY = 50

_FLAG = "--dataset-path"


def open_local(path: Path, split: str, encoder: DocumentEncoder) -> TokenStore:
    """The token store of one split of ``path``, tokenized on first use.

    It is built again when the tokenizer or the name, size or time of a file changes.

    Raises:
        DataError: the path does not exist or holds no usable file, a row has no field "text", or a
            file cannot be read.
    """
    texts, files = local_texts(path, split)
    key = hashlib.sha256(f"{path.resolve()}\n{encoder.digest}\n{files}".encode()).hexdigest()
    folder = cache_root() / f"local-{key[:16]}-{split}"

    def build(folder: Path) -> None:
        write_store(folder, texts(), encoder, source=key, label=f"{path} {split}")

    build_once(folder, build)
    return TokenStore.open(folder)


def local_texts(path: Path, split: str) -> tuple[Callable[[], Iterator[str]], str]:
    """A function that reads the texts of one split, and a string that identifies all files.

    Raises:
        DataError: the path does not exist or holds no usable file.
    """
    files = find_files(path)
    read = held_out_texts if split == "validation" else training_texts
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
    files = [
        file
        for file in candidates
        if file.name.endswith(tuple(READERS)) and not file.name.startswith(".") and file.is_file()
    ]
    if not files:
        raise DataError(f"{_FLAG} {path}: holds none of *{', *'.join(READERS)}")
    return files


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


def training_texts(train: Sequence[Path], validation: Sequence[Path]) -> Iterator[str]:
    """The texts of ``train`` that are not held out; logs the number of the others at the end."""
    held_out = {_digest(text) for text in held_out_texts(train, validation)}
    left_out = 0
    for text in read_texts(train):
        if _digest(text) in held_out:
            left_out += 1
        else:
            yield text
    logger.info("%d documents are left out of training because they are held out", left_out)


def read_texts(files: Iterable[Path]) -> Iterator[str]:
    """The field "text" of every row, or an empty text where it is null.

    The order is that of `READERS`' suffixes, then that of the files.

    Raises:
        DataError: the field is missing or not a text, or a file cannot be read.
    """
    files = list(files)
    for suffix, reader in READERS.items():
        names = [str(file) for file in files if file.name.endswith(suffix)]
        if not names:
            continue
        where = f"{_FLAG}: in {names[0]}" + (f" or the {len(names) - 1} others" * (len(names) > 1))
        patterns = [glob.escape(name) for name in names]
        try:
            rows = reader(patterns)
            for row in _json_rows(rows, where) if suffix.startswith(".jsonl") else rows:
                yield text_field(row, where)
        except DataError:
            raise
        except Exception as error:  # each reader raises its own types
            raise DataError(f"{where}: cannot be read ({one_line(error)})") from error


def text_field(row: dict[str, object], where: str) -> str:
    """``row["text"]``, or an empty text if it is None.

    Raises:
        DataError: the field is missing or not a text; the message begins with ``where``.
    """
    if "text" not in row:
        raise DataError(f'{where}: no field "text", only {sorted(row)}: rename the one to train on')
    text = row["text"]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise DataError(f'{where}: the field "text" holds {type(text).__name__}, not text')
    return text


def _json_rows(lines: Iterable[dict[str, str]], where: str) -> Iterator[dict[str, object]]:
    for line in lines:
        if not line["text"].strip():
            continue
        row = json.loads(line["text"])
        if not isinstance(row, dict):
            raise DataError(
                f"{where}: a line holds {type(row).__name__}, not an object with a text"
            )
        yield row


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()
