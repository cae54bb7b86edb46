"""Hugging Face image datasets, streamed from the hub or read from a local copy.

A local copy is a folder in the hub's format: parquet files with a column of type ``Image``, or
webdataset tars with an image and its label (``.cls``, or ``.json`` with a field). The split
"validation" is the dataset's own, or else its split "test", or else its last training file.
"""

import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from train.data.cache import DataError, one_line

logger = logging.getLogger(__name__)

HUB = {  # repository, number of classes
    "imagenet-1k": ("ILSVRC/imagenet-1k", 1000),
    "imagenet-12k": ("timm/imagenet-12k-wds", 11821),
    "imagenet-21k": ("timm/imagenet-w21-wds", 19167),
}
LABELS = ("label", "labels", "cls", "json.label", "json.cls")
"""Columns that hold the label, if none is of type ``ClassLabel``."""

_FILES = (".parquet", ".tar")  # of many images


@dataclass(frozen=True)
class ImageStream:
    """An opened split of a Hugging Face dataset."""

    where: str
    """The flag and the repository or folder, for messages."""
    rows: Any
    """A ``datasets.IterableDataset`` whose images are not decoded."""
    image: str
    """Its column of images: dicts of ``bytes`` and ``path``."""
    label: str
    """Its column of class indices; after a dot, a field of it."""
    classes: tuple[str, ...] | None
    """Names of the classes, if the dataset has them."""
    samples: int | None
    """Number of images, if the dataset tells."""


@lru_cache(maxsize=4)  # each validation opens its images again
def open_stream(
    dataset: str, path: str | None, split: str, image: str | None, label: str | None
) -> ImageStream:
    """The images of one split.

    Args:
        dataset: a name in `HUB`, or "hub" for the repository or folder ``path``.
        image: column of images; None finds it by its type.
        label: column of labels; None finds it by its type or name.

    Raises:
        DataError: the dataset cannot be opened, or lacks the split or a column.
    """
    where, rows = _open(dataset, path, split)
    features = rows.features or {}
    image = image or _image_column(features, where)
    label = label or _label_column(features, where)
    for flag, column in (("image_column", image), ("label_column", label)):
        if _feature(features, column) is None:
            raise DataError(
                f"{where} has no column {column!r}: pass --dataloader.{flag}, one of "
                f"{', '.join(features)}"
            )
    from datasets import Image

    if not _holds_images(features.get(image)):
        raise DataError(
            f"{where}: column {image!r} holds no images but {features.get(image)}: pass "
            f"--dataloader.image_column, one of {', '.join(features)}"
        )
    rows = rows.cast_column(image, Image(decode=False))
    counts = rows.info.splits or {}
    return ImageStream(
        where=where,
        rows=rows,
        image=image,
        label=label,
        classes=_class_names(_feature(features, label)),
        samples=(counts[split].num_examples or None) if split in counts else None,
    )


def hub_classes(config: Any) -> int | None:
    """The number of classes of a Hugging Face dataset; None if it is unknown.

    Raises:
        DataError: the dataset cannot be opened, or lacks a column.
    """
    if config.dataset in HUB and config.dataset_path is None:
        return HUB[config.dataset][1]
    stream = open_stream(
        config.dataset, config.dataset_path, "train", config.image_column, config.label_column
    )
    if stream.classes is not None:
        return len(stream.classes)
    return HUB[config.dataset][1] if config.dataset in HUB else None


def _open(dataset: str, path: str | None, split: str) -> tuple[str, Any]:
    from datasets import load_dataset, load_dataset_builder

    if dataset == "hub" and path is None:
        raise DataError(
            "--dataloader.dataset hub needs --dataloader.dataset_path, a repository of the hub "
            "such as uoft-cs/cifar10, or a local copy of one"
        )
    repository = path or HUB[dataset][0]
    where = f"--dataloader.dataset_path {path}" if path else f"--dataloader.dataset {dataset}"
    folder = Path(repository).expanduser()
    if path is not None and not folder.is_dir():
        # A repository is NAMESPACE/NAME, and never a path to go up from or to start at the root.
        if dataset != "hub" or folder.is_absolute() or path.startswith(".") or path.count("/") > 1:
            raise DataError(f"{where}: no such folder")
    elif path is not None:
        repository = str(folder)
    held_out = None
    try:
        files = load_dataset_builder(repository).config.data_files or {}
        *training, last = files.get("train", [""])
        if split == "validation" and split not in files and "test" in files:
            split = "test"
        elif training and last.endswith(_FILES) and not {"validation", "test"} & set(files):
            logger.info("%s has no validation split: its file %s is held out", where, last)
            held_out = {"train": training, "validation": [last]}
        data = load_dataset(repository, data_files=held_out, split=split, streaming=True)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(f"{where} {_reason(repository, split, folder.is_dir(), error)}") from error
    return where, data


def _reason(repository: str, split: str, local: bool, error: Exception) -> str:
    if isinstance(error, ValueError) and "split" in str(error):
        return f"has no split {split!r} ({one_line(error)}): pass data that has one"
    if local:
        return (
            f"is no copy of a Hugging Face image dataset ({one_line(error)}): it must hold "
            "parquet files or webdataset tars, with train and validation in their names"
        )
    return (
        f"cannot be opened on the Hugging Face hub ({one_line(error)}): check the network and the "
        f"name {repository} (if its terms must be accepted, do so and set HF_TOKEN), pass a local "
        "copy by --dataloader.dataset_path, or pass --dataloader.dataset digits"
    )


def _image_column(features: Any, where: str) -> str:
    from datasets import Image

    columns = [name for name, feature in features.items() if isinstance(feature, Image)]
    return _only(columns, "of type Image", "image_column", features, where)


def _label_column(features: Any, where: str) -> str:
    from datasets import ClassLabel

    columns = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    columns = columns or [name for name in LABELS if _feature(features, name) is not None][:1]
    return _only(columns, "of labels", "label_column", features, where)


def _only(columns: list[str], what: str, flag: str, features: Any, where: str) -> str:
    if len(columns) != 1:
        raise DataError(
            f"{where} has {len(columns) or 'no'} column{'s' * (len(columns) != 1)} {what}: "
            f"pass --dataloader.{flag}, one of {', '.join(features)}"
        )
    return columns[0]


def _feature(features: Any, column: str) -> Any:
    """The type of a column, or after a dot, of a field of it; None if there is none."""
    if column in features:
        return features[column]
    name, _, field = column.partition(".")
    inner = features.get(name)
    return inner.get(field) if field and isinstance(inner, dict) else None


def _holds_images(feature: Any) -> bool:
    """Whether a column can be cast to ``Image``."""
    from datasets import Image, Value

    if isinstance(feature, dict):
        return {"bytes", "path"} <= set(feature)
    types = ("binary", "large_binary")
    return isinstance(feature, Image) or (isinstance(feature, Value) and feature.dtype in types)


def _class_names(feature: Any) -> tuple[str, ...] | None:
    from datasets import ClassLabel

    return tuple(feature.names) if isinstance(feature, ClassLabel) else None
