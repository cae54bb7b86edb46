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
from train.data.images.batch import MAX_UNREADABLE, Batch, Draft, ImageSet, Recipe, check_readable
from train.data.windows import stream_entries, window_order
from train.data.workers import ignore_signals, signals_held


class SampledBatches(Dataset[Batch | DataError]):
    """The batch that begins at a position of the global stream of images.

    Args:
        limit: number of images to read, drawn once for all epochs; None reads all.
    """

    def __init__(self, images: ImageSet, recipe: Recipe, limit: int | None) -> None:
        self.order = window_order(len(images.labels), 0, 0)[:limit]
        self._images = images
        self._recipe = recipe
        # Images that are in memory, and transformed the same way each time.
        self._made: dict[int, torch.Tensor] | None = (
            {} if images.in_memory and not recipe.transform.random else None
        )

    def __getitem__(self, first: int) -> Batch | DataError:
        """The batch of the positions from ``first`` on; in validation, of places in the order.

        An error is returned, because torch makes many lines of one that a worker raises.
        """
        try:
            return self._training(first) if self._recipe.training else self._validation(first)
        except DataError as error:
            return error

    def _training(self, first: int) -> Batch:
        draft = Draft()
        for position in range(first, first + self._recipe.batch_size):
            draft.add(*self._readable(position, draft.skipped))
        return self._recipe.batch(draft, first)

    def _validation(self, first: int) -> Batch:
        draft = Draft()
        for index in self.order[first : first + self._recipe.batch_size]:
            if (image := self._read(int(index), 0, draft.skipped)) is not None:
                draft.add(image, int(self._images.labels[index]))
        return self._recipe.batch(draft)

    def _readable(self, position: int, skipped: dict[str, str]) -> tuple[torch.Tensor, int]:
        """The first image from ``position`` on that can be read, and its label."""
        size = len(self.order)
        tries = min(size, MAX_UNREADABLE)
        for place in range(position, position + tries):
            epoch, entry = (int(x[0]) for x in stream_entries(place, 1, size, self._recipe.seed))
            index = int(self.order[entry])
            if (image := self._read(index, epoch, skipped)) is not None:
                return image, int(self._images.labels[index])
        check_readable(tries, tries, self._images.where, skipped)
        raise AssertionError

    def _read(self, index: int, epoch: int, skipped: dict[str, str]) -> torch.Tensor | None:
        if self._made is not None and index in self._made:
            return self._made[index]
        transform = self._recipe.transform
        try:
            image = transform.decode(self._images.open(index))
        except Exception as error:  # Pillow raises many types for corrupt files
            skipped[self._images.name(index)] = one_line(error)
            return None
        made = transform(image, epoch, index)
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

    def __init__(self, images: ImageSet, recipe: Recipe, limit: int | None) -> None:
        self._batches = SampledBatches(images, recipe, limit)
        self._recipe = recipe
        self.samples = len(self._batches.order)
        self.consumed = 0
        """Number of positions that all ranks together have taken."""
        self.stream = (
            f"{self.samples} images of {len(images.classes)} classes ({images.digest[:12]}), "
            f"seed {recipe.seed}"
        )
        """What identifies the global stream."""
        if recipe.training and self.samples < recipe.global_batch:
            raise DataError(
                f"{images.where} has {self.samples} training images, fewer than one batch of "
                f"{recipe.batch_size} on each of {recipe.dp_world_size} ranks: lower "
                "--training.local_batch_size, or use more images"
            )

    def __iter__(self) -> Iterator[Batch | DataError]:
        loader = DataLoader(
            self._batches,
            batch_size=None,
            sampler=self._positions(),
            num_workers=self._recipe.num_workers,
            worker_init_fn=ignore_signals,
            generator=torch.Generator(),  # else it draws from the global one
        )
        with signals_held():
            batches = iter(loader)
        for batch in batches:
            # Before the yield: a checkpoint written while this batch trains must not repeat it.
            self.consumed += self._recipe.global_batch
            yield batch

    def _positions(self) -> Iterator[int]:
        step, training = self._recipe.global_batch, self._recipe.training
        batches = self.samples // step if training else -(-self.samples // step)
        for position in count(self.consumed, step):
            if not self._recipe.infinite and position >= batches * step:
                return
            # Validation that repeats starts each pass with a new batch.
            first = position if training else position % (batches * step)
            yield first + self._recipe.batch_size * self._recipe.dp_rank

    def state_dict(self) -> dict[str, Any]:
        """The position in the global stream, equal on all ranks, and what identifies the stream."""
        return {"consumed": self.consumed, "stream": self.stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any number of ranks, batch size and workers.

        Raises:
            DataError: the position is in another stream.
        """
        check_stream(state["stream"], self.stream)
        self.consumed = state["consumed"]


def check_stream(saved: str, current: str) -> None:
    """Raise a `DataError` if a saved position is in another stream."""
    if saved != current:
        raise DataError(
            f"the checkpoint's data position is in [{saved}], but this run reads [{current}]: "
            "restore the --dataloader options and the images, or restart the data with "
            "--checkpoint.exclude_from_loading dataloader"
        )
