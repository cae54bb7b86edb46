"""What timm needs to build and load the model of a run on images."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from maxp.module import find_sites
from train.data.images import ImageDataLoader
from train.data.images.transforms import crop, normalisation
from train.model.classifier import Classifier, SizedClassifier
from train.model.timm_classifier import TimmClassifier
from train.model.timm_models import import_timm

_TIMM_MODEL = "model_name"


def recorded_model(record: Mapping[str, Any]) -> Classifier.Config:
    """The model's configuration in a run's config.json.

    Raises:
        KeyError, TypeError: it is of another version.
    """
    values = {key: v for key, v in record["model_spec"]["model"].items() if key != "param_init"}
    kind = TimmClassifier if "model" in values else SizedClassifier
    return kind.Config(**values)


def multipliers(model: nn.Module) -> dict[str, float]:
    """By parameter name, the factors that fold the multipliers of sites into weights and biases.

    Args:
        model: with its multipliers set by `maxp.Parametrization`; may be on the meta device.
    """
    parameters = dict(model.named_parameters())
    return {
        name: site.scale
        for site_name, site in find_sites(model).items()
        for name in (f"{site_name}.weight", f"{site_name}.bias")
        if name in parameters
    }


def timm_config(model: Classifier.Config, record: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config.json`` from which ``timm.create_model("local-dir:FOLDER")`` builds the model.

    That of an MLP, which timm does not have, names `train.model.classifier.MLP` and its arguments.

    Args:
        model: its configuration.
        record: of the run: the content of its config.json.
    """
    assert isinstance(model, SizedClassifier.Config | TimmClassifier.Config)
    if isinstance(model, SizedClassifier.Config) and model.kind == "mlp":
        pixels = model.channels * model.image_size**2
        arguments = {"pixels": pixels, "width": model.width, "depth": model.depth}
        arguments["classes"] = model.num_classes
        return {"architecture": "train.model.classifier.MLP", "model_args": arguments}
    arguments = model.timm_arguments()
    data, held_out = record["dataloader"], record["validator"]["dataloader"]
    images = ImageDataLoader.Config(dataset=data["dataset"], channels=data["channels"])
    images.mean, images.std = (data[key] and tuple(data[key]) for key in ("mean", "std"))
    images.crop_pct, images.augment = held_out["crop_pct"], held_out["augment"]
    mean, std = normalisation(images)
    name = str(arguments.pop(_TIMM_MODEL))
    ends = {"first_conv": "patch_embed.proj", "classifier": "head"}
    if isinstance(model, TimmClassifier.Config):
        known = import_timm("RUN").get_pretrained_cfg(name)
        ends = {key: getattr(known, key) for key in ends if known}
    return {
        "architecture": name.partition(".")[0],  # without the tag of pretrained weights
        "num_classes": model.num_classes,
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [model.channels, model.image_size, model.image_size],
            "mean": list(mean),
            "std": list(std),
            "crop_pct": crop(images),
            "interpolation": held_out["interpolation"],
            "num_classes": model.num_classes,
            **ends,
        },
    }
