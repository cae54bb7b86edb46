"""The base model: the width, multiplier and initial standard deviation that exponents refer to.

With m = n / n_base at each site,

    scale = s_base m^-a      std = sigma_base m^-b      lr = lr_prefactor gamma m^-c

so at the base's own width (m = 1) no exponent changes anything. Without a base, n_base = s_base = 1
and sigma_base = std_prefactor. Source: Yang et al. 2022 (arXiv 2203.03466), appendix B;
``docs/theory.md``, "Base model".
"""

import logging
import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from maxp.module import MUP_AB, Site, find_sites
from maxp.overrides import check_used, resolve
from maxp.shards import rms

logger = logging.getLogger(__name__)

Base = nn.Module | Mapping[str, int]


class SiteBase(NamedTuple):
    """What a site's exponents refer to.

    Attributes:
        ratio: m = n / n_base.
        scale: s_base, the multiplier at m = 1.
        std: sigma_base, the standard deviation of the initial weight at m = 1.
    """

    ratio: float
    scale: float
    std: float


def resolve_base(
    sites: Mapping[str, Site],
    base: Base | None,
    base_std: Mapping[str, float] | None = None,
    std_multipliers: Mapping[str, float] | None = None,
    std_prefactor: float = 1.0,
    *,
    fewer_blocks: bool = False,
) -> dict[str, SiteBase]:
    """The base of every site. A site without a weight keeps n_base = s_base = 1 with every base.

    Args:
        sites: of the model, by name.
        base: as in `maxp.Parametrization`.
        base_std: sigma_base by site name, suffix or layer type.
        std_multipliers: factors on sigma_base by the same keys.
        std_prefactor: a factor on every sigma_base.
        fewer_blocks: a base that is a module may have fewer blocks than the model. A site of a
            block that it lacks has the base of the last such site.

    Raises:
        ValueError: the base has other sites or other layer types than the model; a width less than
            1, or none for a site; a standard deviation or multiplier that is not allowed; or a key
            that matches no site.
    """
    given, multipliers = dict(base_std or {}), positive("std_multipliers", std_multipliers, sites)
    check_used("base_std", given, sites)
    for key, std in given.items():
        if not (std >= 0 and math.isfinite(std)):
            raise ValueError(f"base_std: {key} must be finite and not negative, got {std}")
    if given and base is None:
        raise ValueError("base_std needs a base; without one, set std_prefactor or std_multipliers")
    of_base = _sites_of(base, sites, fewer_blocks) if isinstance(base, nn.Module) else {}
    widths = _widths(base, of_base, sites)
    bases = {}
    for name, site in sites.items():
        if site.weight is None:
            bases[name] = SiteBase(float(site.width_dim), 1.0, 1.0)
            continue
        std = std_prefactor * (resolve(name, site, multipliers) or 1.0)
        if base is not None:
            sigma = resolve(name, site, given)
            std *= _std(site, of_base.get(name), widths[name]) if sigma is None else sigma
        scale = _own_scale(of_base[name]) if name in of_base else 1.0
        bases[name] = SiteBase(site.width_dim / widths[name], scale, std)
    if wider := [n for n, b in bases.items() if b.ratio < 1 and sites[n].weight is not None]:
        logger.info("the base is wider than the model at %s", ", ".join(wider[:8]))
    return bases


def positive(
    what: str, multipliers: Mapping[str, float] | None, sites: Mapping[str, Site], *others: str
) -> dict[str, float]:
    """Multipliers by site name, suffix or layer type, checked.

    Args:
        what: the name of the argument.
        multipliers: None is none.
        sites: of the model.
        others: keys that are allowed and are not those of sites.

    Raises:
        ValueError: a multiplier that is not positive and finite, or a key that matches no site.
    """
    multipliers = dict(multipliers or {})
    for key, value in multipliers.items():
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{what}: {key} must be positive and finite, got {value}")
    weighted = [name for name, site in sites.items() if site.weight is not None]
    check_used(what, {key: 0 for key in multipliers if key not in others}, weighted)
    return multipliers


def _sites_of(base: nn.Module, sites: Mapping[str, Site], fewer_blocks: bool) -> dict[str, Site]:
    """The site of the base for each site of the model."""
    own = find_sites(base)
    of_base = {n: own[o] for n, o in counterparts(sites, own, fewer_blocks=fewer_blocks).items()}
    missing = sites.keys() - of_base.keys()
    if different := sorted(missing | own.keys() - sites.keys()):
        raise ValueError(
            f"base: its sites are not the model's: {', '.join(different[:8])}; only a base with "
            "fewer blocks is allowed, and needs the argument depth"
        )
    for name, site in sites.items():
        theirs = of_base[name].layer_type
        if theirs != site.layer_type:
            raise ValueError(f"base: {name} is {theirs}, but {site.layer_type} in the model")
    return of_base


def counterparts(
    names: Collection[str], others: Collection[str], *, fewer_blocks: bool
) -> dict[str, str]:
    """For each name of a model, the same one in the base, if there is one.

    Args:
        names: of the model.
        others: of the base.
        fewer_blocks: a block that the base lacks has the names of the base's last block. Only
            numbers may differ, as few as possible: ``blocks.5.mlp.0`` is ``blocks.1.mlp.0``, and
            not ``blocks.1.mlp.2``.
    """
    found = {name: name for name in others}
    alike: dict[str, list[str]] = {}
    for other in others if fewer_blocks else ():
        alike.setdefault(without_numbers(other), []).append(other)

    def likeness(name: str, other: str) -> tuple[int, list[bool], list[int]]:
        equal = [a == b for a, b in zip(name.split("."), other.split("."), strict=True)]
        return sum(equal), equal, [int(part) for part in other.split(".") if part.isdigit()]

    for name in names:
        if name not in found and (those := alike.get(without_numbers(name))):
            found[name] = max(those, key=partial(likeness, name))
    return {name: found[name] for name in names if name in found}


def without_numbers(name: str) -> str:
    """A name in which all blocks are called alike."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def _widths(
    base: Base | None, of_base: Mapping[str, Site], sites: Mapping[str, Site]
) -> dict[str, int]:
    """n_base of every site with a weight."""
    if base is None:
        return dict.fromkeys(sites, 1)
    if isinstance(base, nn.Module):
        return {name: site.width_dim for name, site in of_base.items()}
    check_used("base", base, sites)
    for key, width in base.items():
        if width < 1:
            raise ValueError(f"base: the width of {key} must be at least 1, got {width}")
    widths = {
        name: resolve(name, site, base) for name, site in sites.items() if site.weight is not None
    }
    if missing := [name for name, width in widths.items() if width is None]:
        raise ValueError(f"base: no width for {', '.join(missing[:8])}")
    return {name: width for name, width in widths.items() if width is not None}


def _own_scale(site: Site) -> float:
    """The multiplier that the user has set at a site of the base; 1 if it is what `mark` set."""
    a = MUP_AB[site.layer_type][0] if site.a is None else site.a
    return 1.0 if site.scale == site.width_dim**-a else site.scale


def _std(site: Site, base: Site | None, width: int) -> float:
    """sigma_base of a site: the rms of the base's weight, or else the usual initialisation's."""
    weight: torch.Tensor = site.weight if base is None else base.weight
    if not weight.is_meta and base is not None:
        return rms(weight)
    if site.layer_type != "embedding":
        return width**-0.5
    if is_look_up(site):
        return 1.0
    return float(weight.shape[1:].numel() ** -0.5)


def is_look_up(site: Site) -> bool:
    """Whether an embedding is a table of rows, (rows, width), rather than a matrix."""
    if isinstance(getattr(site, "op", site), nn.Embedding):
        return True
    rows, columns = site.weight.shape[0], site.weight.shape[1:].numel()
    return rows != site.width_dim and columns == site.width_dim
