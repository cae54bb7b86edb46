"""Random choices that depend on a key only.

timm's transforms and Mixup, and torchvision's transforms, draw from the global generators of
Python, NumPy and torch. They are seeded for one image or batch at a time and restored afterwards,
so neither the order of the work nor the training's own random numbers matter.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Seed the global CPU generators by ``key`` within the context, and restore them after it."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big")
    python, pytorch = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.default_generator.manual_seed(seed % 2**63)  # torch.manual_seed also seeds the GPUs
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(pytorch)
