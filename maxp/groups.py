"""Param groups by site, and how a new lr reaches them and the optimizer that is built on them."""

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

# The name of the last param group, of all that is not a site.
REST = "rest"


class ParamGroups:
    """One group a site, one for each bias behind a multiplier, and last one for the rest.

    Args:
        model: whose parameters are grouped.
        weights: the sites' weights by name.
        biases: biases with an lr of their own, by the name of their site.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[str, torch.Tensor],
        biases: Mapping[str, nn.Parameter],
    ) -> None:
        self.groups: list[dict[str, Any]] = [
            *({"params": [weight], "name": name} for name, weight in weights.items()),
            *({"params": [bias], "name": f"{name}.bias"} for name, bias in biases.items()),
        ]
        grouped = {id(parameter) for group in self.groups for parameter in group["params"]}
        rest = [p for p in model.parameters() if id(p) not in grouped]
        if rest:
            self.groups.append({"params": rest, "name": REST})
        self._lrs: dict[str, float] = {}
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._finder: Any = None

    def set_lrs(self, lrs: Mapping[str, float], optimizer: Optimizer | None = None) -> None:
        """Write the lr into the groups and into an optimizer's groups of the same names.

        Args:
            lrs: by group name.
            optimizer: None is the last one given, or the one that steps next on these parameters.

        Raises:
            ValueError: the optimizer has none of the groups.
        """
        self._lrs = dict(lrs)
        if optimizer is not None:
            if not any(group.get("name") in lrs for group in optimizer.param_groups):
                raise ValueError(
                    "the optimizer has no group of this model's sites; build it on .param_groups"
                )
            self._optimizer = weakref.ref(optimizer)
        live = self._live_optimizer()
        for group in (*self.groups, *(live.param_groups if live is not None else ())):
            if group.get("name") in lrs:
                group["lr"] = lrs[group["name"]]

    def reach_the_next_optimizer(self) -> None:
        """If no optimizer is known yet, find it when it steps next, and write the lr then.

        Until then it is known only by its groups, which are these until it loads a state: that
        replaces them, and what is written into these no longer reaches it.
        """
        if self._live_optimizer() is not None or self._finder is not None:
            return
        me = weakref.ref(self)

        def before_step(optimizer: Optimizer, *_: Any) -> None:
            this = me()
            if this is not None and this._live_optimizer() is None and this._owns(optimizer):
                this.set_lrs(this._lrs, optimizer)

        self._finder = register_optimizer_step_pre_hook(before_step)
        weakref.finalize(self, self._finder.remove)

    def _live_optimizer(self) -> Optimizer | None:
        return self._optimizer() if self._optimizer is not None else None

    def _owns(self, optimizer: Optimizer) -> bool:
        mine = {id(p) for group in self.groups for p in group["params"]}
        return any(id(p) in mine for group in optimizer.param_groups for p in group["params"])
