"""torchtitan's optimizer groups, split one a site, and their lr under its schedules."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


class SiteGroups:
    """One param group a site and one for the rest, in optimizers that torchtitan has built.

    torchtitan's `LambdaLR` computes ``base_lr * factor(step)`` and recomputes it from the live
    ``base_lrs`` after a checkpoint is loaded; so what changes with a solve is ``base_lrs``.

    Args:
        optimizers: as built; each group is split, its other settings kept.
        weights: the sites' weights by name.
        independent_decay: AdamW's decay a step as ``factor(step) * independent_decay`` (Wortsman et
            al. 2023, arXiv 2309.14322), not times the lr, which here differs from site to site;
            0 keeps AdamW's own.
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        weights: Mapping[str, torch.Tensor],
        *,
        rest: str,
        independent_decay: float = 0.0,
    ) -> None:
        self._optimizers = list(optimizers)
        self._independent_decay = independent_decay
        site_of = {id(weight): name for name, weight in weights.items()}
        for optimizer in self._optimizers:
            optimizer.param_groups[:] = [
                part for group in optimizer.param_groups for part in _split(group, site_of, rest)
            ]
        # lr as configured for each group, which n^-c multiplies.
        self._prefactors = [[g["lr"] for g in o.param_groups] for o in self._optimizers]

    def set_factors(
        self, factors: Mapping[str, float], schedulers: Iterable[LambdaLR] | None = None
    ) -> None:
        """Set each group's base lr to its configured lr times ``factors[name]``.

        Args:
            factors: n^-c by group name.
            schedulers: one an optimizer, once they exist; the present lr follows the schedule.
        """
        followed = [None] * len(self._optimizers) if schedulers is None else list(schedulers)
        for optimizer, prefactors, scheduler in zip(
            self._optimizers, self._prefactors, followed, strict=True
        ):
            groups = optimizer.param_groups
            lrs = bases = [
                prefactor * factors[group["name"]]
                for prefactor, group in zip(prefactors, groups, strict=True)
            ]
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
                if self._independent_decay:
                    group["weight_decay"] = self._independent_decay / base

    def lrs(self) -> dict[str, float]:
        """The lr by group name that the optimizers' next step uses."""
        return {g["name"]: float(g["lr"]) for o in self._optimizers for g in o.param_groups}


def _split(group: dict[str, Any], site_of: Mapping[int, str], rest: str) -> list[dict[str, Any]]:
    """A group as one a site, and one for what is no site; parameter names stay aligned."""
    parts: dict[str, dict[str, Any]] = {}
    shared = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    for parameter, name in zip(group["params"], group["param_names"], strict=True):
        site = site_of.get(id(parameter), rest)
        if site not in parts:
            parts[site] = {"params": [], "param_names": [], **shared, "name": site}
        parts[site]["params"].append(parameter)
        parts[site]["param_names"].append(name)
    ordered = sorted(parts, key=lambda site: site == rest)
    return [parts[site] for site in ordered]
