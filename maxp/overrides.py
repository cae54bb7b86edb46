"""Resolves overrides for a site: by its name, a suffix of it, the site itself, or its layer type.

The most specific value wins: an override for the name, then for its longest suffix, then the value
set at the site, then an override for its layer type, then the default.
"""

import logging
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from maxp.exponents import PRESETS, Alignment, Exponents
from maxp.module import LAYER_TYPES, MUP_AB, Site, few, is_frozen, weight_owners

logger = logging.getLogger(__name__)

T = TypeVar("T")
AB = tuple[float, float]

# Both presets of a site without a weight. With a = 1/2, it then only requires r >= 0 of its inputs.
_BILINEAR = Alignment(0.5, 0.5, 0.5)

PARAMETRIZATIONS: dict[str, dict[str, AB]] = {
    "mup": dict(MUP_AB),
    "standard": {"embedding": (0.0, 0.0), "hidden": (0.0, 0.5), "readout": (0.0, 0.5)},
    "ntk": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (0.5, 0.0)},
    "mean-field": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (1.0, 0.0)},
}
"""Parametrizations by name: (a, b) by layer type, to pass as ``ab_overrides``.

Source: Everett et al. 2024 (arXiv 2407.05872), table of parametrizations.
"""


def by_name(name: str, overrides: Mapping[str, T]) -> T | None:
    """The override for a site's name, or else for its longest suffix, split at dots.

    ``"fc"`` and ``"ff.fc"`` match ``"blocks.0.ff.fc"``; ``"c"`` does not.
    """
    key = matching_key(name, overrides)
    return None if key is None else overrides[key]


def matching_key(name: str, keys: Container[str]) -> str | None:
    """The key that is a site's name, or else its longest suffix, split at dots."""
    parts = name.split(".")
    suffixes = (".".join(parts[first:]) for first in range(len(parts)))
    return next((suffix for suffix in suffixes if suffix in keys), None)


def check_used(what: str, overrides: Mapping[str, object], names: Iterable[str]) -> None:
    """Raise unless every key is a layer type, a site's name, or a suffix of a site's name.

    Raises:
        ValueError: a key matches no site; the message names it.
    """
    names = list(names)
    unused = [
        key
        for key in overrides
        if key not in LAYER_TYPES and all(by_name(name, {key: True}) is None for name in names)
    ]
    if unused:
        raise ValueError(f"{what} for {', '.join(unused)} matches no site; sites are {few(names)}")


def resolve(name: str, site: Site, overrides: Mapping[str, T], given: T | None = None) -> T | None:
    """The most specific value for a site; ``given`` is the value set at the site itself."""
    value = by_name(name, overrides)
    if value is None:
        value = given
    return overrides.get(site.layer_type) if value is None else value


def ab_by_key(overrides: Mapping[str, AB] | Sequence[AB] | None) -> dict[str, AB]:
    """``ab_overrides`` as a mapping; three pairs are for embedding, hidden and readout.

    Raises:
        ValueError: a sequence that is not of length 3.
    """
    if overrides is None or isinstance(overrides, Mapping):
        return dict(overrides or {})
    if len(overrides) != len(LAYER_TYPES):
        raise ValueError(
            "ab_overrides: give a mapping, or three (a, b) for embedding, hidden and readout"
        )
    return dict(zip(LAYER_TYPES, overrides, strict=True))


def resolve_ab(name: str, site: Site, overrides: Mapping[str, AB]) -> AB:
    """(a, b) of a site, checked against its layer type's condition at init.

    Raises:
        ValueError: the (a, b) breaks the condition; the message names the site and the condition.
    """
    a, b = MUP_AB[site.layer_type]
    # A pair for a layer type is for layers; QK^T keeps 1/sqrt(head_dim) in every parametrization.
    if site.layer_type in overrides and site.weight is not None:
        a, b = overrides[site.layer_type]
    a, b = (a if site.a is None else site.a), (b if site.b is None else site.b)
    a, b = by_name(name, overrides) or (a, b)
    if site.weight is None:
        return a, b  # no weight is drawn, so there is no condition at init
    holds, condition = {
        "embedding": (abs(a + b) < 1e-9, "a + b = 0"),
        "hidden": (abs(a + b - 0.5) < 1e-9, "a + b = 1/2"),
        "readout": (a + b >= 0.5 - 1e-9, "a + b >= 1/2"),
    }[site.layer_type]
    if not holds:
        raise ValueError(
            f"{name}: (a, b) = ({a:g}, {b:g}), but {site.layer_type} needs {condition}, or its "
            "output grows or vanishes with width at init"
        )
    return a, b


def resolve_alignment(
    name: str,
    site: Site,
    overrides: Mapping[str, tuple[float, float, float]],
    preset: Alignment = PRESETS["full"],
) -> Alignment:
    """A site's alignment before it is measured: an override, or the preset."""
    default = preset if site.weight is not None else _BILINEAR
    return Alignment(*(resolve(name, site, overrides) or default))


def resolve_exponents(
    sites: Mapping[str, Site],
    preset: Alignment,
    ab_overrides: Mapping[str, AB] | Sequence[AB] | None,
    c_overrides: Mapping[str, float],
    alignment_overrides: Mapping[str, tuple[float, float, float]],
) -> dict[str, Exponents]:
    """The exponents of every site, as the program takes them.

    Raises:
        ValueError: an override that matches no site, or an (a, b) that breaks its site's condition.
    """
    ab = ab_by_key(ab_overrides)
    check_used("ab_overrides", ab, sites)
    check_used("c_overrides", c_overrides, [n for n, s in sites.items() if s.weight is not None])
    check_used("alignment_overrides", alignment_overrides, sites)
    for name, owner in weight_owners(sites).items():
        if by_name(name, c_overrides) is not None:
            raise ValueError(f"c_overrides: {name} has the weight of {owner}; give c for {owner}")
    exponents = {
        name: Exponents(
            *resolve_ab(name, site, ab),
            resolve_alignment(name, site, alignment_overrides, preset),
            None if site.weight is None else resolve(name, site, c_overrides, site.c),
        )
        for name, site in sites.items()
    }
    return _with_shared_b(sites, exponents)


def _with_shared_b(
    sites: Mapping[str, Site], exponents: Mapping[str, Exponents]
) -> dict[str, Exponents]:
    """Move powers of the width between multiplier and weight where there is no choice.

    A site without a multiplier, or with a frozen weight, has a = 0; and a tied weight has one b.
    Only a + b matters at init, and c follows a: (a, b, c) and (a + t, b - t, c - t) are the same
    model with Adam.
    """
    owners, moved = weight_owners(sites), dict(exponents)
    for name, e in exponents.items():
        if sites[name].fixed_scale or is_frozen(sites[name]):
            moved[name] = replace(e, a=0.0, b=e.a + e.b)
    for name, owner in owners.items():
        e = moved[name]
        if sites[name].fixed_scale and e.b != moved[owner].b:
            raise ValueError(
                f"{name}: tied to {owner}, but no multiplier can be applied; untie them"
            )
        moved[name] = replace(e, a=e.a + e.b - moved[owner].b, b=moved[owner].b, c=None)
        logger.info(
            "%s shares its weight with %s, which gets the smaller of the learning rates that the "
            "two roles allow; untie them to let each learn at its own",
            name,
            owner,
        )
    return moved


def check_arguments(alignment: str, **numbers: float | None) -> None:
    """Check the arguments of `Parametrization` that need no model. None is always allowed.

    Raises:
        ValueError: names the argument and its allowed values.
    """
    if alignment not in PRESETS:
        raise ValueError(f"alignment must be one of {', '.join(PRESETS)}, got {alignment!r}")
    for name, value in numbers.items():
        if value is None:
            continue
        if name.endswith("_ema"):
            right, rule = 0 <= value < 1, "must be in [0, 1)"
        elif name == "weight_decay":
            right, rule = value >= 0 and math.isfinite(value), "must be finite and not negative"
        elif name == "warmup_steps":
            right, rule = value >= 0, "must not be negative"
        else:
            right, rule = value > 0 and math.isfinite(value), "must be positive"
        if not right:
            raise ValueError(f"{name} {rule}, got {value}")
