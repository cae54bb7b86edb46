"""Image classifiers as torchtitan trains them: timm's vision transformer, and an MLP.

A classifier is the module itself, so its parameters have timm's own names. Its sites are found by
comparison with a model of twice the width (`maxp.mark`), not by their names.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torchtitan.protocols.model import BaseModel
from torchtitan.protocols.model_spec import ModelSpec

from maxp import Graph, mark
from maxp.trace import trace
from train.model.image_costs import training_flops
from train.model.image_scales import ImageScale
from train.model.timm_models import import_timm

_BASE_SEED = 0  # of the weights of a base, whose standard deviations a run takes


class MLP(nn.Module):
    """GELU layers of equal width, without normalisation, that read all pixels of an image.

    Args:
        pixels: values per image.
        width: of every hidden layer.
        depth: number of hidden layers.
        classes: number of logits.
    """

    def __init__(self, pixels: int, width: int, depth: int, classes: int) -> None:
        super().__init__()
        fans = [pixels, *[width] * (depth - 1)]
        self.layers = nn.ModuleList(nn.Linear(fan_in, width) for fan_in in fans)
        self.head = nn.Linear(width, classes)
        self.init_weights()

    def init_weights(self) -> None:
        """He et al. 2015 (arXiv 1502.01852), which keeps the size of activations; zero biases."""
        layers: list[Any] = [*self.layers, self.head]
        for layer in layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
        nn.init.kaiming_normal_(self.head.weight, nonlinearity="linear")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = F.gelu(layer(x))
        return self.head(x)


class Classifier(BaseModel):
    """Configures a classifier. It builds the module itself, not one that holds it."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseModel.Config):
        image_size: int
        channels: int
        num_classes: int
        autocast: bool = False
        """Compute in bfloat16, with weights in float32; from ``training.mixed_precision_param``."""

        def build(self, **_: Any) -> Any:
            """The model with its sites marked."""
            return as_trained(self.plain(), self.other_width(), self.autocast)

        def plain(self) -> Any:
            """The module without sites."""
            raise NotImplementedError

        def other_width(self) -> nn.Module:
            """The module at another width, on the meta device, for `maxp.mark` to compare with."""
            raise NotImplementedError

        def base(self, scale: Any) -> Any:
            """The model of a base scale with the data of this one, or None: of another kind."""
            raise NotImplementedError

        def as_scale(self) -> ImageScale:
            """The sizes, from which costs follow."""
            raise NotImplementedError

        def update_from_config(self, *, config: Any, **_: Any) -> None:
            """Take the precision of training."""
            self.autocast = config.training.mixed_precision_param == "bfloat16"

        def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
            """The number of parameters, and FLOPs of training per image."""
            return sum(p.numel() for p in model.parameters()), training_flops(self.as_scale())


class SizedClassifier(Classifier):
    """A ViT or an MLP of the sizes in `train.model.image_scales`."""

    @dataclass(kw_only=True, slots=True)
    class Config(Classifier.Config):
        kind: Literal["vit", "mlp"]
        width: int
        depth: int
        patch_size: int
        head_dim: int

        def plain(self) -> Any:
            """The module as timm builds it, or an `MLP`."""
            if self.kind == "mlp":
                pixels = self.channels * self.image_size**2
                return MLP(pixels, self.width, self.depth, self.num_classes)
            return import_timm("--scale vit-*").create_model(**self.timm_arguments())

        def timm_arguments(self) -> dict[str, Any]:
            """The arguments of `timm.create_model` for a ViT of this size."""
            return {
                "model_name": "vit_base_patch16_224",
                "img_size": self.image_size,
                "patch_size": self.patch_size,
                "embed_dim": self.width,
                "depth": self.depth,
                "num_heads": self.width // self.head_dim,
                "in_chans": self.channels,
                "num_classes": self.num_classes,
            }

        def other_width(self) -> nn.Module:
            """The module at twice the width."""
            with torch.device("meta"):
                return replace(self, width=2 * self.width).plain()

        def base(self, scale: Any) -> Any:
            """The model at the width of a scale of the same kind."""
            return replace(self, width=scale.dim) if scale.kind == self.kind else None

        def as_scale(self) -> ImageScale:
            """The sizes, from which costs follow."""
            return ImageScale(
                "", self.kind, self.width, self.depth, self.image_size, self.patch_size,
                self.head_dim, self.channels, self.num_classes,
            )  # fmt: skip


class TrainedClassifier:
    """What torchtitan calls of a model, as a mix-in of the module's own class."""

    autocast: bool

    def verify_module_protocol(self) -> None:
        """timm's layers are plain modules, which torchtitan's other models are not made of."""

    def init_weights(self, buffer_device: Any = None) -> None:
        """The module's own initialisation; maxp draws the weights of sites after it."""
        super().init_weights()  # type: ignore[misc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (batch, classes) of images (batch, channels, height, width)."""
        with torch.autocast(x.device.type, torch.bfloat16) if self.autocast else nullcontext():
            return super().forward(x)  # type: ignore[misc]


def as_trained(model: Any, other: nn.Module, autocast: bool, mixin: Any = TrainedClassifier) -> Any:
    """Mark the sites of a module by comparison with another, and give it the mix-in."""
    mark(model, other).apply()
    parent: Any = type(model)
    model.__class__ = _trained(parent, mixin)
    model.autocast = autocast
    return model


@cache
def _trained(parent: Any, mixin: Any) -> type:
    return type(parent.__name__, (mixin, parent), {"__module__": parent.__module__})


def classifier_config(scale: ImageScale, **changes: Any) -> SizedClassifier.Config:
    """The configuration of a scale's model, with other ``image_size``, ``num_classes``, ..."""
    assert scale.kind != "timm", "train.model.timm_classifier has its configuration"
    config = SizedClassifier.Config(
        kind=scale.kind,
        width=scale.dim,
        depth=scale.n_layers,
        image_size=scale.image_size,
        patch_size=scale.patch_size,
        head_dim=scale.head_dim,
        channels=scale.channels,
        num_classes=scale.classes,
    )
    return replace(config, **changes)


def model_spec(name: str, config: Classifier.Config) -> ModelSpec:
    """What torchtitan needs to build the model."""
    return ModelSpec(
        name="classifier",
        flavor=name,
        model=config,
        parallelize_fn=_compiled,
        pipelining_fn=None,
        post_optimizer_build_fn=None,
        state_dict_adapter=None,
    )


def _compiled(model: nn.Module, *, compile_config: Any, **_: Any) -> nn.Module:
    if compile_config.enable and "model" in compile_config.components:
        model.compile(backend=compile_config.backend)
    return model


def classifier_graph(config: Classifier.Config) -> Graph:
    """The graph of the sites, traced on the meta device."""
    with torch.device("meta"):
        images = torch.zeros(1, config.channels, config.image_size, config.image_size)
        return trace(replace(config, autocast=False).build(), images)


BRANCH_ENDS = ("attn.proj", "mlp.fc2")
"""The sites of a ViT that end a residual branch; an MLP has none."""


def base_classifier(config: Classifier.Config) -> nn.Module:
    """The model of a base, with the initial weights that its users have."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(_BASE_SEED)
        return config.build()
