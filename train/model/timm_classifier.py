"""Any model of timm as torchtitan trains it, and the errors of a model that cannot be trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from train.model.classifier import (
    Classifier,
    TrainedClassifier,
    as_trained,
    classifier_graph,
)
from train.model.image_scales import TIMM
from train.model.timm_models import count, import_timm, timm_arguments
from train.model.timm_scales import TimmScale


class TimmClassifier(Classifier):
    """A model of timm, whose sites are found by comparison with another model of timm."""

    @dataclass(kw_only=True, slots=True)
    class Config(Classifier.Config):
        model: str
        """Name and arguments: ``vit_tiny_patch16_224,embed_dim=64,num_heads=4``."""
        other: str = ""
        """The same architecture at another width, with which it is compared."""

        def build(self, **_: Any) -> Any:
            """The model with its sites marked."""
            model = as_trained(self.plain(), self.other_width(), self.autocast, TrainedTimm)
            model.source = self
            return model

        def plain(self) -> Any:
            """The module as timm builds it."""
            return import_timm(f"--scale {TIMM}{self.model}").create_model(**self.timm_arguments())

        def timm_arguments(self) -> dict[str, Any]:
            """The arguments of `timm.create_model`."""
            return timm_arguments(self.model, self.image_size, self.channels, self.num_classes)

        def other_width(self) -> nn.Module:
            """The other model, with the data of this one."""
            with torch.device("meta"):
                return replace(self, model=self.other).plain()

        def base(self, scale: Any) -> Any:
            """The model of a scale of timm, with the data of this one."""
            if not isinstance(scale, TimmScale):
                return None
            other = self.model if self.other == scale.model else self.other
            return replace(self, model=scale.model, other=other)

        def as_scale(self) -> TimmScale:
            """The sizes, from which costs follow."""
            return TimmScale(
                TIMM + self.model, "timm", dim=0, n_layers=1, image_size=self.image_size,
                channels=self.channels, classes=self.num_classes,
            )  # fmt: skip


class TrainedTimm(TrainedClassifier):
    """What torchtitan calls of a model of timm."""

    source: TimmClassifier.Config

    def init_weights(self, buffer_device: Any = None) -> None:
        """Copy what timm's constructor draws and computes: not every model can repeat it."""
        with torch.device("cpu"):
            fresh = self.source.plain()
        own: Any = self
        tensors = [dict([*m.named_parameters(), *m.named_buffers()]) for m in (own, fresh)]
        for name, tensor in tensors[0].items():
            tensor.data.copy_(tensors[1][name])


def check_model(config: TimmClassifier.Config, base: TimmClassifier.Config | None) -> None:
    """Build a model, its base and what they are compared with, and trace it, on the meta device.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    own = f"--scale {TIMM}{config.model}"
    _check_sites(config, own)
    if base is not None and base.model != config.model:
        _check_sites(base, f"--maxp.base_scale {TIMM}{base.model}")
        _check_alike(config, base.model, own)
    size = (config.image_size, config.channels, config.num_classes)
    _attempt(
        lambda: count(config.model, *size),
        f"{own}: it fails on images of --dataloader.image_size {config.image_size} with "
        f"--dataloader.channels {config.channels}",
        "pass what the model takes",
    )
    _attempt(lambda: classifier_graph(config), f"{own}: its sites cannot be traced", "use another")


def _check_sites(config: TimmClassifier.Config, flag: str) -> None:
    """Check that the shapes of a model and of the one that it is compared with tell its sites."""
    if _check_alike(config, config.other, flag):
        raise ValueError(
            f"{flag}: no weight of {TIMM}{config.other} has another shape, so that no site can be "
            "found; pass a model of another width as --maxp.base_scale, or to train the base "
            "itself as --sites-from"
        )
    with torch.device("meta"):
        _attempt(config.build, f"{flag}: its sites cannot be found", "use another")


def _check_alike(config: TimmClassifier.Config, other: str, flag: str) -> bool:
    """Check that two models differ in width alone; returns whether even their widths are equal."""
    shapes = []
    for model in (config.model, other):
        with torch.device("meta"):
            module = _attempt(
                replace(config, model=model).plain,
                f"{TIMM}{model}: timm cannot build it",
                "correct the arguments after its name",
            )
        shapes.append({name: p.shape for name, p in module.named_parameters()})
    ours, theirs = shapes
    different = [
        name
        for name in [*ours, *theirs]
        if (name in ours) != (name in theirs) or len(ours[name]) != len(theirs[name])
    ]
    if different:
        raise ValueError(
            f"{flag} and {TIMM}{other} differ in more than width: {different[0]} is not in both, "
            f"or has other dimensions; pass a model of the same structure, for example "
            f"{TIMM}{other.partition(',')[0]} with ,depth=... and the like"
        )
    return ours == theirs


def _attempt(step: Callable[[], Any], what: str, remedy: str) -> Any:
    """The result of a step; every error of timm or torch is one line."""
    try:
        return step()
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{what} ({reason}); {remedy}") from error
