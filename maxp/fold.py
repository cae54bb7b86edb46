"""Writes multipliers into the weights, so that a model of sites becomes an ordinary one."""

import logging
from collections.abc import Mapping
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from maxp.module import Site, bias_of, weight_owners
from maxp.shards import local
from maxp.sites import ParameterSite, unmark
from maxp.trace import evaluating

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
        ValueError: a weight that has to be multiplied is computed from other tensors, or bounded,
            or the layer normalizes it in its forward.
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
    if not _is_proportional(module, _scaled(site)):
        raise ValueError(
            f"{name}: {type(module).__name__} is not proportional to its weight and bias, as if it "
            f"normalized them in its forward, so fold cannot write the multiplier {site.scale:.4g} "
            "into them; replace it by a layer that contains the factor"
        )


def _is_proportional(module: Any, scaled: list[torch.Tensor]) -> bool:
    """Whether twice these parameters, the weight and bias, give twice the output.

    Only a linear layer, convolution or embedding with a forward of its own is tried. Others are
    taken to be proportional, and so is one that cannot be tried, with a warning.
    """
    cls = getattr(module, "plain_class", type(module))
    kinds = (nn.Linear, nn.Embedding, _ConvNd)
    if cls.__module__.startswith("torch.nn.") or not isinstance(module, kinds):
        return True
    # Values of its own: those of the module may be sharded.
    values = {
        f"layer.{name}": torch.linspace(-1.0, 2.0, p.numel(), device=p.device).sin().view(p.shape)
        for name, p in module.named_parameters()
    }
    doubled = {f"layer.{n}" for n, p in module.named_parameters() if any(p is t for t in scaled)}
    twice = {name: 2 * value if name in doubled else value for name, value in values.items()}
    x = _sample(module).to(module.weight.device)
    forward = _Forward(cls, module)
    try:
        with evaluating(module):
            once, out = (torch.func.functional_call(forward, v, (x,)) for v in (values, twice))
        return torch.allclose(out, 2 * once)
    except Exception as error:  # other people's code, which may need other arguments or types
        logger.warning(
            "%s: cannot try whether its output is proportional to its weight (%s: %s); it is "
            "folded as if it were",
            *(cls.__name__, type(error).__name__, error),
        )
        return True


class _Forward(nn.Module):
    """A layer's own forward, without its hooks."""

    def __init__(self, cls: Any, layer: nn.Module) -> None:
        super().__init__()
        self.cls, self.layer = cls, layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cls.forward(self.layer, x)


def _sample(module: Any) -> torch.Tensor:
    if isinstance(module, nn.Embedding):
        return torch.zeros(1, 1, dtype=torch.long)
    if isinstance(module, nn.Linear):
        return torch.linspace(-1.0, 2.0, module.in_features)[None]
    sides = [4 * side * gap for side, gap in zip(module.kernel_size, module.dilation, strict=True)]
    return torch.linspace(-1.0, 2.0, module.in_channels * prod(sides)).view(1, -1, *sides)


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
