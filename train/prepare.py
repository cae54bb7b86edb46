"""``python -m train.prepare``: tokenize a dataset to disk once, to train from it without a network.

The folder holds the tokens of both splits and the tokenizer, and is all that training needs. After
a kill, the same command continues where it stopped.
"""

import errno
import math
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock, Timeout

from train.data.cache import DataError
from train.data.sources import source
from train.data.store import PREPARED, TOKENIZER, DocumentEncoder
from train.data.writer import StoreWriter
from train.model.scales import SCALES, compute_steps
from train.run.files import write_whole

BAD_INPUT = 2


def _flag(metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint="")


@dataclass
class Options:
    """Tokenize a dataset to disk once, to train from it on machines without a network.

    Run it where there is a network; after a kill, run the same command again to continue:

    python -m train.prepare --dataset fineweb-edu-10bt --to data/fineweb

    It ends by printing the flags that train from the folder.
    """

    to: Annotated[Path, tyro.conf.arg(metavar="FOLDER")]
    """Folder to write."""

    dataset: Annotated[str, tyro.conf.arg(metavar="NAME")] = "fineweb-edu-10bt"
    """fineweb-edu, fineweb-edu-100bt, fineweb-edu-10bt, c4, local or embedded."""

    tokenizer: Annotated[Path | None, _flag("FOLDER")] = None
    """Folder with a tokenizer.json; by default LLaMA-3's, for embedded the corpus's own."""

    dataset_path: Annotated[Path | None, _flag("PATH")] = None
    """File or folder of text for local, or a local copy of a hub dataset's folder."""

    validation_path: Annotated[Path | None, _flag("PATH")] = None
    """Local copy of allenai/c4, whose validation split is held out for every hub dataset."""

    documents: Annotated[int | None, _flag("N")] = None
    """Stop after N training documents; by default at the end of the data."""

    tokens: Annotated[int | None, _flag("N")] = None
    """Stop after the training document that reaches N tokens; by default at the end of the data."""

    validation_documents: Annotated[int, tyro.conf.arg(metavar="N")] = 10_000
    """Stop after N held-out documents."""

    num_workers: Annotated[
        int, tyro.conf.arg(aliases=["-j"], metavar="N", help_behavior_hint="")
    ] = 0
    """Threads that tokenize; by default one per core."""

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
        print("stopped: run the same command again to continue", file=sys.stderr)
        return 130
    return 0


def prepare(options: Options) -> None:
    """Write the folder, or continue it, and print how to train from it.

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
        raise DataError(f"--to {folder}: another process is writing it: wait for it") from None
    except OSError as error:
        remedy = "free some space, and run the same command again to continue"
        if error.errno != errno.ENOSPC:
            remedy = "choose another folder"
        raise DataError(f"--to {folder}: cannot be written ({error.strerror}): {remedy}") from error


def scales_covered(tokens: int) -> str:
    """For which scales this many tokens are enough without a second epoch, and for which not."""
    needed = {
        name: compute_steps(scale) * scale.global_batch_size * scale.seq_len
        for name, scale in SCALES.items()
        if not scale.on_corpus
    }
    enough = ", ".join(name for name, count in needed.items() if count <= tokens) or "no scale"
    too_few = ", ".join(f"{n} ({_short(count)})" for n, count in needed.items() if count > tokens)
    return f"enough for {enough}" + (f"; too few for {too_few}" if too_few else "")


def _short(count: int) -> str:
    return f"{count / 1e9:.1f}B" if count >= 1e9 else f"{count / 1e6:.0f}M"


def _prepare(options: Options, folder: Path) -> None:
    encoder, tokenizer = _encoder(options)
    other_files = {entry.name for entry in folder.iterdir()} - {".lock", PREPARED}
    if other_files and not (folder / PREPARED).exists():
        raise DataError(f"--to {folder} holds other files ({min(other_files)}): choose another one")
    # First, so that an unfinished folder is never taken for one of text files.
    write_whole(folder / PREPARED, '{"version": 1}\n')
    (folder / TOKENIZER).mkdir(exist_ok=True)
    for file in sorted(tokenizer.glob("*.json")):
        write_whole(folder / TOKENIZER / file.name, file.read_text(encoding="utf-8"))
    limits = {
        "train": (options.documents, options.tokens),
        "validation": (options.validation_documents, None),
    }
    for split, (documents, tokens) in limits.items():
        text = source(options.dataset, split, options.dataset_path, options.validation_path)
        plan = {**text.plan, "documents": documents, "tokens": tokens}
        writer = StoreWriter(folder / split, encoder, plan)
        writer.write(text, max_documents=documents or math.inf, max_tokens=tokens or math.inf)
        print(f"{split}: {writer.meta}")
        if split == "train":
            covered = scales_covered(writer.meta.count)
            print(f"one epoch, at 20 tokens per non-embedding parameter: {covered}")
    print(
        f"to train from it: python -m train --dataset local --dataset-path {folder} "
        f"--tokenizer {folder / TOKENIZER}"
    )


def _encoder(options: Options) -> tuple[DocumentEncoder, Path]:
    """The encoder, and the folder of its tokenizer."""
    # Here, so that a mistake in the flags is reported before torchtitan is imported.
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
            f"--tokenizer {folder}: has no tokenizer.json: "
            "download one with scripts/download_hf_assets.py"
        )
    return document_encoder(HuggingFaceTokenizer(tokenizer_path=str(folder))), folder


if __name__ == "__main__":
    sys.exit(main())
