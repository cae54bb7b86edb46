"""Checks of a model's sites when a `maxp.Parametrization` is built: one line per fault."""

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from maxp.module import Site, few, find_sites, plain_name
from maxp.shards import reshard

logger = logging.getLogger(__name__)


def check_sites(sites: Mapping[str, Site]) -> None:
    """Check that every site is a matrix, and that its width is one of the matrix's dimensions.

    Raises:
        ValueError: names the site and the remedy.
    """
    for name, site in sites.items():
        n, weight = site.width_dim, site.weight
        if not isinstance(n, int):
            raise ValueError(f"{name}: width_dim must be a whole number, got {n}")
        if weight is None:
            continue
        shape = "x".join(map(str, weight.shape))
        if weight.ndim < 2:
            raise ValueError(
                f"{name}: a weight of shape {shape} is a gain or bias, not a matrix; leave "
                f"{type(getattr(site, 'op', site)).__name__} unmarked"
            )
        if n not in {*weight.shape, weight.shape[1:].numel()}:
            raise ValueError(
                f"{name}: width_dim {n} is no dimension of its weight, {shape}; give the one that "
                "grows with the model's width"
            )


def check_branches(sites: Mapping[str, Site], branch_scale: Callable[[str], float]) -> None:
    """Check that the sites that end a residual branch can have a multiplier.

    Raises:
        ValueError: one cannot; the message names it.
    """
    for name, site in sites.items():
        if site.fixed_scale and branch_scale(name) != 1:
            raise ValueError(
                f"depth: {name} ends a residual branch, but its weight is read by other modules, "
                "so that it can have no multiplier; leave depth out for this model"
            )


# Optimizers whose update does not depend on the gradient's scale, by the name of their class.
_LIKE_ADAM = frozenset(
    ("Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adafactor", "Lion", "RMSprop", "Adagrad")
)


def check_optimizer(optimizer: Any, optimizer_type: str) -> None:
    """Warn if an optimizer is not known to have the exponents of ``optimizer_type``."""
    names = {cls.__name__ for cls in type(getattr(optimizer, "optimizer", optimizer)).__mro__}
    known = "sgd" if "SGD" in names else "adam" if names & _LIKE_ADAM else None
    known = "muon" if "MuonAdamW" in names else known
    if known == optimizer_type:
        return
    if optimizer_type == "muon":
        logger.warning(
            "%s: the learning rates assume Muon at hidden matrices and AdamW at all else; use "
            "maxp.MuonAdamW",
            type(optimizer).__name__,
        )
        return
    does = "does not depend" if optimizer_type == "adam" else "grows in proportion"
    to = "on" if optimizer_type == "adam" else "to"
    logger.warning(
        "%s is %s: the learning rates assume optimizer_type=%r, an update that %s %s the "
        "gradient's scale",
        type(optimizer).__name__,
        "not known" if known is None else f"an optimizer of type {known!r}",
        optimizer_type,
        does,
        to,
    )


def warn_of_not_held(model: nn.Module, optimizer: Any) -> None:
    """Warn of trained parameters that no param group of an optimizer holds."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [
        plain_name(name)
        for name, p in model.named_parameters()
        if p.requires_grad and id(p) not in held
    ]
    if missing:
        logger.warning(
            "no param group holds %s: they are not trained; build the optimizer on all of "
            "Parametrization.param_groups, or freeze them (requires_grad=False)",
            few(missing),
        )


def check_alignments(overrides: Mapping[str, tuple[float, float, float]]) -> None:
    """Check ``alignment_overrides``.

    Raises:
        ValueError: a value outside [0, 1]; the message names the key.
    """
    for key, values in overrides.items():
        # Measured values, as in tables, are exact to rounding.
        if len(values) != 3 or not all(-1e-4 <= value <= 1 + 1e-4 for value in values):
            raise ValueError(
                f"alignment_overrides: {key} must be three numbers in [0, 1], got {tuple(values)}"
            )


def check_in_model(sites: Mapping[str, Site], model: nn.Module) -> None:
    """Check that a model still has its sites.

    Raises:
        ValueError: one has been replaced, as transformers replaces an untied head that it resizes.
    """
    present = {id(site) for site in find_sites(model).values()}
    if replaced := [name for name, site in sites.items() if id(site) not in present]:
        raise ValueError(
            f"{', '.join(replaced[:8])}: replaced since Parametrization, with its multiplier; "
            "change the model before, for example with resize_token_embeddings"
        )


def check_parameters(model: nn.Module, held: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Check that a model still has the parameters that a `maxp.Parametrization` holds.

    Args:
        model: may have gathered weights of FSDP2.
        held: (name of a site or param group, parameter).

    Raises:
        ValueError: some have been replaced, as ``load_state_dict(assign=True)`` does.
    """
    held = list(held)

    def replaced() -> list[str]:
        present = {id(parameter) for parameter in model.parameters()}
        return list(dict.fromkeys(name for name, p in held if id(p) not in present))

    if replaced():
        reshard(model)  # a gathered weight is another tensor
        if names := replaced():
            raise ValueError(
                f"{few(names)}: the model's parameters are not those that Parametrization found; "
                "load its state without assign=True, and call to_empty and fully_shard before "
                "Parametrization"
            )


def check_scales(sites: Mapping[str, Site], scales: Mapping[str, float]) -> None:
    """Check the multipliers of a loaded state.

    Raises:
        ValueError: a site has another one.
    """
    for name, scale in scales.items():
        if name in sites and not math.isclose(scale, sites[name].scale, rel_tol=1e-6):
            raise ValueError(
                f"{name}: the state is of a model whose multiplier is {scale:.6g}, and it is "
                f"{sites[name].scale:.6g} here; give the same base and ab_overrides"
            )


def warn_of_unmarked(model: nn.Module, base: Any) -> None:
    """Warn of each matrix that grows with the width and is no site.

    Args:
        model: with the sites that its user has marked.
        base: the same model at another width. Nothing is compared if it is no module.
    """
    if not isinstance(base, nn.Module):
        return
    sites = find_sites(model)
    marked = {id(site.weight) for site in sites.values()}
    shapes = {plain_name(n): p.shape for n, p in base.named_parameters(remove_duplicate=False)}
    paths = [(plain_name(n), p) for n, p in model.named_parameters(remove_duplicate=False)]
    times = Counter(id(p) for _, p in paths)
    for name, parameter in paths:
        shape = parameter.shape
        grows = len(shape) > 1 and shapes.get(name, shape) != shape
        # A tied weight may be marked in one role alone.
        is_marked = id(parameter) in marked and (
            times[id(parameter)] == 1 or any(f"{name}.".startswith(f"{site}.") for site in sites)
        )
        if grows and not is_marked:
            logger.warning(
                "%s grows with the width and is not marked, so its learning rate does not "
                "transfer; wrap its module in ParametrizedModule, or let maxp.mark find all sites",
                name,
            )
