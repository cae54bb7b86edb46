"""Image data: the embedded digits, image folders and Hugging Face image datasets."""

from train.data.images.loader import ImageDataLoader
from train.data.images.open import count_classes, images_digest

__all__ = ["ImageDataLoader", "count_classes", "images_digest"]
