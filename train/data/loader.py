"""The text data of a run: one dataloader for the embedded corpus, local files and hub datasets."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer

from train.data.cache import DataError
from train.data.corpus import prepare_embedded
from train.data.local import open_local
from train.data.store import DocumentEncoder, TokenStore, is_prepared, open_prepared
from train.data.stream import STREAMS, VALIDATION, StreamLoader
from train.data.windows import Batch, WindowLoader

logger = logging.getLogger(__name__)

DATASET_NAMES = ("embedded", "local", *STREAMS)


class TextDataLoader(BaseDataLoader):
    """One data-parallel rank's batches of text.

    Yields ``({"input", "positions"}, labels)``, each a LongTensor of shape ``(local_batch_size,
    seq_len)``. The order of the data depends on the seed alone, for hub datasets also on the number
    of data-parallel ranks (and workers), between which documents are split. Iterating continues
    from the position that `load_state_dict` set, exactly: for ``embedded`` and ``local`` at any
    number of ranks, for hub datasets at the saved one.

    Raises:
        DataError: the data cannot be used; the message names the flag and the remedy.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        dataset: str = "embedded"
        """What to read: "embedded" (the standard library's sources; needs no network), "local"
        (files under dataset_path), or a hub dataset: "fineweb-edu", "fineweb-edu-100bt",
        "fineweb-edu-10bt", "c4"."""

        dataset_path: str | None = None
        """For "local": a .jsonl, .jsonl.gz, .parquet or .txt file, a folder of them, or one that
        `python -m train.prepare` made. For a hub dataset: a local copy of its folder (for
        validation, of allenai/c4)."""

        split: Literal["train", "validation"] = "train"
        """Which part. The held-out part of every hub dataset is c4's validation split."""

        seed: int = 0
        """Seed of the order of the training data, and of nothing else."""

        infinite: bool = True
        """Whether to go on with another epoch at the end of the data."""

        shuffle_buffer: int = 10_000
        """For hub datasets: documents shuffled at a time; 0 keeps the dataset's order.
        Validation is never shuffled."""

        num_workers: int = 0
        """For hub datasets: processes that read and tokenize, on each rank; 0 does it in the
        training process."""

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
        logger.info(
            "%s %s: %d tokens of %d documents, %d windows of %d",
            config.dataset,
            config.split,
            store.meta.count,
            store.meta.documents,
            self._loader.windows,
            seq_len,
        )

    def log_epochs(self, sequences: int) -> None:
        """Warn if a run of this many sequences, over all its steps, repeats local data."""
        if self.config.dataset != "local" or sequences <= self._loader.windows:
            return
        logger.warning(
            "the run is %.1f epochs of the data: its %d sequences are more than the %d of "
            "--dataset-path %s",
            *(sequences / self._loader.windows, sequences, self._loader.windows),
            self.config.dataset_path,
        )

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)

    def state_dict(self) -> dict[str, Any]:
        """The position in the data: after the last batch that was handed out."""
        return self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved position; an empty state is the beginning.

        Raises:
            DataError: the position is of other data, or (hub datasets) of another world size.
        """
        self._loader.load_state_dict(state_dict)


def document_encoder(tokenizer: BaseTokenizer) -> DocumentEncoder:
    """The encoder of torchtitan's tokenizer.

    Raises:
        DataError: it is of another class, or names no BOS or EOS.
    """
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise DataError(
            f"the tokenizer is a {type(tokenizer).__name__}: --dataloader.dataset embedded and "
            "local need a HuggingFaceTokenizer"
        )
    if tokenizer.bos_id is None or tokenizer.eos_id is None:
        raise DataError(
            f"the tokenizer in {tokenizer.tokenizer_path} lacks a bos_token or eos_token: name "
            "both in its tokenizer_config.json, or pass another --hf_assets_path"
        )
    return DocumentEncoder(tokenizer.tokenizer, tokenizer.bos_id, tokenizer.eos_id)


def _open_store(config: TextDataLoader.Config, encoder: DocumentEncoder) -> TokenStore:
    if config.dataset == "embedded":
        corpus = prepare_embedded()
        store = corpus.train if config.split == "train" else corpus.validation
        if store.meta.encoder != encoder.digest:
            raise DataError(
                "--dataloader.dataset embedded has its own tokenizer: "
                f"pass --hf_assets_path {corpus.tokenizer}"
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
