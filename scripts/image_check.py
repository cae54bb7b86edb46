"""The coordinate check of the image classifiers, on scikit-learn's digits.

    python -m scripts.coord_check --model vit --lr 1e-3

The base is a model of the smallest width, as timm initialises it, as in training.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from maxp import Parametrization
from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.slopes import SiteStats
from maxp.exponents import AdjustLrFn
from train.data.images.digits import MEAN, STD, digits
from train.method.methods import Method
from train.model.classifier import base_classifier, classifier_config, classifier_graph
from train.model.image_scales import IMAGE_SCALES

MODELS = ("vit", "mlp")


class DigitBatches:
    """Batches of digits, and the loss on the batch that was drawn last."""

    def __init__(self, images: int, device: torch.device) -> None:
        self._count, self._device = images, device
        pixels, labels = digits("train")
        self._images = (torch.from_numpy(pixels)[:, None] / 255 - MEAN) / STD
        self._labels = torch.from_numpy(labels)

    def draw(self, width: int) -> torch.Tensor:
        """Normalised images, (images, 1, 8, 8): for one seed the same at every width."""
        chosen = torch.randperm(len(self._labels))[: self._count]
        self._drawn = self._labels[chosen].to(self._device)
        return self._images[chosen].to(self._device)

    def loss(self, logits: torch.Tensor, _: Any) -> torch.Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(logits, self._drawn)


def method_arguments(method: Method, lr: float, muon: AdjustLrFn | None) -> dict[str, Any]:
    """The arguments of `maxp.Parametrization` for a method with a fixed c."""
    optimizer = {"optimizer_type": "muon", "adjust_lr_fn": muon} if muon else {}
    return {
        "alignment": method.alignment,
        "lr_prefactor": lr,
        "ab_overrides": method.ab,
        "c_overrides": dict.fromkeys(method.ab, 0.0) if method.one_lr else None,
        **optimizer,
    }


def build_classifier(
    kind: str,
    width: int,
    base: int,
    method: Method,
    lr: float,
    device: torch.device,
    muon: AdjustLrFn | None = None,
) -> tuple[nn.Module, Parametrization]:
    """A classifier of the digits, parametrized as in training."""
    config = classifier_config(IMAGE_SCALES[f"{kind}-debug"], width=width)
    with torch.device(device):
        model = config.build()
    parametrization = Parametrization(
        model,
        **method_arguments(method, lr, muon),
        sample_input=classifier_graph(config),
        base=base_classifier(replace(config, width=base)),
    )
    return model, parametrization


def hide_unread(model: nn.Module) -> None:
    """Let the outputs of a ViT's last block that the head does not read be measured as zero.

    The head reads the class token. In the last block, only keys and values of other tokens reach
    it, so gradients and loss do not depend on what is hidden.
    """
    block: Any = model.get_submodule("blocks")[-1]  # type: ignore[index]

    def class_token_only(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        return F.pad(out[:, :1], (0, 0, 0, out.shape[1] - 1))

    for site in (block.attn.proj, block.mlp.fc1, block.mlp.fc2):
        site.register_forward_hook(class_token_only)


def measure_images(
    kind: str,
    method: Method,
    widths: Sequence[int],
    device: torch.device,
    *,
    images: int,
    steps: int,
    seeds: int,
    lr: float,
    muon: AdjustLrFn | None = None,
) -> dict[str, SiteStats]:
    """The slopes of every site of a classifier over widths."""
    batches, base = DigitBatches(images, device), min(widths)

    def make_model(width: int) -> tuple[nn.Module, Any]:
        model, parametrization = build_classifier(kind, width, base, method, lr, device, muon)
        if kind == "vit":
            hide_unread(model)
        return model, parametrization.param_groups

    _, _, stats = diagnose_axis(
        make_model, batches.draw, widths, steps=steps, seeds=seeds, loss_fn=batches.loss,
        optimizer="muon" if muon else "adam",
    )  # fmt: skip
    return stats
