"""Image data that cannot be used: one line that names the flag and the remedy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from image_cases import encoded, folder, loader, parquet, take, tars

from train.data.cache import DataError
from train.data.images import ImageDataLoader, count_classes

FLAG = r"--dataloader\."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnist"}, "dataset 'mnist' is unknown: choose one of digits, folder"),
        ({"image_size": 0}, "image_size 0: pass a positive number"),
        ({"image_size": -8}, "image_size -8: pass a positive number"),
        ({"limit": 0}, "limit 0: pass a positive number"),
        ({"channels": 2}, "channels 2: pass 1 or 3"),
        ({"num_workers": -1}, "num_workers -1: pass 0 or a positive number"),
        ({"shuffle_buffer": -1}, "shuffle_buffer -1: pass 0 or a positive number"),
        ({"mixup": -0.1}, "mixup -0.1: pass a number above 0, or 0 to turn it off"),
        ({"cutmix": float("nan")}, "cutmix nan: pass a number above 0"),
        ({"mixup": float("inf")}, "mixup inf: pass a number above 0"),
        ({"mixup_prob": 1.5}, "mixup_prob 1.5: pass a number from 0 to 1"),
        ({"label_smoothing": 2}, "label_smoothing 2: pass a number from 0 to 1"),
        ({"re_prob": float("nan")}, "re_prob nan: pass a number from 0 to 1"),
        ({"scale": (0.5, 0.1)}, r"scale \(0.5, 0.1\): pass two positive numbers, the smaller"),
        ({"ratio": (0, 1)}, r"ratio \(0, 1\): pass two positive numbers"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is unknown: choose one of bilinear"),
        ({"mean": (0.5,)}, "mean has 1 values: pass one for each of the 3 "),
        ({"std": (0.0, 1.0, 1.0)}, "std .*: pass positive numbers"),
        ({"crop_pct": 2.0}, "crop_pct 2.0: pass a number above 0 and at most 1"),
        ({"re_count": 0}, "re_count 0: pass a positive number"),
        ({"auto_augment": "original"}, "auto_augment original has no effect .*augment timm"),
        ({"hflip": 0.0}, "hflip 0.0 has no effect without augmentation"),
    ],
)
def test_a_setting_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=FLAG + message):
        ImageDataLoader.Config(**options)


@pytest.mark.parametrize("policy", ["nonsense", "rand-m9-foo1", "original-q3"])
def test_an_augmentation_that_timm_does_not_know(policy: str) -> None:
    with pytest.raises(DataError, match=rf"auto_augment {policy}: timm cannot read it"):
        loader(augment="timm", auto_augment=policy)


def test_mixing_needs_an_even_batch() -> None:
    with pytest.raises(DataError, match=r"--training.local_batch_size 3: .* pass an even number"):
        loader(3, mixup=0.2)


def test_a_batch_larger_than_the_data() -> None:
    with pytest.raises(DataError, match=r"1437 training images, fewer than .* lower --training"):
        loader(1500)


def empty_class(root: Path) -> None:
    folder(root, {"train": 1, "val": 1})
    (root / "train" / "c").mkdir()


def new_class(root: Path) -> None:
    folder(root, {"train": 1})
    folder(root, {"val": 1}, classes="abz")


def no_training_folder(root: Path) -> None:
    folder(root, {"val": 1})


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda root: None, r"path .*: no such folder"),
    "a file": (lambda root: root.write_text("x"), r"path .*: no such folder"),
    "no classes": (lambda root: root.mkdir(), r"path .* has no classes: put the images of each"),
    "an empty class": (empty_class, r"path .*train: class 'c' has no image .*: add some, or"),
    "no images": (
        lambda root: [(root / "train" / name).mkdir(parents=True) for name in "ab"],
        r"class 'a' has no image",
    ),
    "a new class": (new_class, r"val has a class 'z' that the training images do not have"),
    "one class": (
        lambda root: folder(root, {"": 9}, classes=["photos"]), r"has one class, photos: put the",
    ),
    "other names of splits": (
        lambda root: folder(root, {"": 9}, classes=["Testing", "Training"]),
        r"has the folders Testing, Training, which would be classes: call that of the training",
    ),
    "no train": (no_training_folder, r"has a folder val, but none called train"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
def test_a_folder_that_is_none_of_images(tmp_path: Path, case: str) -> None:
    make, message = FOLDERS[case]
    make(tmp_path / "root")
    split = "validation" if case == "a new class" else "train"
    with pytest.raises(DataError, match=message) as info:
        loader(1, dataset="folder", dataset_path=str(tmp_path / "root"), split=split)
    assert "--dataloader.dataset_path" in str(info.value)
    assert "\n" not in str(info.value)


def test_a_folder_without_validation_images(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 1})
    with pytest.raises(DataError, match=r"has a folder train, but none to validate on: name one"):
        loader(1, dataset="folder", dataset_path=str(root), split="validation")


@pytest.mark.parametrize("dataset", ["folder", "hub"])
def test_data_without_its_path(dataset: str) -> None:
    with pytest.raises(DataError, match=rf"dataset {dataset} needs --dataloader.dataset_path"):
        loader(dataset=dataset)


def test_a_number_of_classes_that_changed(tmp_path: Path) -> None:
    root = folder(tmp_path, {"train": 1, "val": 1}, classes="abc")
    config = ImageDataLoader.Config(dataset="folder", dataset_path=str(root), num_classes=2)
    message = r"has 3 classes, but --dataloader.num_classes and the model's head have 2: restore"
    with pytest.raises(DataError, match=message):
        count_classes(config)


IMAGES = [encoded(number) for number in range(6)]


def hub(path: Path, **options: Any) -> dict[str, Any]:
    return {"dataset": "hub", "dataset_path": str(path), "image_size": 8} | options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "photo"}, r"has no column 'photo': .*image_column, one of image, label,"),
        ({"label_column": "y"}, r"has no column 'y': .*label_column, one of image, label, other"),
        ({"label_column": "label.x"}, r"has no column 'label.x': .*label_column"),
        ({"image_column": "other"}, r"column 'other' holds no images .*image_column, one of image"),
        ({"num_classes": 5}, r"has 3 classes, but .* head have 5"),
        ({"split": "validation"}, r"has no split 'validation' .*train"),
    ],
)
def test_a_hub_dataset_without_what_is_asked_for(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    root = parquet(tmp_path, "train", IMAGES, files=1, other=[7] * 6)
    with pytest.raises(DataError, match=message) as info:
        take(loader(**hub(root, **options)), 1)
    assert "\n" not in str(info.value)


def test_a_label_out_of_range_names_the_image(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", IMAGES, other=[7] * 6)
    reader = loader(**hub(root, label_column="other", num_classes=4, num_workers=1))
    message = r"train_\d.png has label 7 in column 'other', but classes are 0 to 3: pass another"
    with pytest.raises(DataError, match=message):
        take(reader, 1)


def test_an_unknown_number_of_classes(tmp_path: Path) -> None:
    root = tars(tmp_path, "train", IMAGES)
    config = ImageDataLoader.Config(**hub(root))
    with pytest.raises(DataError, match=r"does not say how many classes it has: pass --"):
        count_classes(config)


def test_a_dataset_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"text": "a", "stars": 1}\n')
    with pytest.raises(DataError, match=r"has no columns of type Image: .* one of text, stars"):
        loader(**hub(tmp_path))


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"path .* is no copy of a Hugging Face image dataset"):
        loader(**hub(tmp_path))


@pytest.mark.parametrize("path", ["/no/such", "./no", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(path: str) -> None:
    with pytest.raises(DataError, match=rf"dataset_path {path}: no such folder"):
        loader(**hub(Path(path)) | {"dataset_path": path})


def test_only_corrupt_images_in_a_stream_are_an_error(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", [image[:30] for image in IMAGES], files=1)
    with pytest.raises(DataError, match=r"6 images after each other cannot be read, .*\.png"):
        take(loader(**hub(root)), 1)


def test_a_broken_file_of_a_stream_is_one_line(tmp_path: Path) -> None:
    root = parquet(tmp_path, "train", IMAGES)
    file = sorted(root.rglob("*.parquet"))[1]  # of three, of which the last one is held out
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"reading --dataloader.dataset_path .* failed \(") as info:
        take(loader(**hub(root, num_workers=1)), 8)
    assert "\n" not in str(info.value)


WAYS_OUT = r"network .* HF_TOKEN.* a local copy by --dataloader.dataset_path, or .* digits"


def test_an_unreachable_hub_is_one_line_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=rf"imagenet-1k cannot be opened .*{WAYS_OUT}") as info:
        loader(dataset="imagenet-1k")
    assert "\n" not in str(info.value)


@pytest.mark.exhaustive
def test_a_hub_that_refuses_connections_is_one_line(tmp_path: Path) -> None:
    code = """
from train.data.images import ImageDataLoader
ImageDataLoader.Config(dataset="imagenet-1k").build(
    dp_world_size=1, dp_rank=0, tokenizer=None, seq_len=1, local_batch_size=2)
"""
    root, network = Path(__file__).resolve().parents[1], {"HF_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(root), "HF_HOME": str(tmp_path)} | network,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    line = done.stderr.splitlines()[-1]
    assert line.startswith("train.data.cache.DataError: --dataloader.dataset imagenet-1k cannot")
    assert re.search(WAYS_OUT, line)
