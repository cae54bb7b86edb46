"""How images are augmented, mixed and normalised, under the names that timm's users know.

Fields of transforms have the names of ``timm.data.create_transform``, and fields of mixing those
of timm's ``train.py``. The checks of their values are in `check_augmentation`.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

from torchtitan.components.dataloader import BaseDataLoader

from train.data.cache import DataError


class Augmented(BaseDataLoader):
    """Holds the fields of augmentation, which `ImageDataLoader.Config` extends."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        augment: Literal["none", "timm"] | None = None
        """Random transforms of training images: "timm" uses the fields below, "none" only resizes,
        crops and normalises. By default "none" for the digits and "timm" for other data."""

        scale: tuple[float, float] = (0.08, 1.0)
        """Range of the area of a random crop, relative to the image."""

        ratio: tuple[float, float] = (3 / 4, 4 / 3)
        """Range of the aspect ratio of a random crop."""

        hflip: float = 0.5
        """Probability of a horizontal flip."""

        vflip: float = 0.0
        """Probability of a vertical flip."""

        color_jitter: float = 0.4
        """Strength of the jitter of brightness, contrast and saturation. timm does not apply it
        together with auto_augment."""

        auto_augment: str | None = None
        """AutoAugment, RandAugment or AugMix in timm's notation, such as "rand-m9-mstd0.5-inc1"."""

        re_prob: float = 0.0
        """Probability of random erasing."""

        re_mode: Literal["const", "rand", "pixel"] = "pixel"
        """What fills an erased rectangle: zeros, one random colour, or random pixels."""

        re_count: int = 1
        """Largest number of erased rectangles per image."""

        train_interpolation: str = "random"
        """Resampling of random crops: "bilinear", "bicubic", or "random" for either."""

        interpolation: str = "bicubic"
        """Resampling without augmentation, as in validation."""

        crop_pct: float | None = None
        """Side of the centre crop relative to the resized image, without augmentation. By default
        1 where `augment` is "none", and timm's 0.875 otherwise."""

        mean: tuple[float, ...] | None = None
        """Mean per channel, as fractions of white, that is subtracted. By default the digits' own,
        ImageNet's for other data of 3 channels, and 0.5 for 1 channel."""

        std: tuple[float, ...] | None = None
        """Standard deviation per channel, by which images are divided. Defaults as for `mean`."""

        mixup: float = 0.0
        """Alpha of mixup (https://arxiv.org/abs/1710.09412); 0 turns it off."""

        cutmix: float = 0.0
        """Alpha of CutMix (https://arxiv.org/abs/1905.04899); 0 turns it off."""

        mixup_prob: float = 1.0
        """Probability of mixing, if mixup or cutmix is on."""

        mixup_switch_prob: float = 0.5
        """Probability of CutMix, if both are on."""

        mixup_mode: Literal["batch", "pair", "elem"] = "batch"
        """Whether mixing is drawn per batch, per pair of images, or per image."""

        label_smoothing: float = 0.0
        """Share of each training label that is spread over all classes."""


_TRANSFORMS = (
    *("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment"),
    *("re_prob", "re_mode", "re_count", "train_interpolation"),
)
_PROBABILITIES = (
    *("hflip", "vflip", "re_prob", "mixup_prob", "mixup_switch_prob", "label_smoothing"),
)
_INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")


def augments(config: Any) -> bool:
    """Whether training images are transformed at random."""
    return bool((config.augment or ("none" if config.dataset == "digits" else "timm")) == "timm")


def mixes(config: Any) -> bool:
    """Whether training labels are shares of classes, not indices."""
    return any((config.mixup, config.cutmix, config.label_smoothing))


def check_augmentation(config: Any) -> None:
    """Check the fields of `Augmented.Config`.

    Raises:
        DataError: a value is out of its range, or has no effect.
    """
    for name in _PROBABILITIES:
        if not 0 <= (value := getattr(config, name)) <= 1:
            raise DataError(f"--dataloader.{name} {value}: pass a number from 0 to 1")
    for name in ("mixup", "cutmix", "color_jitter"):
        if not 0 <= (value := getattr(config, name)) < float("inf"):
            raise DataError(
                f"--dataloader.{name} {value}: pass a number above 0, or 0 to turn it off"
            )
    for name in ("scale", "ratio"):
        low, high = value = getattr(config, name)
        if not 0 < low <= high <= (1 if name == "scale" else float("inf")):
            raise DataError(
                f"--dataloader.{name} {value}: pass two positive numbers, the smaller one first"
                + (", at most 1" if name == "scale" else "")
            )
    if config.re_count < 1:
        raise DataError(f"--dataloader.re_count {config.re_count}: pass a positive number")
    if config.crop_pct is not None and not 0 < config.crop_pct <= 1:
        raise DataError(
            f"--dataloader.crop_pct {config.crop_pct}: pass a number above 0 and at most 1"
        )
    for name in ("train_interpolation", "interpolation"):
        choices = _INTERPOLATIONS + (("random",) if name == "train_interpolation" else ())
        if (value := getattr(config, name)) not in choices:
            raise DataError(
                f"--dataloader.{name} {value!r} is unknown: choose one of {', '.join(choices)}"
            )
    for name in ("mean", "std"):
        value = getattr(config, name)
        if value is not None and len(value) != config.channels:
            raise DataError(
                f"--dataloader.{name} has {len(value)} values: pass one for each of the "
                f"{config.channels} --dataloader.channels"
            )
    if config.std is not None and not min(config.std) > 0:
        raise DataError(f"--dataloader.std {config.std}: pass positive numbers")
    if not augments(config):
        defaults = {field.name: field.default for field in fields(Augmented.Config)}
        for name in _TRANSFORMS:
            if (value := getattr(config, name)) != defaults[name]:
                raise DataError(
                    f"--dataloader.{name} {value} has no effect without augmentation: "
                    "pass --dataloader.augment timm"
                )
