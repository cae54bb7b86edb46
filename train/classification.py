"""What training an image classifier needs beyond torchtitan's: its loss, accuracy, and counts."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from torchtitan.components.loss import IGNORE_INDEX, BaseLoss
from torchtitan.config.configs import CompileConfig

from train.metrics import HeldOutValidator, RunMetrics


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The sum over images of -log p(label), in float32.

    Args:
        logits: (images, classes).
        labels: class indices (images,), where `IGNORE_INDEX` counts as no image; or the share of
            each class, (images, classes).
    """
    return F.cross_entropy(logits.float(), labels, reduction="sum", ignore_index=IGNORE_INDEX)


class ClassificationLoss(BaseLoss):
    """Cross entropy, divided by the number of images."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseLoss.Config):
        pass

    def __init__(self, config: Config, *, compile_config: CompileConfig | None = None) -> None:
        self.fn = cross_entropy
        self._maybe_compile(compile_config)

    def __call__(
        self,
        pred: torch.Tensor,
        labels: torch.Tensor,
        global_valid_tokens: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        # torchtitan counts the entries of labels, which are shares of all classes where images are
        # mixed.
        if global_valid_tokens is not None and labels.ndim == 2:
            global_valid_tokens = global_valid_tokens / labels.shape[1]
        return super().__call__(pred, labels, global_valid_tokens, **kwargs)


class ImageMetrics(RunMetrics):
    """Metrics that count images."""

    @dataclass(kw_only=True, slots=True)
    class Config(RunMetrics.Config):
        pass

    unit: ClassVar[str] = "images"


class AccuracyValidator(HeldOutValidator):
    """Validates accuracy beside the loss."""

    @dataclass(kw_only=True, slots=True)
    class Config(HeldOutValidator.Config):
        pass

    def __init__(self, config: Config, **parts: Any) -> None:
        super().__init__(config, **parts)
        loss_fn: Any = parts["loss_fn"]
        self._correct: list[torch.Tensor] = []

        def counting(logits: torch.Tensor, labels: torch.Tensor) -> Any:
            valid = labels != IGNORE_INDEX
            self._correct.append((logits.argmax(1) == labels)[valid])
            return loss_fn(logits, labels)

        self.loss_fn: Any = counting

    def validate(self, model_parts: list[nn.Module], step: int) -> None:
        self._correct.clear()
        processor: Any = self.metrics_processor
        processor.validation_metrics = self._accuracy
        super().validate(model_parts, step)

    def _accuracy(self) -> dict[str, float]:
        return {"validation_metrics/accuracy": float(torch.cat(self._correct).float().mean())}
