"""What the sources of images have in common: an image set, and a batch of a worker."""

import logging
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torchtitan.components.loss import IGNORE_INDEX

from train.data.cache import DataError
from train.data.images.settings import mixes
from train.data.images.transforms import Mixing, Transform

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)

MAX_UNREADABLE = 100
"""Consecutive images that cannot be read, after which the data counts as unusable."""


class ImageSet(Protocol):
    """Images that can be read in any order."""

    where: str
    """The flag and the folder, for messages."""
    classes: tuple[str, ...]
    labels: np.ndarray
    """Class indices, int64, shape ``(images,)``."""
    digest: str
    """Identifies the images and their labels."""

    in_memory: bool
    """Whether the images are few and in memory, so that their tensors can be, too."""

    def name(self, index: int) -> str:
        """How messages call an image."""

    def open(self, index: int) -> "Image.Image":
        """An image, of which not all pixels may have been read yet.

        Raises:
            Exception: of any type, if it cannot be read.
        """


class Batch(NamedTuple):
    """A batch as a worker makes it."""

    images: torch.Tensor
    """float32, shape ``(batch, channels, image_size, image_size)``."""
    labels: torch.Tensor
    """Class indices, int64, shape ``(batch,)``; or shares, float32, shape ``(batch, classes)``. In
    validation, `IGNORE_INDEX` after the last image, and where one cannot be read."""
    skipped: dict[str, str]
    """Images that could not be read for this batch: the reason by name."""


class Draft:
    """The images of a batch that is being made."""

    def __init__(self) -> None:
        self.images: list[torch.Tensor] = []
        self.labels: list[int] = []
        self.skipped: dict[str, str] = {}

    def add(self, image: torch.Tensor, label: int) -> None:
        """Add an image of shape ``(channels, image_size, image_size)``."""
        self.images.append(image)
        self.labels.append(label)


class Recipe:
    """How one rank's batches are made.

    Args:
        config: an `ImageDataLoader.Config`.
        classes: number of classes.

    Raises:
        DataError: timm is not installed, or the batch cannot be mixed.
    """

    def __init__(
        self, config: Any, *, classes: int, batch_size: int, dp_rank: int, dp_world_size: int
    ) -> None:
        self.training = config.split == "train"
        self.seed = config.seed
        self.infinite = config.infinite
        self.num_workers = config.num_workers
        self.classes = classes
        self.batch_size = batch_size
        self.dp_rank = dp_rank
        self.dp_world_size = dp_world_size
        self.global_batch = batch_size * dp_world_size
        self.transform = Transform(config)
        self._shape = (config.channels, config.image_size, config.image_size)
        self._mixing = Mixing(config, classes) if self.training and mixes(config) else None
        if self.training and (config.mixup or config.cutmix) and batch_size % 2:
            raise DataError(
                f"--training.local_batch_size {batch_size}: --dataloader.mixup and cutmix mix "
                "pairs of images: pass an even number"
            )

    def batch(self, draft: Draft, *key: int) -> Batch:
        """A whole batch; images that are missing are zeros with the label `IGNORE_INDEX`.

        Args:
            draft: at most `batch_size` images.
            key: what identifies the batch; with the seed, it fixes the mixing.
        """
        missing = self.batch_size - len(draft.images)
        made = (
            torch.stack([*draft.images, *[torch.zeros(self._shape)] * missing]),
            torch.tensor([*draft.labels, *[IGNORE_INDEX] * missing], dtype=torch.int64),
        )
        if self._mixing is not None:
            made = self._mixing(*made, *key)
        return Batch(*made, draft.skipped)


def check_readable(count: int, most: int, where: str, skipped: dict[str, str]) -> None:
    """Raise a `DataError` if ``count`` images after each other, ``most`` or more, are unreadable.

    Args:
        skipped: unreadable images, of which the last one is named.
    """
    if count >= most:
        name, reason = next(reversed(skipped.items()))
        raise DataError(
            f"{where}: {count} images after each other cannot be read, the last one is {name} "
            f"({reason}): check the files"
        )


@cache  # once per process: validation reads the same images again and again
def log_skip(name: str, reason: str, count: int) -> None:
    """Name an image that cannot be read, the ``count``-th one of its split."""
    logger.warning("skipped %s: it cannot be read (%s); %d skipped so far", name, reason, count)
