"""What the sources of images have in common: an image set, and a batch of a worker."""

import logging
from functools import cache
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torchtitan.components.loss import IGNORE_INDEX

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
    """Class indices, int64, shape ``(batch,)``; or shares of classes, float32, ``(batch, classes)``.
    In validation, `IGNORE_INDEX` where there is no image: after the last one, or where it cannot be
    read."""
    skipped: dict[str, str]
    """Images that could not be read for this batch: the reason by name."""


def filled(
    images: list[torch.Tensor], labels: list[int], size: int, shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a batch of ``size``; missing ones are zeros with `IGNORE_INDEX`."""
    missing = size - len(images)
    return (
        torch.stack([*images, *[torch.zeros(shape)] * missing]),
        torch.tensor([*labels, *[IGNORE_INDEX] * missing], dtype=torch.int64),
    )


@cache  # once per process: validation reads the same images again and again
def log_skip(name: str, reason: str) -> None:
    """Name an image that cannot be read."""
    logger.warning("skipped %s: it cannot be read (%s)", name, reason)
