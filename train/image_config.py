"""The torchtitan configuration of a run on images."""

from dataclasses import dataclass, replace
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import Configurable
from torchtitan.config.configs import ParallelismConfig

from train.classification import AccuracyValidator, ClassificationLoss, ImageMetrics
from train.data.images import ImageDataLoader, count_classes
from train.defaults import shared_fields, shared_metrics, shared_validation
from train.method.settings import MaxPSettings
from train.model.classifier import Classifier, classifier_config, model_spec
from train.model.costs import PROBE_IMAGES
from train.model.image_scales import ImageScale
from train.trainer import MaxPTrainer

VALIDATION_IMAGES = 50_000  # those of ImageNet-1k


class NoTokenizer(Configurable):
    """Stands where torchtitan builds a tokenizer."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config: Config, **_: Any) -> None:
        pass


def image_config(
    size: ImageScale,
    settings: MaxPSettings,
    *,
    seed: int,
    steps: int,
    folder: str,
    dataset: str | None,
    dataset_path: str | None,
) -> MaxPTrainer.Config:
    """The configuration of a run on images; every field of it can still be changed.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    data: dict[str, Any] = {
        "dataset": dataset or ("digits" if size.on_digits else "imagenet-1k"),
        "dataset_path": dataset_path,
        "seed": seed,
        "image_size": size.image_size,
        "channels": size.channels,
    }
    settings.probe_sequences = PROBE_IMAGES
    shared = shared_fields(size, settings, seed=seed, steps=steps, folder=folder)
    shared["training"].disable_cuda_graphs = True
    return MaxPTrainer.Config(
        **shared,
        model_spec=model_spec(size.name, classifier_config(size)),
        hf_assets_path="",
        tokenizer=NoTokenizer.Config(),
        loss=ClassificationLoss.Config(),
        dataloader=ImageDataLoader.Config(**data),
        validator=AccuracyValidator.Config(
            **shared_validation(steps),
            sequences=VALIDATION_IMAGES,
            dataloader=ImageDataLoader.Config(**data, split="validation"),
        ),
        metrics=ImageMetrics.Config(**shared_metrics(size)),
        activation_checkpoint=None,
        # The backend of one process with every torch.
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor"),
    )


def match_data(config: MaxPTrainer.Config) -> None:
    """Give the model the classes and the size of the images, and validation those of training.

    Raises:
        DataError: the data cannot be used, or its number of classes is unknown.
    """
    data, held_out = config.dataloader, config.validator.dataloader
    if not isinstance(data, ImageDataLoader.Config):
        return
    spec = config.model_spec
    assert spec is not None
    assert isinstance(spec.model, Classifier.Config)
    data.num_classes = count_classes(data)
    spec.model = replace(
        spec.model,
        image_size=data.image_size,
        channels=data.channels,
        num_classes=data.num_classes,
    )
    if isinstance(held_out, ImageDataLoader.Config):
        for name in ("image_size", "channels", "num_classes"):
            setattr(held_out, name, getattr(data, name))
