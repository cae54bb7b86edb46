"""The torchtitan configuration of a run on images."""

from dataclasses import dataclass, fields, replace
from typing import Any

from torchtitan.components.tokenizer import BaseTokenizer
from torchtitan.config import Configurable
from torchtitan.config.configs import ParallelismConfig

from train.classification import AccuracyValidator, ClassificationLoss, ImageMetrics
from train.data.cache import DataError
from train.data.images import ImageDataLoader, class_names, count_classes
from train.defaults import shared_fields, shared_metrics, shared_validation
from train.method.settings import MaxPSettings
from train.model.classifier import Classifier, classifier_config, model_spec
from train.model.costs import PROBE_IMAGES
from train.model.image_scales import TIMM, ImageScale
from train.model.kinds import image_base
from train.model.scales import find_scale
from train.model.timm_classifier import TimmClassifier, check_model
from train.model.timm_scales import TimmScale
from train.run.identity import NO_BASE
from train.trainer import MaxPTrainer

VALIDATION_IMAGES = 50_000  # those of ImageNet-1k

_OF_MODEL = ("image_size", "channels", "num_classes")
_READ_ALIKE = (
    *("augment", "interpolation", "crop_pct", "mean", "std"),
    *("image_column", "label_column"),
)


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
    sites_from: str | None,
) -> MaxPTrainer.Config:
    """The configuration of a run on images; every field of it can still be changed.

    Args:
        size, settings, seed, steps, folder: of the run.
        dataset, dataset_path, sites_from: the flags of these names.

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
        model_spec=model_spec(size.name, _model(size, sites_from)),
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


def _model(size: ImageScale, sites_from: str | None) -> Classifier.Config:
    if not isinstance(size, TimmScale):
        if sites_from is not None:
            raise ValueError(
                f"--sites-from {sites_from}: only --scale {TIMM}NAME takes it; leave it out"
            )
        return classifier_config(size)
    return TimmClassifier.Config(
        model=size.model,
        other=_timm_model(sites_from, "--sites-from") if sites_from else "",
        image_size=size.image_size,
        channels=size.channels,
        num_classes=size.classes,
    )


def _timm_model(name: str, flag: str) -> str:
    """What a scale's name has after the prefix of timm's models."""
    scale = find_scale(name, flag)
    if not isinstance(scale, TimmScale):
        raise ValueError(f"{flag} {name}: no model of timm; pass {TIMM}NAME")
    return scale.model


def match_data(config: MaxPTrainer.Config) -> None:
    """Give the model the classes and the size of the images, and validation those of training.

    Validation also reads its images as training does, unless a flag of its own says otherwise.

    Raises:
        DataError: the data cannot be used, or its number of classes is unknown.
        ValueError: the model of timm cannot be used, or the base is another kind of model.
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
        _match_held_out(held_out, data)
        if config.validator.enable:
            _check_classes(held_out, data)
    if isinstance(spec.model, TimmClassifier.Config):
        _match_timm(spec.model, config.maxp.base_scale)
    elif config.maxp.base_scale != NO_BASE:
        image_base(spec.model, config.scale, config.maxp.base_scale)


def _match_held_out(held_out: ImageDataLoader.Config, data: ImageDataLoader.Config) -> None:
    """Let validation read images as training does, without the random transforms."""
    unset = {field.name: field.default for field in fields(held_out)}
    for name in (*_OF_MODEL, *_READ_ALIKE):
        if name in _OF_MODEL or getattr(held_out, name) == unset[name]:
            setattr(held_out, name, getattr(data, name))


def _check_classes(held_out: ImageDataLoader.Config, data: ImageDataLoader.Config) -> None:
    """Check that validation and training read images of the same classes, as far as is known.

    Raises:
        DataError: they do not.
    """
    ours, theirs = class_names(held_out), class_names(data)
    on_digits = held_out.dataset == "digits", data.dataset == "digits"
    if on_digits[0] != on_digits[1] or (ours and theirs and ours != theirs):
        raise DataError(
            f"--validator.dataloader reads {held_out.dataset_path or held_out.dataset}, but "
            f"training {data.dataset_path or data.dataset}, with classes of its own: pass "
            "--dataset and --dataset-path, which are for both"
        )


def _match_timm(model: TimmClassifier.Config, base_scale: str) -> None:
    """Choose the model of timm to compare with, which is not the model itself, and check it.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    base = "" if base_scale == NO_BASE else _timm_model(base_scale, "--maxp.base_scale")
    model.other = next((name for name in (model.other, base) if name not in ("", model.model)), "")
    if not model.other:
        raise ValueError(
            f"--scale {TIMM}{model.model}: its sites are found by comparison with the same "
            f"architecture at another width; pass --maxp.base_scale {TIMM}NAME, the model at "
            f"which learning rates are tuned, or to train the base itself --sites-from {TIMM}NAME"
        )
    check_model(model, model.base(find_scale(base_scale)) if base else None)
