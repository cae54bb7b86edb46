"""The scales of image classifiers: ViTs and MLPs, and ladders in which only the width differs.

This module does not import torch, so that commands that only plan runs start quickly. The models
are in `train.model.classifier`.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class ImageScale:
    """One size of a classifier.

    Attributes:
        kind: timm's vision transformer, an MLP of the pixels, or any model of timm, which is a
            `train.model.timm_scales.TimmScale`.
        dim: width of the tokens of a ViT, or of the hidden layers of an MLP.
        n_layers: blocks of a ViT, or hidden layers of an MLP.
        image_size: pixels along each side.
        patch_size: the same, of a ViT's patches.
        head_dim: width of an attention head of a ViT.
        classes: of the default dataset.
        local_batch_size: images per forward pass.
        global_batch_size: images per step.
        steps: of a run, by default.
        on_digits: train on the embedded digits, not on ImageNet-1k.
    """

    name: str
    kind: Literal["vit", "mlp", "timm"]
    dim: int
    n_layers: int
    image_size: int = 224
    patch_size: int = 16
    head_dim: int = 64
    channels: int = 3
    classes: int = 1000
    local_batch_size: int = 256
    global_batch_size: int = 1024
    steps: int = 112_500  # 90 epochs of ImageNet-1k
    on_digits: bool = False

    seq_len: ClassVar[int] = 1
    """An image counts as one sample, as a token does in text."""
    unit: ClassVar[str] = "images"
    """What is counted."""

    @property
    def on_corpus(self) -> bool:
        """Whether it trains on embedded data."""
        return self.on_digits

    @property
    def n_heads(self) -> int:
        """Attention heads of a ViT."""
        return self.dim // self.head_dim

    @property
    def tokens(self) -> int:
        """Tokens per image in the blocks of a ViT; an MLP has one."""
        return (self.image_size // self.patch_size) ** 2 + 1 if self.kind == "vit" else 1

    @property
    def matrices(self) -> list[tuple[int, int, int]]:
        """(fan-out, fan-in, times per image) of every linear layer, the convolution included."""
        dim, pixels = self.dim, self.channels * self.image_size**2
        head = (self.classes, dim, 1)
        if self.kind == "mlp":
            return [(dim, pixels, 1), *[(dim, dim, 1)] * (self.n_layers - 1), head]
        patches, tokens = self.tokens - 1, self.tokens
        block = [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)]
        layers = [(out, into, tokens) for out, into in block] * self.n_layers
        return [(dim, self.channels * self.patch_size**2, patches), *layers, head]

    @property
    def params(self) -> int:
        """Parameters, biases included."""
        count = sum(out * into + out for out, into, _ in self.matrices)
        if self.kind == "vit":  # class token, positions; two norms per block and one at the end
            count += self.dim * (1 + self.tokens + 2 * (2 * self.n_layers + 1))
        return count

    @property
    def non_embedding_params(self) -> int:
        """Parameters without those of the first layer and the head; sorts scales by size."""
        return self.params - sum(out * into for out, into, _ in self.matrices[:: self._ends])

    @property
    def _ends(self) -> int:
        return len(self.matrices) - 1


def _on_digits(name: str, kind: Literal["vit", "mlp"], dim: int) -> ImageScale:
    """A size that a CPU trains in seconds on 8x8 images."""
    return ImageScale(
        name, kind, dim, n_layers=2,
        image_size=8, patch_size=2, head_dim=16, channels=1, classes=10,
        local_batch_size=64, global_batch_size=64, steps=150, on_digits=True,
    )  # fmt: skip


# An MLP sees 64x64 images: at 224x224, nearly all its parameters would read pixels.
_MLP: dict[str, Any] = {"kind": "mlp", "n_layers": 4, "image_size": 64}

IMAGE_SCALES: dict[str, ImageScale] = {
    scale.name: scale
    for scale in (
        _on_digits("vit-debug", "vit", 64),
        _on_digits("mlp-debug", "mlp", 256),
        ImageScale("vit-ti", "vit", 192, 12),
        ImageScale("vit-s", "vit", 384, 12),
        ImageScale("vit-b", "vit", 768, 12),
        ImageScale("vit-l", "vit", 1024, 24),
        *(ImageScale(f"vit-w{dim}", "vit", dim, 12) for dim in (256, 512, 1024, 2048, 4096)),
        *(
            ImageScale(f"mlp-{size}", dim=dim, **_MLP)
            for size, dim in zip("smbl", (512, 1024, 2048, 4096), strict=True)
        ),
        *(_on_digits(f"vit-cpu{dim}", "vit", dim) for dim in (32, 64, 128)),
        *(_on_digits(f"mlp-cpu{dim}", "mlp", dim) for dim in (64, 128, 256)),
        _on_digits("vit-debug-base", "vit", 16),
        _on_digits("mlp-debug-base", "mlp", 64),
    )
}

TIMM = "timm-"
"""How the names of scales begin that are any model of timm: ``timm-deit_small_patch16_224``."""


def is_image_scale(name: str) -> bool:
    """Whether a scale is of an image classifier."""
    return name in IMAGE_SCALES or name.startswith(TIMM)


IMAGE_BASES = {
    **dict.fromkeys(("vit-ti", "vit-s", "vit-b", "vit-l"), "vit-ti"),
    **dict.fromkeys(("mlp-s", "mlp-m", "mlp-b", "mlp-l"), "mlp-s"),
    "vit-debug": "vit-debug-base",
    "mlp-debug": "mlp-debug-base",
    "vit-w": "vit-w256",
    "vit-cpu": "vit-cpu32",
    "mlp-cpu": "mlp-cpu64",
}
"""The base of each ladder, or of a scale by its name."""
