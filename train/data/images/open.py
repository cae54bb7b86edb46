"""The images that a configuration names, and their classes."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from train.data.cache import DataError
from train.data.images.batch import ImageSet
from train.data.images.digits import CLASSES, Digits
from train.data.images.folders import ImageFolder, folder_classes
from train.data.images.hub import HUB, hub_classes

DATASETS = ("digits", "folder", *HUB, "hub")


def is_stream(dataset: str) -> bool:
    """Whether the images can only be read in their order."""
    return dataset not in ("digits", "folder")


def open_images(dataset: str, path: str | None, split: str) -> ImageSet:
    """The digits, or an image folder; a folder is listed once per process.

    Raises:
        DataError: the data cannot be used.
    """
    if dataset == "digits":
        return Digits(split)
    return _open_folder(_folder(path), split)


def images_digest(config: Any) -> str | None:
    """16 hex digits that identify an image folder's split, the same for a copy; else None.

    It is of the files' names and sizes, so an edit that keeps a file's size does not change it.

    Args:
        config: an `ImageDataLoader.Config`.

    Raises:
        DataError: the folder cannot be used.
    """
    if config.dataset != "folder":
        return None
    return _open_folder(_folder(config.dataset_path), config.split).sized_digest()[:16]


def class_names(config: Any) -> tuple[str, ...] | None:
    """The names of the classes of the digits or of an image folder, without reading images.

    Args:
        config: an `ImageDataLoader.Config`.

    Raises:
        DataError: the folder cannot be used.
    """
    if config.dataset == "digits":
        return CLASSES
    return folder_classes(_folder(config.dataset_path)) if config.dataset == "folder" else None


def count_classes(config: Any) -> int:
    """The number of classes, for the model's head, without reading images.

    Args:
        config: an `ImageDataLoader.Config`.

    Raises:
        DataError: the data cannot be used, or its number of classes is unknown or not
            ``config.num_classes``.
    """
    names = class_names(config)
    count = hub_classes(config) if names is None else len(names)
    if count is None:
        if not config.num_classes:
            raise DataError(
                f"--dataloader.dataset {config.dataset} does not say how many classes it has: "
                "pass --dataloader.num_classes"
            )
        return int(config.num_classes)
    if config.num_classes not in (0, count):
        source = f"--dataloader.dataset {config.dataset}"
        if config.dataset_path is not None:
            source = f"--dataloader.dataset_path {config.dataset_path}"
        raise DataError(
            f"{source} has {count} classes, but --dataloader.num_classes and the model's head have "
            f"{config.num_classes}: restore the classes of the data, or start a new run"
        )
    return count


def _folder(path: str | None) -> Path:
    if path is None:
        raise DataError(
            "--dataloader.dataset folder needs --dataloader.dataset_path, a folder of images"
        )
    return Path(path).expanduser()


@lru_cache(maxsize=4)  # each validation opens its images again
def _open_folder(root: Path, split: str) -> ImageFolder:
    return ImageFolder(root, split)
