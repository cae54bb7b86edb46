"""The base scale of a run: what its exponents, and its depth, are relative to."""

from typing import Any

from maxp import Depth
from train.method.settings import MaxPSettings
from train.model.llama3 import BRANCH_ENDS, base_model
from train.model.scales import get_scale
from train.run.identity import NO_BASE


def base_arguments(settings: MaxPSettings, scale: str, vocab_size: int) -> dict[str, Any]:
    """The arguments of `maxp.Parametrization` that the base scale and the multipliers decide."""
    arguments: dict[str, Any] = {
        "lr_multipliers": settings.lr_multipliers.by_key(),
        "std_multipliers": settings.std_multipliers.by_key(),
    }
    if settings.base_scale == NO_BASE:
        return arguments
    here, base = get_scale(scale), get_scale(settings.base_scale)
    arguments["base"] = base_model(here, base, vocab_size)
    if here.n_layers != base.n_layers and settings.depth_exponent > 0:
        ratio = here.n_layers / base.n_layers
        arguments["depth"] = Depth(ratio, settings.depth_exponent, BRANCH_ENDS)
    return arguments
