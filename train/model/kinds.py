"""What training asks of a model's configuration, of a language model or an image classifier."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from maxp import Graph
from train.model import classifier, decoders
from train.model.classifier import Classifier
from train.model.image_scales import ImageScale
from train.model.scales import Scale, find_scale


def site_graph(config: Any) -> Graph:
    """The graph of the sites, traced on the meta device."""
    if isinstance(config, Classifier.Config):
        return classifier.classifier_graph(config)
    return decoders.site_graph(config)


def base_model(config: Any, scale: str, base: str) -> nn.Module:
    """A model of the base's width and the depth of ``scale``.

    Raises:
        ValueError: one line: the base is a scale of another kind of model.
    """
    here, there = find_scale(scale), find_scale(base, "--maxp.base_scale")
    if isinstance(config, Classifier.Config):
        return classifier.base_classifier(image_base(config, scale, base))
    if isinstance(here, Scale) and isinstance(there, Scale) and here.kind == there.kind:
        fused = bool(decoders.fused_blocks(config))
        return decoders.base_model(here, there, config.vocab_size, fuse_qkv=fused)
    raise _another_kind(scale, base)


def base_std(config: Any, base: str) -> dict[str, float] | None:
    """The standard deviations of the base's weights that are not the usual ones, by site.

    A tied weight is drawn as a head, since logits of an embedding of size one would be large.
    """
    there = find_scale(base, "--maxp.base_scale")
    if getattr(config, "enable_weight_tying", False) and isinstance(there, Scale):
        return {"tok_embeddings": there.dim**-0.5}
    return None


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


def fused_blocks(config: Any) -> dict[str, list[int]]:
    """The rows of each part of fused weights that the library does not know by name."""
    return {} if isinstance(config, Classifier.Config) else decoders.fused_blocks(config)


def branch_ends(config: Any) -> Sequence[str]:
    """The sites that end a residual branch, by the ends of their names."""
    if isinstance(config, Classifier.Config):
        return classifier.BRANCH_ENDS
    return decoders.branch_ends(config)
