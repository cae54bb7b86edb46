"""The embedded corpus: text that every machine with Python has, to train without a network.

Each source file of Python's standard library is a document, about 10 MB in all. A hash of the name
holds out about one file in twenty. Copies of earlier files are left out, so held-out text is never
trained on. A byte-level BPE of 4,096 tokens is trained on the training files alone. The result
depends only on the sources and on the version of `tokenizers`: equal inputs give byte-identical
files. The sources differ between Python versions, and between builds of one version (some
distributions leave parts out), so compare losses only between machines with the same sources.
"""

import hashlib
import json
import logging
import os
import platform
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import tokenizers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from train.data.cache import DamagedError, DataError, cache_root, open_cached
from train.data.store import DocumentEncoder, TokenStore
from train.data.writer import write_store
from train.model.scales import VOCAB_SIZE
from train.progress import progress

logger = logging.getLogger(__name__)

BOS_TOKEN = "<|begin_of_text|>"
EOS_TOKEN = "<|end_of_text|>"

# The tokenizer's trainer numbers the special tokens first, in their order.
_BOS, _EOS = 0, 1
_TOKENIZER_CONFIG = (
    json.dumps(
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS_TOKEN,
            "eos_token": EOS_TOKEN,
        },
        indent=1,
    )
    + "\n"
)

# Installed packages, test suites and generated tables: not written by people as prose.
_LEFT_OUT_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    | {"encodings", "pydoc_data"}
)
_LEFT_OUT_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
_HELD_OUT_ONE_IN = 20
_FORMAT = 1  # increase when equal sources would give different files


@dataclass(frozen=True)
class Document:
    """A source file: its path relative to the root (with ``/``), and its text."""

    name: str
    text: str

    @property
    def digest(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True)
class EmbeddedCorpus:
    """A prepared corpus: ``folder`` holds ``tokenizer/``, ``train/`` and ``validation/``."""

    folder: Path
    train: TokenStore
    validation: TokenStore

    @property
    def tokenizer(self) -> Path:
        """A folder that torchtitan's ``HuggingFaceTokenizer`` loads."""
        return self.folder / "tokenizer"


def prepare_embedded(cache_dir: Path | None = None) -> EmbeddedCorpus:
    """The corpus of this Python's standard library, prepared on first use (seconds).

    Args:
        cache_dir: folder of prepared corpora; default `train.data.cache.cache_root`.

    Raises:
        DataError: this Python has no sources, or the cache is not writable.
    """
    return _prepare_embedded((cache_dir or cache_root()).resolve())


@lru_cache(maxsize=8)  # every validation asks again
def _prepare_embedded(cache_dir: Path) -> EmbeddedCorpus:
    return prepare_corpus(embedded_documents(), cache_dir)


def embedded_documents() -> list[Document]:
    """The sources of this Python's standard library."""
    root = Path(sysconfig.get_path("stdlib"))
    return read_documents(root, source_files(root))


def prepare_corpus(
    documents: Sequence[Document], cache_dir: Path, vocab_size: int = VOCAB_SIZE
) -> EmbeddedCorpus:
    """Split, train the tokenizer and tokenize, or open the result of an earlier equal call.

    A damaged result is made again.
    """
    key = _corpus_key(documents, vocab_size)
    folder = cache_dir / f"embedded-{key[:16]}"

    def build(partial: Path) -> None:
        train, validation = split_documents(documents)
        texts = [document.text for document in train]
        encoder = train_tokenizer(texts, partial / "tokenizer", vocab_size)
        write_store(partial / "train", texts, encoder, source=key, label="embedded train")
        held_out = [document.text for document in validation]
        write_store(
            partial / "validation", held_out, encoder, source=key, label="embedded validation"
        )

    def open_() -> EmbeddedCorpus:
        encoder = _saved_encoder(folder / "tokenizer")
        train, validation = (
            TokenStore.open(folder / split, encoder) for split in ("train", "validation")
        )
        return EmbeddedCorpus(folder, train, validation)

    return open_cached(folder, build, open_)


def source_files(root: Path) -> list[Path]:
    """The ``.py`` files under ``root`` that belong to the corpus, sorted, without links."""
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - _LEFT_OUT_FOLDERS  # which are large
        files += [
            Path(folder, name)
            for name in names
            if name.endswith(".py") and not name.startswith(_LEFT_OUT_FILES)
        ]
    return sorted(path for path in files if not path.is_symlink())


def read_documents(root: Path, files: Iterable[Path]) -> list[Document]:
    """One document per file, named relative to ``root``; files that are not UTF-8 are left out."""
    documents: list[Document] = []
    undecodable = 0
    for path in files:
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            undecodable += 1
            continue
        documents.append(Document(path.relative_to(root).as_posix(), text))
    if undecodable:
        logger.info("%s: %d files that are not UTF-8 left out", root, undecodable)
    return documents


def split_documents(documents: Iterable[Document]) -> tuple[list[Document], list[Document]]:
    """Training and held-out documents, each sorted by name; no text is in both.

    Raises:
        DataError: one of the two is empty.
    """
    splits: tuple[list[Document], list[Document]] = ([], [])
    seen: set[str] = set()
    copies = 0
    for document in sorted(documents, key=lambda document: document.name):
        if document.digest in seen:
            copies += 1
            continue
        seen.add(document.digest)
        splits[_is_held_out(document.name)].append(document)
    if copies:
        logger.info("embedded corpus: %d copies of other files left out", copies)
    if not all(splits):
        raise DataError(
            f"the embedded corpus has {len(splits[0])} training and {len(splits[1])} held-out "
            "files, because this Python comes with too few sources: pass --dataset local"
        )
    return splits


def train_tokenizer(
    texts: Sequence[str], folder: Path, vocab_size: int = VOCAB_SIZE
) -> DocumentEncoder:
    """A byte-level BPE of exactly ``vocab_size`` tokens with BOS and EOS, saved to ``folder``.

    Raises:
        DataError: the texts are too short for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_TOKEN, EOS_TOKEN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(progress(texts, desc="Training the tokenizer", delay=1), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise DataError(
            f"the corpus is too short: it gives only {tokenizer.get_vocab_size()} of {vocab_size} "
            "tokens; pass --dataset local"
        )
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True))
    (folder / "tokenizer_config.json").write_text(_TOKENIZER_CONFIG)
    return DocumentEncoder(tokenizer, bos=_BOS, eos=_EOS)


def _saved_encoder(folder: Path) -> DocumentEncoder:
    """The encoder of a tokenizer that `train_tokenizer` saved."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        config = (folder / "tokenizer_config.json").read_bytes()
    except Exception as error:  # tokenizers raises plain Exception
        raise DamagedError(f"the tokenizer {folder} is unreadable") from error
    if config != _TOKENIZER_CONFIG.encode():
        raise DamagedError(f"the tokenizer {folder} is corrupt")
    return DocumentEncoder(tokenizer, bos=_BOS, eos=_EOS)


def _is_held_out(name: str) -> bool:
    # By name, so that a file stays in its split when other files are added or removed.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) % _HELD_OUT_ONE_IN == 0


def _corpus_key(documents: Iterable[Document], vocab_size: int) -> str:
    key = hashlib.sha256(
        f"{_FORMAT} {platform.python_version()} {tokenizers.__version__} {vocab_size}\n".encode()
    )
    for document in documents:
        key.update(f"{document.name} {document.digest}\n".encode())
    return key.hexdigest()
