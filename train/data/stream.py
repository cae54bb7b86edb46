"""Text streamed from the Hugging Face hub, or read from a local copy, by torchtitan's reader.

The datasets are registered in torchtitan's ``DATASETS`` (``hf_datasets/text_datasets.py``). All of
them are validated on c4's validation split. Documents are split between the data-parallel ranks,
and each rank and worker shuffles its own. So the order depends on their number, and a run can only
resume with the number of ranks that it started with.
"""

from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from datasets import IterableDataset, load_dataset
from torchtitan.components.dataloader import ParallelAwareDataloader
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HuggingFaceTextDataset

from train.data.cache import DataError, one_line
from train.data.local import text_field
from train.data.workers import OwnData, ignore_signals, signals_held

VALIDATION = "c4_validation"
_FINEWEB, _C4 = "HuggingFaceFW/fineweb-edu", "allenai/c4"
_HUB = {  # repository, configuration, split
    "fineweb-edu": (_FINEWEB, "default", "train"),
    "fineweb-edu-100bt": (_FINEWEB, "sample-100BT", "train"),
    "fineweb-edu-10bt": (_FINEWEB, "sample-10BT", "train"),
    "c4": (_C4, "en", "train"),
    VALIDATION: (_C4, "en", "validation"),
}
STREAMS = tuple(name for name in _HUB if name != VALIDATION)


def _open(path: str, *, dataset: str) -> IterableDataset:
    repository, name, split = _HUB[dataset]
    what, flag = f"--dataset {dataset}", "--dataset-path"
    if dataset == VALIDATION:
        what = "the validation data"
        flag = "--validator.dataloader.dataset_path (of train.prepare: --validation-path)"
    if path != repository and not Path(path).is_dir():
        raise DataError(f"{flag} {path}: no such folder")
    try:
        return load_dataset(path, name=name, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        if path != repository:
            raise DataError(
                f"{flag} {path} is no copy of the hub's folder {repository}, README.md included "
                f"({one_line(error)})"
            ) from error
        raise DataError(
            f"{what} cannot be opened on the Hugging Face hub ({one_line(error)}): "
            f"check the network, pass a local copy of {repository} by {flag}, or pass --dataset "
            "embedded"
        ) from error


for _dataset in _HUB:
    DATASETS[_dataset] = DatasetConfig(
        path=_HUB[_dataset][0],
        loader=partial(_open, dataset=_dataset),
        sample_processor=partial(text_field, where=f"--dataset {_dataset}"),
    )


class BlockShuffle:
    """Shuffles a stream block by block, and resumes exactly.

    The shuffle buffer of Hugging Face `datasets` is lost on a resume. Here the state is the start
    of the block and the number of rows taken from it, and resuming reads the block again. The order
    of the dataset's files is also shuffled, by the epoch of `datasets`, which follows from the
    seed.

    Args:
        data: the stream; it must not be shuffled, because its own state must be exact.
        block: documents per block.
    """

    # Epochs of different seeds do not overlap; epoch 0 of `datasets` would keep the files' order.
    _EPOCHS_PER_SEED = 1_000_000

    def __init__(self, data: IterableDataset, *, seed: int, block: int) -> None:
        self._data = data
        self._size = block
        self.set_epoch(seed * self._EPOCHS_PER_SEED + 1)

    @property
    def epoch(self) -> int:
        """The current epoch of the stream."""
        return self._data.epoch

    def set_epoch(self, epoch: int) -> None:
        """Start another pass, in a different order."""
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
        """The block's number, its start in the stream, and the number of rows taken from it."""
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


class _ShuffledText(OwnData, HuggingFaceTextDataset):
    """torchtitan's packing of streamed documents, over a shuffled stream."""

    _data: IterableDataset | BlockShuffle

    def __init__(self, *, seed: int, shuffle_buffer: int, **options: Any) -> None:
        super().__init__(**options)
        if shuffle_buffer:
            self._data = BlockShuffle(self._data, seed=seed, block=shuffle_buffer)

    def __iter__(self) -> Iterator[Any]:
        self._own()
        return super().__iter__()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._own()
        super().load_state_dict(state_dict)


class RankedLoader(ParallelAwareDataloader):
    """torchtitan's loader of a stream that is split between the ranks."""

    def __init__(self, dataset: Any, **options: Any) -> None:
        super().__init__(dataset, worker_init_fn=ignore_signals, **options)

    def __iter__(self) -> Any:
        with signals_held():
            return super().__iter__()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the exact position of a checkpoint.

        Raises:
            DataError: the checkpoint was written with another number of data-parallel ranks.
        """
        if state and state["world_size"] != self.dp_world_size:
            raise DataError(
                f"the checkpoint's stream was split between {state['world_size']} data-parallel "
                f"ranks, now there are {self.dp_world_size}: resume with that number, or restart "
                "the data with --checkpoint.exclude_from_loading dataloader"
            )
        super().load_state_dict(state)


class StreamLoader(RankedLoader):
    """One rank's batches of a hub dataset.

    Args:
        loading: arguments of torchtitan's ``ParallelAwareDataloader``.
        text: arguments of torchtitan's ``HuggingFaceTextDataset``, ``seed``, and
            ``shuffle_buffer``: documents per block of the shuffle, 0 for the dataset's order.

    Raises:
        DataError: the local copy is missing or not laid out as on the hub, or the hub cannot be
            reached.
    """

    def __init__(
        self, *, dp_rank: int, dp_world_size: int, loading: dict[str, Any], **text: Any
    ) -> None:
        ranks = {"dp_rank": dp_rank, "dp_world_size": dp_world_size}
        super().__init__(_ShuffledText(**ranks, **text), **ranks, **loading)
