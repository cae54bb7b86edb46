"""Batches of images that can be read in any order, from any position.

Training reads the images in a new permutation in each epoch, and a batch may span two epochs, as
for text (`train.data.windows`). An image that cannot be read is replaced by the next one of the
order, as in timm's ``ImageDataset``; so every position has an image that does not depend on the
batch size, the number of ranks or the workers.

Validation reads the images once, in an order that never changes and mixes the classes, so that any
first part of it is a random sample. An image that cannot be read, and the part of the last batch
after the last image, have the label `IGNORE_INDEX`.
"""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from train.data.cache import DataError, one_line
from train.data.images.batch import MAX_UNREADABLE, Batch, ImageSet, filled
from train.data.images.transforms import Mixing, Transform
from train.data.windows import stream_entries, window_order


class SampledBatches(Dataset[Batch | DataError]):
    """The batch that begins at a position of the global stream of images.

    Args:
        limit: number of images to read, drawn once for all epochs; None reads all.
        seed: of the order; None for validation.
    """

    def __init__(
        self,
        images: ImageSet,
        transform: Transform,
        mixing: Mixing | None,
        *,
        batch_size: int,
        shape: tuple[int, ...],
        seed: int | None,
        limit: int | None,
    ) -> None:
        order = window_order(len(images.labels), 0, 0)
        self.order = order if limit is None else order[:limit]
        self._images = images
        self._transform = transform
        self._mixing = mixing
        self._batch_size = batch_size
        self._shape = shape
        self._seed = seed
        # Images that are in memory, and transformed the same way each time.
        self._made: dict[int, torch.Tensor] | None = (
            {} if images.in_memory and not transform.random else None
        )

    def __getitem__(self, first: int) -> Batch | DataError:
        """The batch of the positions from ``first`` on; in validation, of places in the order.

        An error is returned, because torch makes many lines of one that a worker raises.
        """
        try:
            return self._validation(first) if self._seed is None else self._training(first)
        except DataError as error:
            return error

    def _training(self, first: int) -> Batch:
        skipped: dict[str, str] = {}
        made = [self._readable(first + place, skipped) for place in range(self._batch_size)]
        images, labels = filled(*map(list, zip(*made, strict=True)), self._batch_size, self._shape)
        if self._mixing is not None:
            images, labels = self._mixing(images, labels, first)
        return Batch(images, labels, skipped)

    def _validation(self, first: int) -> Batch:
        skipped: dict[str, str] = {}
        images, labels = [], []
        for index in self.order[first : first + self._batch_size]:
            if (image := self._read(int(index), 0, skipped)) is not None:
                images.append(image)
                labels.append(int(self._images.labels[index]))
        return Batch(*filled(images, labels, self._batch_size, self._shape), skipped)

    def _readable(self, position: int, skipped: dict[str, str]) -> tuple[torch.Tensor, int]:
        """The first image from ``position`` on that can be read, and its label."""
        assert self._seed is not None
        size = len(self.order)
        tries = min(size, MAX_UNREADABLE)
        for place in range(position, position + tries):
            epoch, entry = (int(x[0]) for x in stream_entries(place, 1, size, self._seed))
            index = int(self.order[entry])
            if (image := self._read(index, epoch, skipped)) is not None:
                return image, int(self._images.labels[index])
        name, reason = next(reversed(skipped.items()))
        raise DataError(
            f"{self._images.where}: {tries} images after each other cannot be read, the last one "
            f"is {name} ({reason}): check the files"
        )

    def _read(self, index: int, epoch: int, skipped: dict[str, str]) -> torch.Tensor | None:
        if self._made is not None and index in self._made:
            return self._made[index]
        try:
            image = self._transform.decode(self._images.open(index))
        except Exception as error:  # Pillow raises many types for corrupt files
            skipped[self._images.name(index)] = one_line(error)
            return None
        made = self._transform(image, epoch, index)
        if self._made is not None:
            self._made[index] = made
        return made


class SampledLoader:
    """One rank's batches, from the current position on.

    With ``W`` ranks and ``B`` images per rank, global batch ``k`` holds the positions
    ``[k W B, (k + 1) W B)`` of the stream. Rank ``r`` takes ``[k W B + r B, k W B + (r + 1) B)``.

    Raises:
        DataError: training data has fewer images than one global batch.
    """

    def __init__(
        self,
        batches: SampledBatches,
        stream: str,
        *,
        training: bool,
        batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        infinite: bool,
        num_workers: int,
    ) -> None:
        self.samples = len(batches.order)
        self.consumed = 0
        """Number of positions that all ranks together have taken."""
        self._batches = batches
        self._stream = stream
        self._training = training
        self._offset = batch_size * dp_rank
        self._global_batch = batch_size * dp_world_size
        self._infinite = infinite
        self._num_workers = num_workers
        if training and self.samples < self._global_batch:
            raise DataError(
                f"{stream} are fewer than one batch of {batch_size} on each of {dp_world_size} "
                "ranks: lower --training.local_batch_size, or use more images"
            )

    def __iter__(self) -> Iterator[Batch | DataError]:
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._positions(),
            num_workers=self._num_workers,
            generator=torch.Generator(),  # else it draws from the global one
        )
        for batch in loader:
            # Before the yield: a checkpoint written while this batch trains must not repeat it.
            self.consumed += self._global_batch
            yield batch

    def _positions(self) -> Iterator[int]:
        whole = self.samples // self._global_batch * self._global_batch
        if not self._training and whole < self.samples:
            whole += self._global_batch
        for position in count(self.consumed, self._global_batch):
            if not self._infinite and position >= whole:
                return
            # Validation that repeats starts each pass with a new batch.
            first = position if self._training else position % whole
            yield first + self._offset

    def state_dict(self) -> dict[str, Any]:
        """The position in the global stream, equal on all ranks, and what identifies the stream."""
        return {"consumed": self.consumed, "stream": self._stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any number of ranks, batch size and workers.

        Raises:
            DataError: the position is in another stream.
        """
        check_stream(state["stream"], self._stream)
        self.consumed = state["consumed"]


def check_stream(saved: str, current: str) -> None:
    """Raise a `DataError` if a saved position is in another stream."""
    if saved != current:
        raise DataError(
            f"the checkpoint's data position is in [{saved}], but this run reads [{current}]: "
            "restore the --dataloader options and the images, or restart the data with "
            "--checkpoint.exclude_from_loading dataloader"
        )
