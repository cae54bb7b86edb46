"""Image loaders of the tests, and the image data that they read."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from train.data.images import ImageDataLoader

Batch = tuple[torch.Tensor, torch.Tensor]
DIGITS = {"image_size": 8, "channels": 1}
AUGMENTED = {"augment": "timm", "auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5}
MIXED = {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1}


def loader(batch: int = 4, *, world: int = 1, rank: int = 0, **config: Any) -> ImageDataLoader:
    """A loader of ``batch`` images per rank, built as torchtitan builds it."""
    built = ImageDataLoader.Config(**config).build(
        dp_world_size=world, dp_rank=rank, tokenizer=None, seq_len=1, local_batch_size=batch,
        snapshot_every_n_steps=1,
    )  # fmt: skip
    assert isinstance(built, ImageDataLoader)
    return built


def take(data: ImageDataLoader, count: int | None = None) -> list[Batch]:
    """The next ``count`` batches of a new iterator; None takes all."""
    return [(inputs["input"], labels) for inputs, labels in islice(data, count)]


def same(first: list[Batch], second: list[Batch]) -> bool:
    """Whether batches are equal, bit for bit."""
    return len(first) == len(second) and all(
        torch.equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


def random_states() -> list[object]:
    """The states of the global generators that training and timm draw from."""
    numpy = np.random.get_state()[1]  # noqa: NPY002
    return [random.getstate(), numpy.tolist(), torch.get_rng_state().tolist()]


def picture(number: int, size: int = 10) -> Image.Image:
    """A picture of noise that depends on the number only."""
    pixels = np.random.default_rng(number).integers(0, 256, (size, size + 2, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def folder(root: Path, splits: dict[str, int], classes: str = "ab") -> Path:
    """``root/SPLIT/CLASS/N.png`` with so many images per class; a split "" has no folder."""
    number = 0
    for split, count in splits.items():
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                number += 1
                picture(number).save(root / split / name / f"{index}.png")
    return root


def corrupt(file: Path) -> None:
    """Cut a file in half."""
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def encoded(number: int, kind: str = "PNG") -> bytes:
    """The file of `picture`."""
    content = io.BytesIO()
    picture(number).save(content, kind)
    return content.getvalue()


def parquet(
    root: Path, split: str, images: Sequence[bytes], files: int = 3, **columns: Any
) -> Path:
    """A split in ImageNet-1k's layout on the hub; images are named, and labels 0, 1, 2, 0, ..."""
    import datasets

    rows = [{"bytes": x, "path": f"{split}_{i}.png"} for i, x in enumerate(images)]
    data = {"image": rows, "label": [i % 3 for i in range(len(rows))]} | columns
    features = {name: datasets.Value("int64") for name in data}
    features |= {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    whole = datasets.Dataset.from_dict(data, datasets.Features(features))
    (root / "data").mkdir(parents=True, exist_ok=True)
    for index in range(files):
        part = whole.shard(files, index, contiguous=True)
        part.to_parquet(root / "data" / f"{split}-{index:05}-of-{files:05}.parquet")
    return root


def tars(
    root: Path, split: str, images: Sequence[bytes], files: int = 3, label: str = "cls"
) -> Path:
    """A split in the layout of timm/imagenet-12k-wds: tars of .jpg and .cls or .json."""
    root.mkdir(exist_ok=True)
    for file in range(files):
        with tarfile.open(root / f"data-{split}-{file:04}.tar", "w") as tar:
            for index in range(file, len(images), files):
                target = str(index % 3) if label == "cls" else json.dumps({"label": index % 3})
                for suffix, content in (("jpg", images[index]), (label, target.encode())):
                    member = tarfile.TarInfo(f"{split}_{index:05}.{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return root
