"""Image data: the embedded digits, image folders and Hugging Face image datasets."""

from train.data.images.loader import ImageDataLoader
from train.data.images.open import class_names, count_classes

__all__ = ["ImageDataLoader", "class_names", "count_classes"]
