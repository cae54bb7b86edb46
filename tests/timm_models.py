"""timm without torchvision, of which its models need only that it can be imported.

PyPI's torchvision does not load next to torch's CPU build.
"""

import enum
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

from torch import nn


class _Empty(types.ModuleType):
    """A module that has every name, each a class that does nothing."""

    __path__ = ()

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "InterpolationMode":
            return enum.Enum(name, "NEAREST BOX BILINEAR HAMMING BICUBIC LANCZOS NEAREST_EXACT")
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.partition(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _imported() -> Any:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        import timm
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
    return timm


timm = _imported()


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
