"""timm's transforms of images and its mixing of batches, with random choices that repeat."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from train.data.cache import DataError, one_line
from train.data.images import digits
from train.data.images.seeding import seeded
from train.data.images.settings import augments

if TYPE_CHECKING:
    from PIL import Image

_OF_16_BITS = ("PNG", "PPM")  # of these files, mode "I" has values of 16 bits


class Transform:
    """Makes a tensor of an image, with timm's transforms.

    Args:
        config: an `ImageDataLoader.Config`.

    Raises:
        DataError: timm is not installed, or does not know the ``auto_augment``.
    """

    def __init__(self, config: Any) -> None:
        self.random = config.split == "train" and augments(config)
        self._seed = config.seed
        self._mode = "L" if config.channels == 1 else "RGB"
        create_transform = _timm_data().create_transform
        mean, std = normalisation(config)
        shape = {"input_size": config.image_size, "mean": mean, "std": std}
        if not self.random:
            self._transform: Callable[[Image.Image], torch.Tensor] = create_transform(
                **shape,
                interpolation=config.interpolation,
                crop_pct=crop(config),
            )
            return
        try:
            self._transform = create_transform(
                **shape,
                is_training=True,
                scale=config.scale,
                ratio=config.ratio,
                hflip=config.hflip,
                vflip=config.vflip,
                color_jitter=config.color_jitter or None,
                auto_augment=config.auto_augment,
                interpolation=config.train_interpolation,
                re_prob=config.re_prob,
                re_mode=config.re_mode,
                re_count=config.re_count,
            )
        except (AssertionError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"--dataloader.auto_augment {config.auto_augment}: timm cannot read it "
                f"({one_line(error)}): pass a value such as rand-m9-mstd0.5-inc1 or original"
            ) from error

    def decode(self, image: "Image.Image") -> "Image.Image":
        """Read all pixels of an image, in grey or colour.

        Raises:
            Exception: of any type, if the image is corrupt.
        """
        return _of_8_bits(image).convert(self._mode)

    def __call__(self, image: "Image.Image", epoch: int, key: int | str) -> torch.Tensor:
        """A float32 tensor of shape ``(channels, image_size, image_size)``.

        Args:
            image: from `decode`.
            epoch: the number of complete passes over the data.
            key: what identifies the image; with the seed and epoch, it fixes the random choices.
        """
        if not self.random:
            return self._transform(image)
        with seeded(self._seed, epoch, key):
            return self._transform(image)


def _of_8_bits(image: "Image.Image") -> "Image.Image":
    """An image with pixels of at most 8 bits. Pillow's ``convert`` makes larger values white.

    Raises:
        ValueError: its pixels have 32 bits, so that it is not known which value is white.
    """
    from PIL import Image

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _OF_16_BITS):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("a pixel has 32 bits; save the image with 8 or 16")
    return image


class Mixing:
    """timm's mixup, CutMix and label smoothing of a training batch."""

    def __init__(self, config: Any, classes: int) -> None:
        self._classes = classes
        self._seed = config.seed
        self._smoothing = config.label_smoothing
        self._labels = _timm_data().mixup.mixup_target
        self._mixup = None
        if config.mixup or config.cutmix:
            self._mixup = _timm_data().Mixup(
                mixup_alpha=config.mixup,
                cutmix_alpha=config.cutmix,
                prob=config.mixup_prob,
                switch_prob=config.mixup_switch_prob,
                mode=config.mixup_mode,
                label_smoothing=config.label_smoothing,
                num_classes=classes,
            )

    def __call__(
        self, images: torch.Tensor, labels: torch.Tensor, *key: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mixed images, and labels as float32 shares of shape ``(batch, classes)``.

        Args:
            images: shape ``(batch, channels, image_size, image_size)``; may be changed in place.
            labels: class indices, shape ``(batch,)``.
            key: what identifies the batch; with the seed, it fixes the random choices.
        """
        if self._mixup is None:
            return images, self._labels(labels, self._classes, 1.0, self._smoothing)
        with seeded(self._seed, "mix", *key):
            mixed: tuple[torch.Tensor, torch.Tensor] = self._mixup(images, labels)
            return mixed


def normalisation(config: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, as fractions of white."""
    if config.dataset == "digits":
        defaults = ((digits.MEAN,) * config.channels, (digits.STD,) * config.channels)
    elif config.channels == 1:
        defaults = ((0.5,), (0.5,))
    else:
        defaults = (_timm_data().IMAGENET_DEFAULT_MEAN, _timm_data().IMAGENET_DEFAULT_STD)
    return config.mean or defaults[0], config.std or defaults[1]


def crop(config: Any) -> float:
    """Side of the centre crop relative to the resized image, without random transforms."""
    whole = 1.0 if not augments(config) else _timm_data().DEFAULT_CROP_PCT
    return float(config.crop_pct or whole)


def _timm_data() -> Any:
    """The module ``timm.data``; its import takes seconds.

    Raises:
        DataError: timm or torchvision cannot be imported.
    """
    from train import torchvision_compat

    torchvision_compat.install()
    try:
        import timm.data
        import timm.data.mixup
    except (ImportError, RuntimeError) as error:
        raise DataError(
            f"image data needs timm and torchvision ({one_line(error)}): pip install 'maxp[vision]'"
        ) from error
    return timm.data
