"""The base scale of a run: what its exponents, and its depth, are relative to."""

from typing import Any

from maxp import Depth
from train.method.settings import MaxPSettings
from train.model.kinds import base_model, base_std, branch_ends
from train.model.scales import find_scale
from train.run.identity import NO_BASE


def base_arguments(settings: MaxPSettings, scale: str, model: Any) -> dict[str, Any]:
    """The arguments of `maxp.Parametrization` that the base scale and the multipliers decide.

    Args:
        settings, scale, model: those of the run; ``model`` is the model's configuration.
    """
    arguments: dict[str, Any] = {
        "lr_multipliers": settings.lr_multipliers.by_key(),
        "std_multipliers": settings.std_multipliers.by_key(),
    }
    if settings.base_scale == NO_BASE:
        return arguments
    arguments["base"] = base_model(model, scale, settings.base_scale)
    if stds := base_std(model, settings.base_scale):
        arguments["base_std"] = stds
    here, base = find_scale(scale), find_scale(settings.base_scale)
    if here.n_layers != base.n_layers and settings.depth_exponent > 0:
        ratio = here.n_layers / base.n_layers
        arguments["depth"] = Depth(ratio, settings.depth_exponent, branch_ends(model))
    return arguments
