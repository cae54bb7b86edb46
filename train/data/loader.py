"""The dataloader of a run, for the embedded corpus, local files and hub datasets."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer

from train.data.cache import DataError
from train.data.corpus import prepare_embedded
from train.data.local import find_files, open_local
from train.data.store import DocumentEncoder, TokenStore, is_prepared, open_prepared, prepared_meta
from train.data.stream import STREAMS, VALIDATION, StreamLoader
from train.data.windows import Batch, WindowLoader

logger = logging.getLogger(__name__)

DATASET_NAMES = ("embedded", "local", *STREAMS)


class TextDataLoader(BaseDataLoader):
    """One data-parallel rank's batches of text.

    Yields ``({"input", "positions"}, labels)``, each a LongTensor of shape ``(local_batch_size,
    seq_len)``. The order of the data depends only on the seed; for hub datasets, whose documents
    are split between data-parallel ranks and workers, also on their number. `load_state_dict`
    restores the exact position: for ``embedded`` and ``local`` with any number of ranks, for hub
    datasets with the number that the position was saved with.

    Raises:
        DataError: the data cannot be used; the message names the flag and the remedy.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        dataset: str = "embedded"
        """Data to read: "embedded" (the sources of Python's standard library; needs no network),
        "local" (files under dataset_path), or a hub dataset: "fineweb-edu", "fineweb-edu-100bt",
        "fineweb-edu-10bt" or "c4"."""

        dataset_path: str | None = None
        """For "local": a .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt file, a folder of such
        files, or a folder that `python -m train.prepare` wrote. For a hub dataset: a local copy of
        its folder (for validation, of allenai/c4)."""

        split: Literal["train", "validation"] = "train"
        """Split to read. For every hub dataset, "validation" is c4's validation split."""

        seed: int = 0
        """Seed of the order of the training data."""

        infinite: bool = True
        """Whether to start another epoch at the end of the data."""

        shuffle_buffer: int = 10_000
        """For hub datasets: number of consecutive documents to shuffle; 0 keeps the dataset's
        order. Validation data is never shuffled."""

        num_workers: int = 0
        """For hub datasets: processes per rank that read and tokenize; 0 uses the training
        process."""

        def __post_init__(self) -> None:
            if self.dataset not in DATASET_NAMES:
                raise DataError(
                    f"--dataloader.dataset {self.dataset!r} is unknown: "
                    f"choose one of {', '.join(DATASET_NAMES)}"
                )
            for name in ("seed", "shuffle_buffer", "num_workers"):
                if getattr(self, name) < 0:
                    raise DataError(
                        f"--dataloader.{name} {getattr(self, name)}: pass 0 or a positive number"
                    )

        def digest(self) -> str | None:
            """16 hex digits that identify local text, the same for a copy; None for other datasets.

            That of a folder which `train.prepare` wrote is of the split's tokens. That of other
            files is of their names and sizes: an edit that keeps a size does not change it.

            Raises:
                DataError: there is no usable file, or the folder is not prepared to its end or
                    damaged.
            """
            if self.dataset != "local" or self.dataset_path is None:
                return None
            path = Path(self.dataset_path).expanduser()
            if is_prepared(path):
                content = prepared_meta(path, self.split).sha256
            else:
                content = "".join(
                    f"{file.relative_to(path)}\t{file.stat().st_size}\n"
                    for file in find_files(path)
                )
            return hashlib.sha256(content.encode()).hexdigest()[:16]

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        tokenizer: BaseTokenizer,
        seq_len: int,
        local_batch_size: int,
        snapshot_every_n_steps: int | None = 1,
        **_: Any,
    ) -> None:
        self.config = config
        training = config.split == "train"
        self._loader: WindowLoader | StreamLoader
        if config.dataset in STREAMS:
            self._loader = StreamLoader(
                dataset_name=config.dataset if training else VALIDATION,
                dataset_path=config.dataset_path,
                tokenizer=tokenizer,
                seq_len=seq_len,
                dp_rank=dp_rank,
                dp_world_size=dp_world_size,
                infinite=config.infinite,
                seed=config.seed,
                shuffle_buffer=config.shuffle_buffer if training else 0,
                loading={
                    "batch_size": local_batch_size,
                    "num_workers": config.num_workers,
                    "snapshot_every_n_steps": snapshot_every_n_steps,
                },
            )
            return
        store = _open_store(config, document_encoder(tokenizer))
        self._loader = WindowLoader(
            store,
            seq_len=seq_len,
            batch_size=local_batch_size,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            seed=config.seed if training else None,
            infinite=config.infinite,
        )
        windows = self._loader.windows
        logger.info(
            "%s %s: %s; %d windows of %d",
            config.dataset,
            config.split,
            store.meta,
            windows,
            seq_len,
        )

    @property
    def samples(self) -> int | None:
        """Number of sequences in one epoch; None for a hub dataset, where it is unknown."""
        return self._loader.windows if isinstance(self._loader, WindowLoader) else None

    def log_epochs(self, sequences: int) -> None:
        """Warn if a run of this many sequences, over all its steps, repeats local data."""
        if self.config.dataset == "local" and sequences > (windows := self._loader.windows):
            logger.warning(
                "--dataset-path %s holds %d sequences: the run reads %d, which is %.1f epochs",
                *(self.config.dataset_path, windows, sequences, sequences / windows),
            )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data after the last batch that was yielded."""
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved position; an empty state is the beginning.

        Raises:
            DataError: the position is from other data, or (hub datasets) another number of ranks.
        """
        self._loader.load_state_dict(state_dict)


def document_encoder(tokenizer: BaseTokenizer) -> DocumentEncoder:
    """The encoder that uses torchtitan's tokenizer.

    Raises:
        DataError: the tokenizer is of an unsupported class, or has no BOS or EOS token, or one
            that is not below its size.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise DataError(
            f"the tokenizer is a {type(tokenizer).__name__}: --dataset embedded and local need a "
            "HuggingFaceTokenizer"
        )
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise DataError(
            f"the tokenizer in {tokenizer.tokenizer_path} lacks a bos_token or eos_token: set "
            "both in its tokenizer_config.json, or pass another --tokenizer"
        )
    size = tokenizer.get_vocab_size()
    if (largest := max(tokenizer.bos_id, tokenizer.eos_id)) >= size:
        raise DataError(
            f"the tokenizer in {tokenizer.tokenizer_path} has BOS or EOS token {largest}, but only "
            f"{size} tokens: number them from 0 without gaps, or pass another --tokenizer"
        )
    return DocumentEncoder(tokenizer.tokenizer, tokenizer.bos_id, tokenizer.eos_id)


def _open_store(config: TextDataLoader.Config, encoder: DocumentEncoder) -> TokenStore:
    if config.dataset == "embedded":
        corpus = prepare_embedded()
        store = corpus.train if config.split == "train" else corpus.validation
        if store.meta.encoder != encoder.digest:
            raise DataError(
                f"--dataset embedded has its own tokenizer: pass --tokenizer {corpus.tokenizer}"
            )
        return store
    if config.dataset_path is None:
        raise DataError(
            "--dataloader.dataset local needs --dataloader.dataset_path, a file or folder of text"
        )
    path = Path(config.dataset_path).expanduser()
    if is_prepared(path):
        return open_prepared(path, config.split, encoder)
    return open_local(path, config.split, encoder)
