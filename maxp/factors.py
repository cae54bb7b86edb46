"""What multiplies an optimizer's constants in each param group: lr, weight decay and eps.

With m = n / n_base at a site, and D the depth's factor inside blocks (1 without a `Depth`),

    lr             gamma m^-c D
    weight decay   gamma / lr, so that lr times decay does not depend on exponents
    eps            m^-(a + g), the size of the gradient of the site's weight

``docs/theory.md``, "Decay and epsilon", derives the last two.
"""

import logging
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer

from maxp.checks import check_optimizer, check_parameters, warn_of_not_held
from maxp.depth import Depth
from maxp.exponents import AdjustLrFn, bias_exponent, gradient_exponent, gradient_size
from maxp.graph import SiteNode
from maxp.groups import group_name, own_biases, set_values, split_group
from maxp.module import Site, bias_of, plain_name
from maxp.schedules import (
    discards_solution,
    has_scheduler,
    hide_products,
    lrs_without_scheduler,
    one_lr_for_all,
    one_scheduled_lr,
    scheduled_lrs,
    show_products,
    unwrapped,
    write_lrs,
)
from maxp.site_exponents import SiteExponents

logger = logging.getLogger(__name__)


class Factors(NamedTuple):
    """The factors of one param group on the optimizer's ``lr``, ``weight_decay`` and ``eps``.

    Attributes:
        lr: the learning rate is ``lr_prefactor * lr``.
        weight_decay: for decoupled decay (AdamW); 0 for biases, and for a group that holds only
            parameters with less than two dimensions.
        eps: for Adam; 1 with SGD. Groups of Muon take none.
    """

    lr: float
    weight_decay: float
    eps: float


class _Group(NamedTuple):
    """``site`` is None for what is not a site's; ``inside`` is whether a block contains it."""

    site: str | None
    is_bias: bool
    gamma: float
    decays: bool
    inside: bool


class ParamGroups(SiteExponents):
    """The param groups of a model, whose constants follow the exponents of its sites."""

    model: nn.Module
    sites: dict[str, Site]
    weights: dict[str, torch.Tensor]
    _has_warned_of_lrs = False

    def _make_groups(
        self,
        model: nn.Module,
        ratios: Mapping[str, float],
        gammas: Mapping[str, float],
        depth: Depth | None,
        lr_prefactor: float,
        constants: Mapping[str, float | None],
    ) -> None:
        """Build ``param_groups``.

        Args:
            model: contains the sites.
            ratios: m by site.
            gammas: factors on lr, by site with a weight, and for "rest".
            depth: None leaves depth out.
            lr_prefactor: the learning rate that factors multiply.
            constants: ``weight_decay`` and ``eps``; a group has no value for one that is None.
        """
        if constants.get("eps") is not None and self._optimizer_type == "sgd":
            raise ValueError("eps: SGD has none; leave it out")
        self._ratios, self._depth = dict(ratios), depth
        self._constants = {key: value for key, value in constants.items() if value is not None}
        self._lr_prefactor = lr_prefactor
        self.rest = group_name("rest", self.sites)
        biases = own_biases(self.sites, self._exponents, self._optimizer_type)
        single = {**self.weights, **{group: bias for group, (_, bias) in biases.items()}}
        own = {id(p) for p in single.values()}
        rest = {
            plain_name(name): parameter
            for name, parameter in model.named_parameters()
            if id(parameter) not in own and parameter.requires_grad
        }
        # The biases of experts have two dimensions, (experts, out).
        all_biases = {id(bias_of(site)) for site in self.sites.values()}
        matrices = {n for n, p in rest.items() if p.ndim >= 2 and id(p) not in all_biases}
        inside = (lambda _: False) if depth is None else depth.blocks(self.sites)
        parts = self._parts_of_rest(rest, matrices, inside)
        self._groups = {n: _Group(n, False, gammas[n], True, inside(n)) for n in self.weights}
        for group, (site, _) in biases.items():
            self._groups[group] = _Group(site, True, gammas["rest"], False, inside(site))
        for part, names in parts.items():
            decays = not matrices.isdisjoint(names)
            in_block = any(inside(name) for name in names) and part != self.rest
            self._groups[part] = _Group(None, False, gammas["rest"], decays, in_block)
        self.own_parameters: dict[str, torch.Tensor | list[torch.Tensor]] = {
            **single,
            **{
                part: [rest[n] for n in names] for part, names in parts.items() if part != self.rest
            },
        }
        whole = {"params": [*single.values(), *rest.values()]}
        self._param_groups = split_group(whole, self.own_parameters, self.rest)
        self._optimizer: Optimizer | None = None
        self._shows_products, self._scheduled_before = False, dict[str, float]()
        self._before_apply = dict[str, tuple[float, float]]()
        self.apply()

    def _parts_of_rest(
        self, rest: Iterable[str], matrices: Container[str], inside: Callable[[str], bool]
    ) -> dict[str, list[str]]:
        """The names of the parameters in each group of those that are not a site's.

        What is inside blocks has a group of its own with a `Depth`. So have parameters without
        decay, if groups have a ``weight_decay`` and others of the rest decay.

        Args:
            rest: the names of these parameters.
            matrices: the names of those that decay.
            inside: whether a block contains the parameter of a name.
        """
        mixed = len({name in matrices for name in rest}) == 2
        parts: dict[str, list[str]] = {self.rest: []}
        for name in rest:
            part = "rest"
            if inside(name):
                part += ".inside"
            if mixed and "weight_decay" in self._constants and name not in matrices:
                part += ".no_decay"
            group = self.rest if part == "rest" else group_name(part, self.sites)
            parts.setdefault(group, []).append(name)
        return parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups to build an optimizer on, with their constants.

        Raises:
            ValueError: the model has other parameters by now.
        """
        groups = self._param_groups
        check_parameters(self.model, ((g["name"], p) for g in groups for p in g["params"]))
        return groups

    def factors(self) -> dict[str, Factors]:
        """The factors on lr, weight decay and eps, by param group name.

        All are 1 at the width and depth of the base, but for gamma, and for decays that are 0.
        """
        kind = self._optimizer_type
        g = gradient_exponent(self.graph, self._exponents, self.c, kind)
        before_readouts = gradient_size(self.graph, self._exponents, self.c, self._ratios)
        factors = {}
        for name, group in self._groups.items():
            ratio, c, gradient = 1.0, 0.0, before_readouts
            if group.site is not None:
                ratio, e = self._ratios[group.site], self._exponents[group.site]
                node = self.graph.nodes[group.site]
                assert isinstance(node, SiteNode)
                c = bias_exponent(node, e, kind, g) if group.is_bias else self.c[group.site]
                gradient = ratio**-e.a * (1.0 if node.layer_type == "readout" else gradient)
            depth_lr = depth_eps = 1.0
            if self._depth and group.inside:
                depth_lr, depth_eps = self._depth.lr_factor(kind), self._depth.eps_factor()
            factors[name] = Factors(
                lr=group.gamma * ratio**-c * depth_lr,
                weight_decay=ratio**c / depth_lr if group.decays else 0.0,
                eps=gradient * depth_eps if kind == "adam" else 1.0,
            )
        return factors

    def lr_factors(self) -> dict[str, float]:
        """gamma m^-c by param group name, with the factor of depth; see `factors`."""
        return {name: factors.lr for name, factors in self.factors().items()}

    def lrs(self) -> dict[str, float]:
        """The learning rates by param group name: lr_prefactor times `lr_factors`."""
        return {name: self._lr_prefactor * f for name, f in self.lr_factors().items()}

    @property
    def lr_prefactor(self) -> float:
        """The learning rate that factors multiply.

        Setting it changes ``param_groups`` and the optimizer that `apply` or `step` last received.
        A scheduler of torch may change the optimizer's groups instead, or as well.
        """
        return self._lr_prefactor

    @lr_prefactor.setter
    def lr_prefactor(self, value: float) -> None:
        if not (value >= 0 and math.isfinite(value)):
            raise ValueError(f"lr_prefactor must be finite and not negative, got {value}")
        self._lr_prefactor = value
        self.apply()

    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Write the learning rates into ``param_groups`` and into the optimizer's groups.

        Also write ``weight_decay`` and ``eps``, if `Parametrization` received them. An optimizer
        shares its groups with ``param_groups`` only until it loads a state, which replaces them.
        Call ``apply(optimizer)`` after ``optimizer.load_state_dict``; until then, or until the next
        `step`, new values do not reach the optimizer.

        Args:
            optimizer: the optimizer to follow from now on; its groups are matched by ``name``. None
                is the optimizer that `apply` or `step` last received.

        Raises:
            ValueError: the optimizer has none of the groups, or lacks a site's.
        """
        values = self._values()
        if optimizer is not None:
            optimizer = unwrapped(optimizer)
            if not any(group.get("name") in values for group in optimizer.param_groups):
                raise ValueError(
                    "the optimizer has no group of this model's sites; build it on .param_groups"
                )
            held = {group.get("name") for group in optimizer.param_groups}
            if missing := [name for name in self.weights if name not in held]:
                raise ValueError(
                    f"the optimizer has no group of {', '.join(missing[:8])}; build it on all of "
                    ".param_groups, or freeze what is not trained before Parametrization"
                )
            self._follow(optimizer)
        if self._optimizer is not None:
            self._warn_of_discarded_solution(self._groups_in(self._optimizer))
        groups = [*self._param_groups, *self._groups_in(self._optimizer)]
        groups = list({id(group): group for group in groups}.values())
        lrs = {name: constants.pop("lr") for name, constants in values.items()}
        write_lrs(groups, lrs, self._lr_prefactor, show=self._shows_products)
        set_values(groups, values)

    def _groups_in(self, optimizer: Optimizer | None) -> list[dict[str, Any]]:
        """The groups of an optimizer that are those of this Parametrization, by name.

        Another Parametrization may have groups of the same names; their parameters tell.
        """
        groups = [] if optimizer is None else optimizer.param_groups
        groups = [group for group in groups if group.get("name") in self._groups]
        names = Counter(group["name"] for group in groups)
        if len(names) == len(groups):
            return groups
        own = {id(p) for group in self._param_groups for p in group["params"]}
        return [
            group
            for group in groups
            if names[group["name"]] == 1 or any(id(p) in own for p in group["params"])
        ]

    def _follow(self, optimizer: Optimizer) -> None:
        """Let the groups of an optimizer contain the product of all factors while it steps."""
        if optimizer is self._optimizer:
            return
        check_optimizer(optimizer, "muon" if self._adjust_lr_fns() else self._optimizer_type)
        warn_of_not_held(self.model, optimizer)
        self._optimizer, self._scheduled_before, self._before_apply = optimizer, {}, {}
        self._shows_products = False
        if hasattr(optimizer, "register_step_pre_hook"):
            optimizer.register_step_pre_hook(self._before_optimizer_step)
            optimizer.register_step_post_hook(self._after_optimizer_step)

    def _before_optimizer_step(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer is self._optimizer:
            self._warn_of_one_lr(optimizer)
            groups = self._groups_in(optimizer)
            show_products(groups, self._lr_prefactor)
            self._warn_of_one_scheduled_lr(groups)

    def _warn_of_one_lr(self, optimizer: Optimizer) -> None:
        """Warn once of one lr that the loop has assigned to all groups."""
        if not self._has_warned_of_lrs and one_lr_for_all(self._groups_in(optimizer)):
            self._warn_of_lrs(
                "one learning rate for all param groups replaces the factors of the width; instead "
                "of group['lr'] = lr"
            )

    def _warn_of_one_scheduled_lr(self, groups: list[dict[str, Any]]) -> None:
        """Warn once of one lr to which a scheduler has led all groups."""
        if not self._has_warned_of_lrs and one_scheduled_lr(groups):
            self._has_warned_of_lrs = True
            logger.warning(
                "the scheduler has led all param groups to one learning rate, which replaces the "
                "factors of the width; give it one per group, such as swa_lr=[lr * "
                "p.lr_factors()[g['name']] for g in optimizer.param_groups], or eta_min=0"
            )

    def _warn_of_discarded_solution(self, groups: list[dict[str, Any]]) -> None:
        """Warn once of lrs of an earlier solution that the loop has assigned since `apply`."""
        if self._has_warned_of_lrs:
            return
        before, self._before_apply = self._before_apply, lrs_without_scheduler(groups)
        if discards_solution(before, self._before_apply):
            self._warn_of_lrs(
                "learning rates of an earlier solution replace those that step has solved for; "
                "instead of group['lr'] = first_lr * f"
            )

    def _warn_of_lrs(self, message: str) -> None:
        self._has_warned_of_lrs = True
        logger.warning("%s, set p.lr_prefactor = lr before each step", message)

    def _after_optimizer_step(self, optimizer: Optimizer, *_: Any) -> None:
        if optimizer is self._optimizer:
            groups = self._groups_in(optimizer)
            hide_products(groups)
            self._scheduled_before = _scheduled(groups)

    def _see_schedulers(self, optimizer: Optimizer) -> None:
        """Note whether a scheduler has stepped since the optimizer's step.

        If so, it comes before `Parametrization.step`, and the groups can show the product.
        """
        if optimizer is self._optimizer and self._scheduled_before:
            scheduled = _scheduled(self._groups_in(optimizer))
            self._shows_products |= scheduled != self._scheduled_before

    def _adjust_lr_fns(self) -> dict[str, AdjustLrFn]:
        """``adjust_lr_fn`` by site, of those that Muon trains."""
        fns = {name: self._exponents[name].adjust_lr_fn for name in self.weights}
        return {name: fn for name, fn in fns.items() if fn is not None}

    def _values(self) -> dict[str, dict[str, Any]]:
        """The values of ``lr`` and of the constants, by param group name."""
        constants = {"lr": self._lr_prefactor, **self._constants}
        values: dict[str, dict[str, Any]] = {
            name: {key: constant * getattr(factors, key) for key, constant in constants.items()}
            for name, factors in self.factors().items()
        }
        for name, fn in self._adjust_lr_fns().items():
            values[name]["adjust_lr_fn"] = fn
            values[name].pop("eps", None)  # Muon's eps is another one
        return values

    def _stepped_otherwise(self, optimizer: Optimizer) -> bool:
        lrs = {group["name"]: group["lr"] for group in self._param_groups}
        return any(
            g["lr"] != lrs.get(g["name"], g["lr"])
            for g in self._groups_in(optimizer)
            if not has_scheduler(g)
        )


def _scheduled(groups: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The schedulers' lr by group name."""
    return {group["name"]: lr for group, lr in scheduled_lrs(groups)}
