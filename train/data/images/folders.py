"""Image folders: ``ROOT/{train,val}/CLASS/*`` or ``ROOT/CLASS/*``.

Classes are the folders' names, sorted as torchvision sorts them (``ImageFolder``). The validation
folder may be called val, validation or test. Without a folder called train, every image whose
path's hash is divisible by `HELD_OUT_EVERY` is held out, so the split of a file never changes.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from train.data.cache import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""The files that count as images, those of torchvision's ``ImageFolder``."""
HELD_OUT_EVERY = 10

_FLAG = "--dataloader.dataset_path"
_VALIDATION = ("val", "validation", "test")
_TRAINING_ALIKE = {"train", "training"}
_VALIDATION_ALIKE = {*_VALIDATION, "valid", "testing"}


class ImageFolder:
    """The images of one split of a folder; an `ImageSet`.

    Raises:
        DataError: the folder is missing, has no classes or images, or a class has none.
    """

    in_memory = False

    def __init__(self, root: Path, split: str) -> None:
        self.where = f"{_FLAG} {root}"
        self.classes = folder_classes(root)
        training = _training_folder(root)
        if training == root:
            folder, held_out = root, split == "validation"
        else:
            folder, held_out = training if split == "train" else _validation_folder(root), None
            self._check_classes(folder)
        self._folder = folder
        self._files: list[str] = []
        labels = []
        for label, name in enumerate(self.classes):
            files = [
                file
                for file in _images(folder, name)
                if held_out is None or held_out == _is_held_out(file)
            ]
            if not files and split == "train":
                raise DataError(
                    f"{_FLAG} {folder}: class {name!r} has no image"
                    + ("" if held_out is None else " that is not held out")
                    + f" (*{', *'.join(SUFFIXES)}): add some, or remove its folder"
                )
            self._files += files
            labels += [label] * len(files)
        if not self._files:
            raise DataError(
                f"{_FLAG} {folder} has no image for {split} (*{', *'.join(SUFFIXES)}): add some"
                + (f", or make {root}/train and {root}/val" if held_out else "")
            )
        self.labels = np.array(labels, dtype=np.int64)
        listing = "\n".join([*self.classes, "", *self._files])
        self.digest = hashlib.sha256(os.fsencode(listing)).hexdigest()

    def name(self, index: int) -> str:
        """The path of the image's file."""
        return str(self._folder / self._files[index])

    def open(self, index: int) -> "Image.Image":
        """Open the image's file with Pillow."""
        from PIL import Image

        return Image.open(self._folder / self._files[index])

    def sized_digest(self) -> str:
        """Identifies the images, their labels and the sizes of their files."""
        digest = hashlib.sha256(self.digest.encode())
        for file in self._files:
            try:
                size = os.stat(self._folder / file).st_size
            except OSError:  # it counts as unreadable
                size = -1
            digest.update(f" {size}".encode())
        return digest.hexdigest()

    def _check_classes(self, folder: Path) -> None:
        for name in _subfolders(folder):
            if name not in self.classes:
                raise DataError(
                    f"{_FLAG}: {folder} has a class {name!r} that the training images do not have: "
                    "remove it, or add it to the training images"
                )


def folder_classes(root: Path) -> tuple[str, ...]:
    """The names of the classes of an image folder, without reading its images.

    Raises:
        DataError: the folder is missing, has less than two classes, or its classes are splits.
    """
    if not root.is_dir():
        raise DataError(f"{_FLAG} {root}: no such folder")
    folder = _training_folder(root)
    if folder == root and (validation := set(_subfolders(root)) & set(_VALIDATION)):
        raise DataError(
            f"{_FLAG} {root} has a folder {min(validation)}, but none called train: "
            "put the classes of the training images in one called train"
        )
    classes = tuple(_subfolders(folder))
    lower = {name.lower() for name in classes}
    if folder == root and lower & _TRAINING_ALIKE and lower & _VALIDATION_ALIKE:
        raise DataError(
            f"{_FLAG} {root} has the folders {', '.join(classes)}, which would be classes: call "
            "that of the training images train, and that of the held-out ones val"
        )
    if len(classes) < 2:
        raise DataError(
            f"{_FLAG} {folder} has {f'one class, {classes[0]}' if classes else 'no classes'}: put "
            f"the images of each class in a folder of its own ({folder}/CLASS/NAME.jpg)"
        )
    return classes


def _training_folder(root: Path) -> Path:
    return root / "train" if (root / "train").is_dir() else root


def _validation_folder(root: Path) -> Path:
    for name in _VALIDATION:
        if (root / name).is_dir():
            return root / name
    raise DataError(
        f"{_FLAG} {root} has a folder train, but none to validate on: name one "
        f"{' or '.join(_VALIDATION)}"
    )


def _subfolders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".")
    )


def _images(folder: Path, name: str) -> Iterator[str]:
    """Paths of a class's images relative to ``folder``, sorted, with those in its subfolders."""
    for parent, folders, files in os.walk(folder / name, followlinks=True):
        folders.sort()
        for file in sorted(files):
            if file.lower().endswith(SUFFIXES) and not file.startswith("."):
                yield os.path.relpath(os.path.join(parent, file), folder)


def _is_held_out(file: str) -> bool:
    digest = hashlib.sha256(os.fsencode(file.replace(os.sep, "/"))).digest()
    return int.from_bytes(digest[:8], "big") % HELD_OUT_EVERY == 0
