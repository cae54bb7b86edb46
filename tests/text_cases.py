"""Small random texts, and a tokenizer for them, that the tests of the data share."""

import random
from pathlib import Path

from train.data.corpus import Document, train_tokenizer
from train.data.store import DocumentEncoder

VOCAB_SIZE = 300


def texts(count: int = 100) -> list[str]:
    """Different texts of 5 to 60 words; the first ones are the same for any count."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefgh", k=draw.randint(2, 7))) for _ in range(80)]
    return [" ".join([f"{i}", *draw.choices(words, k=draw.randint(4, 59))]) for i in range(count)]


def documents(count: int = 100) -> list[Document]:
    """The texts as files ``0.py``, ``1.py``, ..."""
    return [Document(f"{i}.py", text) for i, text in enumerate(texts(count))]


def small_encoder(folder: Path) -> DocumentEncoder:
    """A tokenizer of 300 tokens, saved to ``folder``."""
    return train_tokenizer(texts(), folder, VOCAB_SIZE)
