"""torchtitan's optimizer groups, split into one per site, and their lr under a schedule."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from maxp.factors import Factors
from maxp.groups import split_group
from maxp.muon import is_muons
from train.method.optimizers import SiteDistMuon

FOLLOWED = ("weight_decay", "eps")
"""Settings of a group that a method can multiply by a factor, beside the lr."""


class SiteGroups:
    """One param group per site and one for the rest, in optimizers that torchtitan has built.

    torchtitan's `LambdaLR` computes ``base_lr * factor(step)``, and recomputes it from the live
    ``base_lrs`` after it loads a checkpoint. A new solution therefore changes ``base_lrs``.

    Args:
        optimizers: as torchtitan built them. Each group is split and keeps its other settings.
        own: the parameter or parameters with a learning rate of their own, by group name
            (`maxp.Parametrization.own_parameters`).
        rest: the name of the group of all other parameters (`maxp.Parametrization.rest`).
        follow: those of `FOLLOWED` that are multiplied by their factor; others keep their value.
        independent_decay: weight decay per step, ``factor(step) * independent_decay`` (Wortsman et
            al. 2023, arXiv 2309.14322). It does not depend on the learning rate, which differs
            between sites. Groups configured without decay stay without. 0 keeps AdamW's own decay.
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        own: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
        *,
        rest: str,
        follow: Iterable[str] = (),
        independent_decay: float = 0.0,
    ) -> None:
        self._optimizers = list(optimizers)
        self._independent_decay = independent_decay
        for optimizer in self._optimizers:
            parts = [
                part for group in optimizer.param_groups for part in split_group(group, own, rest)
            ]
            if isinstance(optimizer, SiteDistMuon):
                optimizer.site_of = {n: part["name"] for part in parts for n in part["param_names"]}
            else:
                optimizer.param_groups[:] = parts
        self._follow = follow = tuple(follow)
        # What each group is configured with, which the factors multiply.
        self._configured: list[list[dict[str, Any]]] = [
            [
                {key: g[key] for key in ("lr", *follow) if not _of_muon(key, g)}
                for g in o.param_groups
            ]
            for o in self._optimizers
        ]

    def set_factors(
        self, factors: Mapping[str, Factors], schedulers: Iterable[LambdaLR] | None = None
    ) -> None:
        """Set each group's base lr, and what follows, to its configured value times the factor.

        Args:
            factors: by group name.
            schedulers: one per optimizer, once they exist; the current lr follows the schedule.
        """
        schedules = [None] * len(self._optimizers) if schedulers is None else list(schedulers)
        for optimizer, configured, scheduler in zip(
            self._optimizers, self._configured, schedules, strict=True
        ):
            groups = optimizer.param_groups
            if isinstance(optimizer, SiteDistMuon):
                own_sites = {name: factors[name] for name in optimizer.site_of.values()}
                optimizer.factors = {n: self._of_whole(f) for n, f in own_sites.items()}
            lrs = bases = [
                own["lr"] * _factors(group, factors).lr
                for own, group in zip(configured, groups, strict=True)
            ]
            for own, group in zip(configured, groups, strict=True):
                for key in own.keys() - {"lr"}:
                    group[key] = own[key] * getattr(_factors(group, factors), key)
            if scheduler is not None:
                now = scheduler.last_epoch
                # As get_lr() computes it, which warns when it is called outside of a step.
                lrs = [
                    base * schedule(now)
                    for base, schedule in zip(bases, scheduler.lr_lambdas, strict=True)
                ]
                scheduler.base_lrs, scheduler._last_lr = bases, list(lrs)
            for group, base, lr in zip(groups, bases, lrs, strict=True):
                group["lr"] = lr
                if scheduler is not None:
                    group["initial_lr"] = base
                if self._independent_decay and group["weight_decay"]:
                    group["weight_decay"] = self._independent_decay / base

    def lrs(self) -> dict[str, float]:
        """By group name, the lr that the optimizers' next step uses."""
        lrs: dict[str, float] = {}
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                if isinstance(optimizer, SiteDistMuon):
                    lrs |= {n: float(group["lr"]) * f.lr for n, f in optimizer.factors.items()}
                else:
                    lrs[group["name"]] = float(group["lr"])
        return lrs

    def _of_whole(self, factors: Factors) -> Factors:
        """What multiplies the values of a group that is not split, at one of its sites."""
        decay = factors.weight_decay if "weight_decay" in self._follow else 1.0
        return factors._replace(weight_decay=1 / factors.lr if self._independent_decay else decay)


def _factors(group: Mapping[str, Any], factors: Mapping[str, Factors]) -> Factors:
    """A group's factors; a group that is not split has no name, and keeps its values."""
    return factors[group["name"]] if "name" in group else Factors(1.0, 1.0, 1.0)


def _of_muon(key: str, group: Mapping[str, Any]) -> bool:
    """Whether this is Muon's eps, which is no size of a gradient's entries as Adam's is."""
    return key == "eps" and is_muons(group)
