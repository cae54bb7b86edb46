"""Writes multipliers into the weights, so that a model of sites becomes an ordinary one."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from maxp.module import Site, bias_of, weight_owners
from maxp.shards import local
from maxp.sites import ParameterSite, unmark

logger = logging.getLogger(__name__)


@torch.no_grad()
def fold(model: nn.Module, sites: Mapping[str, Site]) -> None:
    """Multiply each site's weight and bias by its multiplier, and undo `maxp.sites.mark_module`.

    A tied weight whose roles have different multipliers is untied first: the later role gets a
    copy, and ``model.config.tie_word_embeddings``, if there is one, becomes False, which unties all
    weights of a model of transformers. Such a state loads into a tied model without an error, and
    gives wrong outputs. A `ParametrizedModule` stays, with the multiplier 1; one without a weight
    keeps its multiplier.

    Args:
        model: contains the sites.
        sites: by name (`maxp.module.find_sites`).

    Raises:
        ValueError: a weight that has to be multiplied is computed from other tensors, or bounded.
    """
    for name, site in sites.items():
        _check_own(name, site)
    for name, owner in weight_owners(sites).items():
        if sites[name].scale != sites[owner].scale:
            _untie(model, name, sites[name])
    done: set[int] = set()
    for site in sites.values():
        if site.weight is None:
            continue
        for tensor in _scaled(site):
            if id(tensor) not in done:
                local(tensor).mul_(site.scale)
            done.add(id(tensor))
        site.scale = 1.0
    for module in list(model.modules()):
        unmark(module)


def _check_own(name: str, site: Site) -> None:
    """Check that the module holds the tensors itself, and does not change them in a call."""
    module: Any = getattr(site, "op", site)
    if site.weight is None or isinstance(site, ParameterSite) or site.scale == 1.0:
        return
    if getattr(module, "max_norm", None) is not None:
        raise ValueError(
            f"{name}: its max_norm would bound the weight that fold has multiplied; set its "
            "max_norm to None before"
        )
    held = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
    if any(id(tensor) not in held for tensor in _scaled(site)):
        raise ValueError(
            f"{name}: its weight is computed from other tensors, as by pruning or weight_norm, so "
            "fold cannot multiply it; make it a parameter before, with prune.remove or "
            "parametrize.remove_parametrizations"
        )


def _scaled(site: Site) -> list[torch.Tensor]:
    """The tensors that a site's multiplier multiplies."""
    if isinstance(site, ParameterSite):
        return []
    bias = bias_of(site)
    return [site.weight] if bias is None else [site.weight, bias]


def _untie(model: nn.Module, name: str, site: Site) -> None:
    module = getattr(site, "op", site)
    module.weight = nn.Parameter(site.weight.detach().clone())
    # transformers ties weights again when it loads a model whose configuration says so.
    for part in model.modules():
        config: Any = getattr(part, "config", None)
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
        _untie_others(part)
    logger.info("%s: untied, since its multiplier is another than that of the shared weight", name)


def _untie_others(part: nn.Module) -> None:
    """Untie all weights of a model of transformers, whose configuration ties all or none.

    It would not save those that are still tied, and not tie them when it loads.
    """
    tied = getattr(part, "all_tied_weights_keys", None)
    if not isinstance(tied, dict):
        return
    own = dict(part.named_parameters(remove_duplicate=False))
    for key in own.keys() & tied.keys():
        if own[key] is own.get(tied[key]):
            module, _, parameter = key.rpartition(".")
            copy = nn.Parameter(own[key].detach().clone(), own[key].requires_grad)
            setattr(part.get_submodule(module), parameter, copy)
    tied.clear()
