"""Batches of a Hugging Face image dataset, which is read in its order.

An image that cannot be read is left out, so the next one takes its place. The random transforms of
an image depend on its bytes, so they are the same for any number of ranks and workers. The order
depends on these numbers, because the dataset's files are split between them.
"""

import hashlib
import io
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from train.data.cache import DataError, guarded, one_line
from train.data.images.batch import MAX_UNREADABLE, Batch, Draft, Recipe, check_readable
from train.data.images.hub import ImageStream, open_stream
from train.data.images.sampled import check_stream
from train.data.stream import BlockShuffle, RankedLoader
from train.data.workers import OwnData

logger = logging.getLogger(__name__)


@cache  # once per process: validation reads the same images again and again
def warn_of_few_classes(where: str, seen: int, classes: int, images: int) -> None:
    """Warn if validation reads far fewer classes than as many images at random would have."""
    expected = classes * (1 - (1 - 1 / classes) ** images)
    if images >= 8 and seen < 0.6 * expected:
        logger.warning(
            "%s: the %d images of validation have %d of %d classes, so the validation loss is "
            "that of these alone; if the files are sorted by class, pass a larger "
            "--validator.sequences, or data with a validation split of all classes",
            *(where, images, seen, classes),
        )


class StreamedBatches(OwnData, IterableDataset[Batch | DataError]):
    """Whole batches of one worker, with a state that resumes exactly after the last one.

    Args:
        data: rows of ``stream``: for training, those of one rank.
    """

    def __init__(self, data: Any, stream: ImageStream, recipe: Recipe) -> None:
        self._data = data
        self._stream = stream
        self._recipe = recipe
        self._yielded = 0
        self._row = 0  # of the rows that were read since the iterator began the epoch

    def __iter__(self) -> Iterator[Batch | DataError]:
        """Batches; or an error, because torch makes many lines of one that a worker raises."""
        self._own()
        try:
            yield from self._train() if self._recipe.training else self._validate()
        except DataError as error:
            yield error

    def state_dict(self) -> dict[str, Any]:
        """The position of the rows, and the number of batches."""
        return {"rows": self._data.state_dict(), "yielded": self._yielded}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the last batch of that state."""
        self._own()
        self._data.load_state_dict(state["rows"])
        self._yielded = state["yielded"]

    def _train(self) -> Iterator[Batch]:
        worker = info.id if (info := get_worker_info()) is not None else 0
        draft = Draft()
        unreadable, whole_epoch = 0, self._yielded == 0
        while True:
            readable = 0
            for row in self._rows():
                if (read := self._read(row, draft.skipped)) is None:
                    unreadable += 1
                    check_readable(unreadable, MAX_UNREADABLE, self._stream.where, draft.skipped)
                    continue
                unreadable, readable = 0, readable + 1
                draft.add(*read)
                if len(draft.images) == self._recipe.batch_size:
                    key = self._recipe.dp_rank, worker, self._yielded
                    self._yielded += 1
                    yield self._recipe.batch(draft, *key)
                    draft = Draft()
            if whole_epoch and not readable:
                if self._row:
                    check_readable(unreadable, unreadable, self._stream.where, draft.skipped)
                return  # there is no file for this worker
            if not self._recipe.infinite:
                return
            whole_epoch = True
            self._data.set_epoch(self._data.epoch + 1)

    def _validate(self) -> Iterator[Batch]:
        # Every rank reads all rows, so that the images and the number of batches are known.
        size, step = self._recipe.batch_size, self._recipe.global_batch
        first = size * self._recipe.dp_rank
        while True:
            draft, readable = Draft(), 0
            seen: set[int] = set()
            for row in self._rows():
                if first <= (self._row - 1) % step < first + size and (
                    read := self._read(row, draft.skipped)
                ):
                    draft.add(*read)
                    seen.add(read[1])
                    readable += 1
                if self._row % step == 0:
                    yield self._recipe.batch(draft)
                    draft = Draft()
            if draft.skipped and not readable:
                check_readable(self._row, self._row, self._stream.where, draft.skipped)
            warn_of_few_classes(self._stream.where, len(seen), self._recipe.classes, readable)
            if self._row % step:
                yield self._recipe.batch(draft)
            if not self._recipe.infinite or not self._row:
                return

    def _rows(self) -> Iterator[dict[str, Any]]:
        self._row = 0
        for row in guarded(self._data, self._stream.where):
            self._row += 1
            yield row

    def _read(
        self, row: dict[str, Any], skipped: dict[str, str]
    ) -> tuple[torch.Tensor, int] | None:
        from PIL import Image

        value = row[self._stream.image] or {}
        key = ""
        try:
            content = value["bytes"] or Path(value["path"]).read_bytes()
            key = hashlib.blake2b(content, digest_size=16).hexdigest()
            image = self._recipe.transform.decode(Image.open(io.BytesIO(content)))
        except Exception as error:  # Pillow raises many types for corrupt files
            skipped[self._name(row, key)] = one_line(error)
            return None
        label = self._label(row, key)
        return self._recipe.transform(image, self._data.epoch, key), label

    def _label(self, row: dict[str, Any], key: str) -> int:
        column, _, field = self._stream.label.partition(".")
        label = row[self._stream.label] if self._stream.label in row else row[column][field]
        if not isinstance(label, int) or not 0 <= label < self._recipe.classes:
            raise DataError(
                f"{self._stream.where}: {self._name(row, key)} has label {label!r} in column "
                f"{self._stream.label!r}, but classes are 0 to {self._recipe.classes - 1}: "
                "pass another --dataloader.label_column or --dataloader.num_classes"
            )
        return label

    def _name(self, row: dict[str, Any], key: str) -> str:
        path = (row[self._stream.image] or {}).get("path") or f"the image with BLAKE2b {key}"
        return f"{path} of {row['__url__']}" if row.get("__url__") else str(path)


class StreamedLoader(RankedLoader):
    """One rank's batches of a Hugging Face image dataset.

    Args:
        samples: images of one epoch over all ranks; None if unknown.
        stream: what identifies the images and their order.
    """

    def __init__(
        self, batches: StreamedBatches, *, samples: int | None, stream: str, **options: Any
    ) -> None:
        # Without a generator of its own, it draws from the global one.
        super().__init__(batches, batch_size=None, generator=torch.Generator(), **options)
        self.samples = samples
        self._stream = stream

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"stream": self._stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from the exact position of a checkpoint.

        Raises:
            DataError: the position is in other data, or was saved with another number of ranks or
                workers.
        """
        check_stream(state["stream"], self._stream)
        super().load_state_dict(state)


def open_streamed(
    config: Any, recipe: Recipe, snapshot_every_n_steps: int | None
) -> tuple[StreamedLoader, tuple[str, ...]]:
    """The loader of an `ImageDataLoader.Config`, and the names of the classes.

    Raises:
        DataError: the dataset cannot be used.
    """
    from datasets.distributed import split_dataset_by_node

    stream = open_stream(
        config.dataset, config.dataset_path, config.split, config.image_column, config.label_column
    )
    rows, samples = stream.rows, stream.samples
    if config.limit is not None:
        rows = rows.take(config.limit)
        samples = min(config.limit, samples or config.limit)
    # In validation each rank reads all rows, through a dataset of its own.
    ranks = (recipe.dp_rank, recipe.dp_world_size) if recipe.training else (0, 1)
    rows = split_dataset_by_node(rows, *ranks)
    # One worker keeps the order of the validation images, whose first ones are those of a limit.
    workers = min(recipe.num_workers, rows.num_shards if recipe.training else 1)
    if workers < recipe.num_workers:
        logger.info(
            "%s %s: %d workers, not --dataloader.num_workers %d, because %s",
            *(stream.where, config.split, workers, recipe.num_workers),
            "a rank has as many files" if recipe.training else "one keeps the order",
        )
    shuffle = config.shuffle_buffer if recipe.training else 0
    if shuffle:
        rows = BlockShuffle(rows, seed=config.seed, block=shuffle)
    identity = (
        f"{stream.where} {config.split} of {recipe.classes} classes, seed {config.seed}, "
        f"limit {config.limit}, shuffle_buffer {shuffle}, {workers} workers"
    )
    logger.info("%s", identity)
    loader = StreamedLoader(
        StreamedBatches(rows, stream, recipe),
        samples=samples,
        stream=identity,
        dp_rank=recipe.dp_rank,
        dp_world_size=recipe.dp_world_size,
        num_workers=workers,
        snapshot_every_n_steps=snapshot_every_n_steps,
    )
    return loader, stream.classes or tuple(str(label) for label in range(recipe.classes))
