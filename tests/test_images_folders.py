"""Image folders: classes, splits, and images that cannot be read."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from image_cases import corrupt, folder, loader, picture, take
from PIL import Image

from train.data.cache import DataError
from train.data.images import ImageDataLoader, count_classes
from train.data.images.folders import ImageFolder

PLAIN = {"dataset": "folder", "augment": "none", "image_size": 8}


HELD_OUT = ["a/1.png", "a/19.png"] + [f"b/{number}.png" for number in (25, 30, 38, 45, 52)]


def pixels(batches: list[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([x[y != -100] for x, y in batches])


def test_classes_are_the_sorted_folders(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 2, "val": 1}, classes=["b10", "b2", "a", "B"])
    (tmp_path / "train" / ".hidden").mkdir()
    reader = loader(**PLAIN, dataset_path=str(root))
    assert reader.classes == ("B", "a", "b10", "b2")
    config = ImageDataLoader.Config(**PLAIN, dataset_path=str(root))
    assert count_classes(config) == 4


def test_an_image_has_the_class_of_its_folder(tmp_path: Path) -> None:
    for index, name in enumerate(["black", "white"]):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(4):
            colour = (255 * index,) * 3
            Image.new("RGB", (9, 9), colour).save(tmp_path / "train" / name / f"{number}.png")
    reader = loader(4, **PLAIN, dataset_path=str(tmp_path), infinite=False)
    for images, labels in take(reader):
        assert (images.mean((1, 2, 3)) > 0).long().tolist() == labels.tolist()


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_the_validation_folder_has_one_of_three_names(tmp_path: Path, name: str) -> None:
    root = folder(tmp_path, {"train": 3, name: 2})
    reader = loader(4, **PLAIN, dataset_path=str(root), split="validation", infinite=False)
    assert reader.samples == len(torch.unique(pixels(take(reader)), dim=0)) == 4


def test_without_split_folders_a_tenth_is_held_out_by_its_path(tmp_path: Path) -> None:
    root = folder(tmp_path, {"": 60})
    train, held_out = (ImageFolder(root, split) for split in ("train", "validation"))
    names = [{s.name(i) for i in range(len(s.labels))} for s in (train, held_out)]
    assert names[0].isdisjoint(names[1])
    assert len(names[0] | names[1]) == 120
    assert sorted(Path(name).relative_to(root).as_posix() for name in names[1]) == HELD_OUT
    picture(0).save(root / "a" / "another.png")
    later = ImageFolder(root, "validation")
    kept = {later.name(i) for i in range(len(later.labels))} - {str(root / "a" / "another.png")}
    assert kept == names[1]


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 1, "val": 1})
    (root / "train" / "a" / "more").mkdir()
    picture(9).save(root / "train" / "a" / "more" / "x.PNG")
    (root / "train" / "a" / "notes.txt").write_text("no image")
    assert ImageFolder(root, "train").labels.tolist() == [0, 0, 1]


def test_a_corrupt_training_image_is_skipped_counted_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = folder(tmp_path, {"train": 4, "val": 1})
    bad = root / "train" / "b" / "2.png"
    corrupt(bad)
    (root / "train" / "a" / "1.png").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        reader = loader(2, **PLAIN, dataset_path=str(root))
        images = pixels(take(reader, 8))
    assert len(torch.unique(images, dim=0)) == 6
    assert reader.skipped == 2
    warnings = [r.getMessage() for r in caplog.records if r.name.startswith("train")]
    assert len(warnings) == 2
    assert f"skipped {bad}: it cannot be read (OSError: " in "".join(warnings)


def test_a_corrupt_image_leaves_the_others_in_their_places(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 8, "val": 1})
    before = pixels(take(loader(4, **PLAIN, dataset_path=str(root)), 8))
    corrupt(root / "train" / "b" / "2.png")
    after = pixels(take(loader(4, **PLAIN, dataset_path=str(root)), 8))
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert sum(changed) == 2  # once per epoch


def test_a_corrupt_validation_image_is_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 1, "val": 4})
    options = PLAIN | {"dataset_path": str(root), "split": "validation", "infinite": False}
    whole = pixels(take(loader(3, **options)))
    corrupt(root / "val" / "a" / "0.png")
    reader = loader(3, **options)
    left = pixels(take(reader))
    assert (len(whole), len(left), reader.skipped) == (8, 7, 1)
    assert all(any(torch.equal(image, other) for other in whole) for image in left)


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize("workers", [0, 1])
def test_only_corrupt_images_are_an_error(tmp_path: Path, split: str, workers: int) -> None:
    root = folder(tmp_path, {"train": 2, "val": 2})
    for file in root.rglob("*.png"):
        corrupt(file)
    reader = loader(4, **PLAIN, dataset_path=str(root), split=split, num_workers=workers)
    with pytest.raises(DataError, match=r"4 images after each other cannot be read.*\.png") as info:
        take(reader, 3)
    assert "\n" not in str(info.value)


def test_grey_of_16_bits_keeps_its_shades_and_of_32_is_skipped(tmp_path: Path) -> None:
    shades = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    tiff, pgm = shades.astype(">u2").tobytes(), b"P5 8 8 65535\n" + shades.astype(">u2").tobytes()
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "val" / name).mkdir(parents=True)
        picture(0).save(tmp_path / "train" / name / "0.png")
    to = tmp_path / "val" / "a"
    Image.fromarray((shades >> 8).astype(np.uint8)).save(to / "8.png")
    Image.fromarray(shades).save(to / "16.png")
    Image.fromarray(shades).save(to / "little.tif")
    Image.frombytes("I;16B", (8, 8), tiff).save(to / "big.tiff")
    (to / "16.pgm").write_bytes(pgm)
    Image.fromarray(shades.astype(np.float32)).save(to / "float.tif")
    for channels in (1, 3):
        options = PLAIN | {"channels": channels, "split": "validation", "infinite": False}
        reader = loader(6, **options, dataset_path=str(tmp_path))
        images = pixels(take(reader))
        assert len(images) == 5
        assert torch.equal(images, images[:1].expand(5, -1, -1, -1))
        assert len(images[0, 0].unique()) == 64
        assert reader.skipped == 1


def test_a_file_that_is_gone_is_skipped(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 4, "val": 1})
    reader = loader(4, **PLAIN, dataset_path=str(root))
    (root / "train" / "a" / "0.png").unlink()
    take(reader, 2)
    assert reader.skipped == 1
