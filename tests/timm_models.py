"""timm's models, small and at any width."""

from torch import nn

from train import torchvision_compat

torchvision_compat.install()

import timm  # noqa: E402


def vit(width: int) -> nn.Module:
    """Fused qkv, a class token and learned positions; heads of size 16."""
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=width, num_heads=width // 16,
        depth=2, num_classes=5,
    )  # fmt: skip


def convnext(width: int) -> nn.Module:
    """Depthwise convolutions; the last two of four stages are wider."""
    return timm.create_model(
        "convnext_atto", dims=[width, width, 2 * width, 2 * width], depths=(1, 1, 1, 1),
        num_classes=5,
    )  # fmt: skip
