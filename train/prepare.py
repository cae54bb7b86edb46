"""``python -m train.prepare --dataset NAME --tokenizer FOLDER --to DIR``: tokenize once, to disk.

For clusters whose nodes have no network: the folder holds tokens of both splits and the tokenizer,
and is all that training needs. After a kill the same command goes on where it stopped.
"""

import errno
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from filelock import FileLock, Timeout

from train.data.cache import DataError
from train.data.sources import source
from train.data.store import PREPARED, TOKENIZER, DocumentEncoder
from train.data.writer import StoreWriter
from train.model.scales import SCALES, compute_steps
from train.run.files import write_whole

BAD_INPUT = 2


@dataclass
class Options:
    """Tokenize a dataset to disk once, to train from it without a network."""

    to: Path
    """The folder to make. The same command goes on with what an earlier one left there."""

    dataset: str = "fineweb-edu-10bt"
    """fineweb-edu, fineweb-edu-100bt, fineweb-edu-10bt, c4, local or embedded."""

    tokenizer: Path | None = None
    """Folder with a tokenizer.json; by default LLaMA-3's, or the embedded corpus's own."""

    dataset_path: Path | None = None
    """Where local text, or a copy of a hub dataset, lies."""

    validation_path: Path | None = None
    """Where a copy of allenai/c4 lies: the held-out part of every hub dataset."""

    documents: int | None = None
    """Stop after so many training documents."""

    tokens: int | None = None
    """Stop with the training document in which this many tokens are reached."""

    validation_documents: int = 10_000
    """Stop after so many held-out documents."""

    num_workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = 0
    """Threads that tokenize; 0 is one a core."""

    def __post_init__(self) -> None:
        for name in ("documents", "tokens", "validation_documents"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        if self.num_workers < 0:
            raise DataError(f"--num-workers {self.num_workers}: pass 0 or a positive number")


def main() -> int:
    try:
        prepare(tyro.cli(Options, prog="python -m train.prepare"))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def prepare(options: Options) -> None:
    """Make the folder, or go on with it, and say how to train from it.

    Raises:
        DataError: one line that names the flag and the remedy.
    """
    if options.num_workers:
        os.environ["RAYON_NUM_THREADS"] = str(options.num_workers)  # read at its first use
    folder = options.to.expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=0):
            _prepare(options, folder)
    except Timeout:
        raise DataError(f"--to {folder}: another process is preparing it: wait for it") from None
    except OSError as error:
        remedy = "make room, and run the same command again: it goes on"
        if error.errno != errno.ENOSPC:
            remedy = "choose another folder"
        raise DataError(f"--to {folder}: cannot be written ({error.strerror}): {remedy}") from error


def _prepare(options: Options, folder: Path) -> None:
    encoder, tokenizer = _encoder(options)
    strangers = {entry.name for entry in folder.iterdir()} - {".lock", PREPARED}
    if strangers and not (folder / PREPARED).exists():
        raise DataError(f"--to {folder} holds other files ({min(strangers)}): choose another one")
    # First, so that nobody takes a folder that is half done for one of text files.
    write_whole(folder / PREPARED, '{"version": 1}\n')
    _copy_tokenizer(tokenizer, folder / TOKENIZER)
    limits = {"train": (options.documents, options.tokens)}
    limits["validation"] = (options.validation_documents, None)
    for split, (documents, tokens) in limits.items():
        text = source(options.dataset, split, options.dataset_path, options.validation_path)
        plan = {**text.plan, "documents": documents, "tokens": tokens}
        writer = StoreWriter(folder / split, encoder, plan)
        writer.write(text, max_documents=documents or math.inf, max_tokens=tokens or math.inf)
        print(f"{split}: {writer.meta}")
        if split == "train":
            print(f"one epoch, at 20 tokens per parameter: {scales_covered(writer.meta.count)}")
    print(
        f"train from it by --dataset local --dataset-path {folder} --tokenizer {folder / TOKENIZER}"
    )


def scales_covered(tokens: int) -> str:
    """For which scales this many tokens are enough without a second epoch, and for which not."""
    needed = {
        name: compute_steps(scale) * scale.global_batch_size * scale.seq_len
        for name, scale in SCALES.items()
    }
    enough = ", ".join(name for name, count in needed.items() if count <= tokens) or "no scale"
    too_few = ", ".join(f"{n} ({_short(count)})" for n, count in needed.items() if count > tokens)
    return f"enough for {enough}" + (f"; too few for {too_few}" if too_few else "")


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _encoder(options: Options) -> tuple[DocumentEncoder, Path]:
    """The encoder, and the folder of its tokenizer."""
    # Here, so that a mistake in the flags is told before torchtitan is imported.
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    from train.config import LLAMA3_TOKENIZER
    from train.data.corpus import prepare_embedded
    from train.data.loader import document_encoder

    if options.tokenizer is not None:
        folder = options.tokenizer.expanduser()
    elif options.dataset == "embedded":
        folder = prepare_embedded().tokenizer
    else:
        folder = Path(LLAMA3_TOKENIZER)
    if not (folder / "tokenizer.json").is_file():
        raise DataError(
            f"--tokenizer {folder}: no tokenizer.json there: "
            "get one with scripts/download_hf_assets.py"
        )
    return document_encoder(HuggingFaceTokenizer(tokenizer_path=str(folder))), folder


def _copy_tokenizer(source: Path, target: Path) -> None:
    if target.is_dir():
        return
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for file in sorted(source.glob("*.json")):
        shutil.copyfile(file, partial / file.name)
    os.replace(partial, target)


if __name__ == "__main__":
    sys.exit(main())
