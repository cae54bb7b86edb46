"""scikit-learn's handwritten digits: 1,797 grey images of 8 by 8 pixels in 10 classes.

They are installed with scikit-learn, so reading them needs no network.
"""

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from train.data.cache import DataError, one_line

if TYPE_CHECKING:
    from PIL import Image

CLASSES = tuple("0123456789")
MEAN, STD = 0.3059, 0.3761
"""Mean and standard deviation of the training images' pixels, as fractions of white."""

_VALIDATION = 360


@cache
def digits(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The images, uint8 of shape ``(n, 8, 8)``, and labels, int64 of shape ``(n,)``, of a split.

    ``n`` is 1,437 for "train" and 360 for "validation". The split never changes. Each class has
    the same share in both splits.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(
            f"--dataloader.dataset digits needs scikit-learn ({one_line(error)}): "
            "pip install 'maxp[vision]'"
        ) from error
    loaded = load_digits()
    images = np.round(loaded.images * (255 / 16)).astype(np.uint8)
    labels = loaded.target.astype(np.int64)
    held_out = _held_out(labels)
    chosen = held_out if split == "validation" else ~held_out
    return images[chosen], labels[chosen]


def _held_out(labels: np.ndarray) -> np.ndarray:
    """A mask of `_VALIDATION` images, drawn within each class in proportion to its size."""
    draws = np.random.PCG64(0).random_raw(len(labels))
    by_class = np.lexsort((draws, labels))
    # Every n-th place of the images sorted by class, so that each class has its share.
    places = np.floor(np.arange(_VALIDATION) * len(labels) / _VALIDATION).astype(int)
    mask = np.zeros(len(labels), dtype=bool)
    mask[by_class[places]] = True
    return mask


class Digits:
    """The digits of one split; an `ImageSet`."""

    where = "--dataloader.dataset digits"
    classes = CLASSES
    in_memory = True

    def __init__(self, split: str) -> None:
        self._images, self.labels = digits(split)
        content = self._images.tobytes() + self.labels.tobytes()
        self.digest = hashlib.sha256(content).hexdigest()

    def name(self, index: int) -> str:
        """The index in the split."""
        return f"digit {index}"

    def open(self, index: int) -> "Image.Image":
        """A grey image of 8 by 8 pixels."""
        from PIL import Image

        return Image.fromarray(self._images[index])
