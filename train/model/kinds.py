"""What training asks of a model's configuration, of a language model or an image classifier."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from maxp import Graph
from train.model import classifier, llama3
from train.model.classifier import Classifier
from train.model.image_scales import ImageScale
from train.model.scales import Scale, find_scale


def site_graph(config: Any) -> Graph:
    """The graph of the sites, traced on the meta device."""
    if isinstance(config, Classifier.Config):
        return classifier.classifier_graph(config)
    return llama3.site_graph(config)


def base_model(config: Any, scale: str, base: str) -> nn.Module:
    """A model of the base's width and the depth of ``scale``.

    Raises:
        ValueError: one line: the base is a scale of the other kind of model.
    """
    here, there = find_scale(scale), find_scale(base, "--maxp.base_scale")
    if isinstance(config, Classifier.Config):
        return classifier.base_classifier(image_base(config, scale, base))
    if isinstance(here, Scale) and isinstance(there, Scale):
        return llama3.base_model(here, there, config.vocab_size)
    raise _another_kind(scale, base)


def image_base(config: Classifier.Config, scale: str, base: str) -> Any:
    """The configuration of the base of an image classifier.

    Raises:
        ValueError: as `base_model`.
    """
    there = find_scale(base, "--maxp.base_scale")
    own = config.base(there) if isinstance(there, ImageScale) else None
    if own is None:
        raise _another_kind(scale, base)
    return own


def _another_kind(scale: str, base: str) -> ValueError:
    return ValueError(
        f"--maxp.base_scale {base}: another kind of model than --scale {scale}; choose a scale of "
        "its ladder, or none"
    )


def branch_ends(config: Any) -> Sequence[str]:
    """The sites that end a residual branch, by the ends of their names."""
    return classifier.BRANCH_ENDS if isinstance(config, Classifier.Config) else llama3.BRANCH_ENDS
