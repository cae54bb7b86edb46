"""Hugging Face image datasets, read from local copies: columns, classes and splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from image_cases import (
    AUGMENTED,
    MIXED,
    encoded,
    loader,
    parquet,
    picture,
    random_states,
    take,
    tars,
)

from train.data.images import ImageDataLoader, count_classes

IMAGES = [encoded(number) for number in range(12)]


def options(path: Path, **more: Any) -> dict[str, Any]:
    return {
        "dataset": "hub", "dataset_path": str(path), "image_size": 8, "augment": "none",
        "infinite": False,
    } | more  # fmt: skip


def pixels(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([x[y != -100] for x, y in batches])


def test_parquet_in_imagenet_layout_names_its_classes(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", IMAGES)
    assert count_classes(ImageDataLoader.Config(**options(root))) == 3
    assert loader(**options(root)).classes == ("a", "b", "c")


@pytest.mark.parametrize("label", ["cls", "json"])
def test_an_image_has_the_label_beside_it_in_the_tar(tmp_path: Path, label: str) -> None:
    root = tars(tmp_path, "train", IMAGES, label=label)
    tars(root, "validation", IMAGES[:1], files=1, label=label)
    reader = loader(1, **options(root), num_classes=3, shuffle_buffer=0)
    transform = reader._loader.dataset._recipe.transform  # type: ignore[union-attr]
    by_pixels = {transform(picture(i), 0, "").sum().item(): i % 3 for i in range(12)}
    batches = take(reader)
    assert len(batches) == len(by_pixels) == 12
    for image, labels in batches:
        assert by_pixels[image.sum().item()] == labels.item()


@pytest.mark.parametrize(
    ("dataset", "classes"),
    [("imagenet-1k", 1000), ("imagenet-12k", 11821), ("imagenet-21k", 19167)],
)
def test_the_classes_of_imagenet_are_known_without_a_network(dataset: str, classes: int) -> None:
    assert count_classes(ImageDataLoader.Config(dataset=dataset)) == classes


@pytest.mark.parametrize("make", [parquet, tars])
def test_without_a_validation_split_the_last_file_is_held_out(tmp_path: Path, make: Any) -> None:
    root = make(tmp_path, "train", IMAGES)
    train = pixels(take(loader(1, **options(root), num_classes=3)))
    held_out = pixels(take(loader(5, **options(root), num_classes=3, split="validation")))
    assert (len(train), len(held_out)) == (8, 4)
    assert len(torch.unique(torch.cat([train, held_out]), dim=0)) == 12


def test_a_test_split_is_validated_on_if_there_is_no_other(tmp_path: Path) -> None:
    parquet(tmp_path, "train", IMAGES[:9])
    root = parquet(tmp_path, "test", IMAGES[9:])
    assert len(pixels(take(loader(1, **options(root))))) == 9
    assert len(pixels(take(loader(2, **options(root), split="validation")))) == 3


@pytest.mark.parametrize(("order", "warned"), [(sorted, True), (list, False)])
def test_validation_on_few_of_the_classes_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, order: Any, warned: bool
) -> None:
    labels = order(index % 3 for index in range(24))
    root = parquet(tmp_path, "train", IMAGES * 2, label=labels)
    for _ in range(2):
        take(loader(4, **options(root), split="validation"))  # its last file is held out
    said = "the 8 images of validation have 1 of 3 classes"
    assert caplog.text.count(said) == warned
    assert caplog.text.count("images of validation have") == warned


def test_a_shuffle_buffer_reorders_and_loses_nothing(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", IMAGES, files=3)
    ordered = pixels(take(loader(2, **options(root), shuffle_buffer=0)))
    shuffled = pixels(take(loader(2, **options(root), shuffle_buffer=4)))
    assert not torch.equal(ordered, shuffled)
    assert torch.equal(torch.unique(ordered, dim=0), torch.unique(shuffled, dim=0))


def test_ranks_share_the_training_images(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", IMAGES, files=3)
    ranks = [pixels(take(loader(2, world=2, rank=r, **options(root)))) for r in (0, 1)]
    assert [len(images) for images in ranks] == [4, 4]
    assert len(torch.unique(torch.cat(ranks), dim=0)) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_leaves_the_random_numbers_of_training_alone(
    tmp_path: Path, workers: int
) -> None:
    root = parquet(tmp_path, "train", IMAGES)
    reader = loader(2, **options(root) | AUGMENTED | MIXED, num_workers=workers)
    before = random_states()
    assert len(take(reader, 2)) == 2
    assert random_states() == before
