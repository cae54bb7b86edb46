"""The dataloader of a run on images."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torchtitan.components.dataloader import BaseDataLoader
from torchtitan.components.loss import IGNORE_INDEX

from train.data.cache import DataError
from train.data.images.batch import MAX_UNREADABLE, Batch, Recipe, check_readable, log_skip
from train.data.images.open import DATASETS, count_classes, images_digest, is_stream, open_images
from train.data.images.sampled import SampledLoader
from train.data.images.settings import Augmented, check_augmentation
from train.data.images.streamed import StreamedLoader, open_streamed

logger = logging.getLogger(__name__)


class ImageDataLoader(BaseDataLoader):
    """One data-parallel rank's batches of images.

    Yields ``({"input": images}, labels)``. The images are float32 of shape ``(local_batch_size,
    channels, image_size, image_size)``. The labels are class indices, int64 of shape
    ``(local_batch_size,)``; for training with mixup, CutMix or label smoothing they are shares,
    float32 of shape ``(local_batch_size, num_classes)``.

    Training repeats exactly after `load_state_dict`, workers included: order, crops and mixing
    depend only on the seed and the position. For ``digits`` and ``folder`` the position does not
    depend on the number of ranks or workers; Hugging Face datasets must resume with the same ones.

    Validation reads every image once, in whole batches. Rows after the last image, and rows of
    images that cannot be read, have the label ``IGNORE_INDEX`` (-100), which torchtitan's losses
    leave out. So the validated images do not depend on the batch size.

    Raises:
        DataError: the data cannot be used; the message names the flag and the remedy.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(Augmented.Config):
        dataset: str = "digits"
        """Images to read: "digits" (scikit-learn's; needs no network), "folder" (files under
        dataset_path), "imagenet-1k", "imagenet-12k" or "imagenet-21k" (Hugging Face hub), or "hub"
        (the Hugging Face dataset dataset_path)."""

        dataset_path: str | None = None
        """For "folder": a folder with train/CLASS/* and val/CLASS/*, or with CLASS/*, of which a
        tenth is held out. For "hub": a repository of the hub, or a local copy of one (parquet or
        webdataset). For the other hub datasets: a local copy."""

        split: Literal["train", "validation"] = "train"
        """Split to read."""

        seed: int = 0
        """Seed of the order of the training images and of their augmentation."""

        infinite: bool = True
        """Whether to start another epoch at the end of the data."""

        limit: int | None = None
        """Number of images to read; None reads all. For "digits" and "folder" they are drawn once
        at random, for Hugging Face datasets they are the first ones."""

        image_size: int = 224
        """Height and width of the images in pixels."""

        channels: int = 3
        """3 for colour, 1 for grey."""

        num_classes: int = 0
        """Number of classes; 0 takes that of the data."""

        num_workers: int = 0
        """Processes per rank that read and transform images; 0 uses the training process."""

        shuffle_buffer: int = 1_000
        """For Hugging Face datasets: number of consecutive images to shuffle, which each worker
        keeps in memory; 0 keeps the dataset's order. Validation is never shuffled."""

        image_column: str | None = None
        """For Hugging Face datasets: column of images; None finds the one of type Image."""

        label_column: str | None = None
        """For Hugging Face datasets: column of class indices, or "json.label" for a field of a
        column; None finds the one of type ClassLabel, or one that is called label or cls."""

        def __post_init__(self) -> None:
            if self.dataset not in DATASETS:
                raise DataError(
                    f"--dataloader.dataset {self.dataset!r} is unknown: "
                    f"choose one of {', '.join(DATASETS)}"
                )
            for name in ("seed", "num_workers", "shuffle_buffer", "num_classes"):
                if getattr(self, name) < 0:
                    raise DataError(
                        f"--dataloader.{name} {getattr(self, name)}: pass 0 or a positive number"
                    )
            for name in ("image_size", "limit"):
                if (value := getattr(self, name)) is not None and value < 1:
                    raise DataError(f"--dataloader.{name} {value}: pass a positive number")
            if self.channels not in (1, 3):
                raise DataError(f"--dataloader.channels {self.channels}: pass 1 or 3")
            check_augmentation(self)

        def digest(self) -> str | None:
            """See `images_digest`."""
            return images_digest(self)

    def __init__(
        self,
        config: Config,
        *,
        dp_world_size: int,
        dp_rank: int,
        local_batch_size: int,
        snapshot_every_n_steps: int | None = 1,
        **_: Any,
    ) -> None:
        self.config = config
        self.num_classes = count_classes(config)
        self.skipped = 0
        """Number of images that could not be read, each counted once. With several ranks, those
        that this rank met; a resumed run has those of rank 0."""
        self._names: dict[str, None] = {}
        self._unreadable = 0
        recipe = Recipe(
            config,
            classes=self.num_classes,
            batch_size=local_batch_size,
            dp_rank=dp_rank,
            dp_world_size=dp_world_size,
        )
        self.classes: tuple[str, ...]
        """Names of the classes."""
        self._loader: SampledLoader | StreamedLoader
        if is_stream(config.dataset):
            self._loader, self.classes = open_streamed(config, recipe, snapshot_every_n_steps)
            return
        images = open_images(config.dataset, config.dataset_path, config.split)
        self._loader, self.classes = SampledLoader(images, recipe, config.limit), images.classes
        logger.info("%s %s: %s", images.where, config.split, self._loader.stream)

    @property
    def samples(self) -> int | None:
        """Number of images in one epoch; None if it is unknown."""
        return self._loader.samples

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for batch in self._loader:
            if isinstance(batch, DataError):
                raise batch
            self._count(batch)
            yield {"input": batch.images}, batch.labels

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was yielded, and the skipped images."""
        return self._loader.state_dict() | {"skipped": list(self._names)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a saved position; an empty state is the beginning.

        Raises:
            DataError: the position is in other data, or (Hugging Face datasets) was saved with
                another number of ranks or workers.
        """
        if not state_dict:
            return
        self._loader.load_state_dict(state_dict)
        self._names = dict.fromkeys(state_dict["skipped"])
        self.skipped = len(self._names)

    def _count(self, batch: Batch) -> None:
        """Count and name the images that were skipped for a batch.

        Raises:
            DataError: too many images of the validation data cannot be read.
        """
        for name, reason in batch.skipped.items():
            if name not in self._names:
                self._names[name] = None
                log_skip(name, reason, len(self._names))
        self.skipped = len(self._names)
        if bool((batch.labels != IGNORE_INDEX).any()):
            self._unreadable = 0
            return
        self._unreadable += len(batch.skipped)
        check_readable(
            self._unreadable,
            min(MAX_UNREADABLE, self.samples or MAX_UNREADABLE),
            f"--dataloader.dataset {self.config.dataset} {self.config.split}",
            batch.skipped,
        )
