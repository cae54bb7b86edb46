"""Text streamed from the Hugging Face hub, or from a local copy of it, by torchtitan's reader.

The datasets are entries of torchtitan's ``DATASETS`` (``hf_datasets/text_datasets.py``), its place
for more of them; validation is c4's for all. Documents are split between the data-parallel ranks,
and each rank (and worker) shuffles its own: the order depends on how many there are, so a run
resumes at the world size that it started with.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import IterableDataset, load_dataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataset

from train.data.cache import DataError, one_line
from train.data.local import text_field

VALIDATION = "c4_validation"
STREAMS = ("fineweb-edu", "fineweb-edu-100bt", "fineweb-edu-10bt", "c4")


def _load(path: str, name: str) -> IterableDataset:
    return load_dataset(path, name=name, split="train", streaming=True)


def _text(row: dict[str, Any], dataset: str) -> str:
    return text_field(row, f"--dataloader.dataset {dataset}")


for _dataset, _name in zip(STREAMS, ("default", "sample-100BT", "sample-10BT"), strict=False):
    DATASETS[_dataset] = DatasetConfig(
        path="HuggingFaceFW/fineweb-edu",
        loader=partial(_load, name=_name),
        sample_processor=partial(_text, dataset=_dataset),
    )
for _dataset in ("c4", VALIDATION):  # torchtitan's entries, with a message for a missing field
    DATASETS[_dataset] = replace(
        DATASETS[_dataset], sample_processor=partial(_text, dataset=_dataset)
    )


class BlockShuffle:
    """Shuffles a stream block by block, and resumes exactly.

    The shuffle buffer of Hugging Face `datasets` is lost on a resume. Here the state is where the
    block began and how much of it was taken: resuming reads the block again. The order of the
    dataset's files is shuffled as well, by the epoch of `datasets`, which is derived from the seed.

    Args:
        data: the stream; its own state must be exact, so it may not be shuffled.
        block: documents to a block.
    """

    # Epochs of different seeds never meet, and epoch 0 of `datasets` would keep the files' order.
    _EPOCHS_PER_SEED = 1_000_000

    def __init__(self, data: IterableDataset, *, seed: int, block: int) -> None:
        self._data = data
        self._size = block
        self.set_epoch(seed * self._EPOCHS_PER_SEED + 1)

    @property
    def epoch(self) -> int:
        """The epoch that the stream was set to."""
        return self._data.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start another pass, in another order."""
        self._data.set_epoch(epoch)
        self._start: dict[str, Any] | None = None  # None: the stream's beginning
        self._block = 0
        self._taken = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        rows = iter(self._data)
        while block := list(islice(rows, self._size)):
            seed = np.random.SeedSequence([self.epoch, self._block])
            order = np.argsort(np.random.PCG64(seed).random_raw(len(block)), kind="stable")
            for index in order[self._taken :]:
                self._taken += 1
                yield block[index]
            self._start = self._data.state_dict()
            self._block += 1
            self._taken = 0

    def state_dict(self) -> dict[str, Any]:
        """Where in the stream the block began, the block's number, and rows taken of it."""
        return {
            "epoch": self.epoch,
            "start": self._start,
            "block": self._block,
            "taken": self._taken,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last row that was taken."""
        self.set_epoch(state["epoch"])
        if state["start"] is not None:
            self._data.load_state_dict(state["start"])
        self._start, self._block, self._taken = state["start"], state["block"], state["taken"]


class _ShuffledText(HuggingFaceTextDataset):
    """torchtitan's packing of streamed documents, over a shuffled stream."""

    _data: IterableDataset | BlockShuffle

    def __init__(self, *, seed: int, shuffle_buffer: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if shuffle_buffer:
            self._data = BlockShuffle(self._data, seed=seed, block=shuffle_buffer)


class StreamLoader(ParallelAwareDataloader):
    """One rank's batches of a hub dataset.

    Args:
        dataset: a name in ``DATASETS``.
        dataset_path: a local copy of the hub's folder, with its README.md; None for the hub.
        shuffle_buffer: documents to a block of the shuffle; 0 for the dataset's own order.

    Raises:
        DataError: the local copy is missing or of another layout, or the hub cannot be reached.
    """

    def __init__(
        self,
        *,
        dataset: str,
        dataset_path: str | None,
        tokenizer: BaseTokenizer,
        seq_len: int,
        batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        seed: int,
        shuffle_buffer: int,
        infinite: bool,
        num_workers: int,
        snapshot_every_n_steps: int | None,
    ) -> None:
        if dataset_path is not None and not Path(dataset_path).is_dir():
            raise DataError(f"--dataloader.dataset_path {dataset_path}: no such folder")
        try:
            stream = _ShuffledText(
                dataset_name=dataset,
                dataset_path=dataset_path,
                tokenizer=tokenizer,
                seq_len=seq_len,
                dp_rank=dp_rank,
                dp_world_size=dp_world_size,
                infinite=infinite,
                seed=seed,
                shuffle_buffer=shuffle_buffer,
            )
        except Exception as error:  # the hub's client raises a dozen unrelated kinds
            message = _unavailable(dataset, dataset_path, one_line(error))
            raise DataError(message) from error
        super().__init__(
            stream,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
            batch_size=batch_size,
            num_workers=num_workers,
            snapshot_every_n_steps=snapshot_every_n_steps,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly, at the world size of the checkpoint.

        Raises:
            DataError: the checkpoint is of another world size.
        """
        if state and state["world_size"] != self.dp_world_size:
            raise DataError(
                f"the checkpoint's stream was split between {state['world_size']} data-parallel "
                f"ranks, now there are {self.dp_world_size}: resume at that number, or start the "
                "data over with --checkpoint.exclude_from_loading dataloader"
            )
        super().load_state_dict(state)


def _unavailable(dataset: str, dataset_path: str | None, reason: str) -> str:
    if dataset_path is not None:
        return (
            f"--dataloader.dataset_path {dataset_path} is no copy of the hub's folder of "
            f"{dataset}, README.md included ({reason})"
        )
    return (
        f"--dataloader.dataset {dataset} cannot be opened on the Hugging Face hub ({reason}): pass "
        "--dataloader.dataset_path with a local copy, or --dataloader.dataset embedded"
    )
