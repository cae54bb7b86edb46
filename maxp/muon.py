"""Muon: which sites it trains, and one optimizer that is Muon for them and AdamW for all else.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks"; Liu et al.
2025 (arXiv 2502.16982) for ``match_rms_adamw``. ``docs/theory.md``, "Muon", derives the exponents.
"""

import math
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch
from torch.optim import AdamW, Muon, Optimizer

from maxp import avx2
from maxp.exponents import ADJUST_LR_FNS, OPTIMIZER_TYPES, AdjustLrFn
from maxp.module import Site, is_frozen, weight_owners
from maxp.overrides import check_used, resolve
from maxp.plan import MarkedWeight


def muon_sites(
    sites: Mapping[str, Site],
    optimizer_type: str | Mapping[str, str],
    adjust_lr_fn: AdjustLrFn | None,
) -> dict[str, AdjustLrFn]:
    """The ``adjust_lr_fn`` of each site that Muon trains.

    Args:
        sites: of the model.
        optimizer_type: as in `maxp.Parametrization`.
        adjust_lr_fn: None is torch's default, ``"original"``.

    Raises:
        ValueError: an unknown optimizer type or function; a function without Muon; or Muon for a
            weight that is no hidden matrix. The message names the argument or the site.
    """
    if isinstance(optimizer_type, str):
        if optimizer_type not in (kinds := (*OPTIMIZER_TYPES, "muon")):
            raise ValueError(
                f"optimizer_type must be one of {', '.join(kinds)}, got {optimizer_type!r}"
            )
        optimizer_type = {"hidden": "muon"} if optimizer_type == "muon" else {}
    given = dict(optimizer_type)
    check_used("optimizer_type", given, sites)
    for key, kind in given.items():
        if kind not in ("adam", "muon"):
            raise ValueError(f"optimizer_type: {key} must be one of adam, muon, got {kind!r}")
    if adjust_lr_fn is not None and "muon" not in given.values():
        raise ValueError("adjust_lr_fn: only Muon has it; set optimizer_type='muon'")
    if adjust_lr_fn not in (None, *ADJUST_LR_FNS):
        raise ValueError(
            f"adjust_lr_fn must be one of {', '.join(ADJUST_LR_FNS)}, got {adjust_lr_fn!r}"
        )
    trained = {n: s for n, s in sites.items() if s.weight is not None and not is_frozen(s)}
    chosen = {name: s for name, s in trained.items() if resolve(name, s, given) == "muon"}
    for name, site in chosen.items():
        if site.layer_type != "hidden":
            raise ValueError(f"{name}: Muon is for hidden sites, and this one is {site.layer_type}")
        if site.weight.ndim != 2:
            shape = "x".join(map(str, site.weight.shape))
            raise ValueError(
                f"{name}: torch.optim.Muon takes matrices only, and the weight is {shape}; leave "
                f"it to AdamW with optimizer_type={{'hidden': 'muon', {name!r}: 'adam'}}"
            )
    for name, owner in weight_owners(sites).items():
        if (name in chosen) != (owner in chosen):
            raise ValueError(
                f"{name}: shares its weight with {owner}, so both need the same optimizer_type"
            )
    if "muon" in given.values() and not chosen:
        raise ValueError("optimizer_type: no hidden site is left for Muon; set it to 'adam'")
    return dict.fromkeys(chosen, adjust_lr_fn or "original")


def check_fan_outs(weights: Iterable[MarkedWeight], muons: Container[str]) -> None:
    """Check that the fan-out of each weight that Muon trains grows.

    An orthogonal update of a fixed rank moves the output by the square root of the fan-in.

    Raises:
        ValueError: one does not; the message names it.
    """
    for w in weights:
        if w.name in muons and w.fixed_out:
            raise ValueError(
                f"{w.name}: its fan-out does not grow, and Muon's learning rates are for weights "
                "whose fan-in and fan-out grow; leave it to AdamW with "
                f"optimizer_type={{'hidden': 'muon', {w.name!r}: 'adam'}}"
            )


def is_muons(group: Mapping[str, Any]) -> bool:
    """Whether a param group is one of Muon's."""
    return "adjust_lr_fn" in group


def entries_per_lr(group: Mapping[str, Any], weight: torch.Tensor) -> float:
    """The rms of an update's entries at learning rate 1: that of full rank with Muon, else 1."""
    if not is_muons(group):
        return 1.0
    rows, columns = weight.shape
    if group["adjust_lr_fn"] == "match_rms_adamw":
        return 0.2
    return math.sqrt(max(1.0, rows / columns) / max(rows, columns))


class MuonAdamW(Optimizer):
    """`torch.optim.Muon` for the hidden matrices, and `torch.optim.AdamW` for all else.

    It is one optimizer, with one state: schedulers of torch, `Parametrization.step` and checkpoints
    need nothing special.

    Args:
        params: `Parametrization.param_groups` with ``optimizer_type="muon"``, where the groups of
            hidden matrices contain ``adjust_lr_fn``.
        muon: arguments of `torch.optim.Muon`, such as ``{"momentum": 0.95}``.
        adamw: arguments of `torch.optim.AdamW`, such as ``{"betas": (0.9, 0.95)}``.

    Raises:
        ValueError: no group is Muon's; or ``muon`` has another ``adjust_lr_fn`` than the groups.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        muon: Mapping[str, Any] | None = None,
        adamw: Mapping[str, Any] | None = None,
    ) -> None:
        groups = list(params)
        if not any(map(is_muons, groups)):
            raise ValueError(
                "no group is for Muon; pass the param_groups of a Parametrization with "
                "optimizer_type='muon'"
            )
        self._constants = dict(muon or {}), dict(adamw or {})
        solved = {group["adjust_lr_fn"] for group in groups if is_muons(group)}
        if self._constants[0].get("adjust_lr_fn") not in (None, *solved):
            raise ValueError(
                "adjust_lr_fn: pass it to Parametrization; the learning rates of these groups are "
                f"for {', '.join(sorted(map(str, solved)))}"
            )
        super().__init__(groups, {})
        self._make_parts()

    def _make_parts(self) -> None:
        self._parts = self._split(self.param_groups)
        for part in self._parts:
            part.state = self.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it is Muon's if it contains ``adjust_lr_fn``."""
        super().add_param_group(param_group)
        if hasattr(self, "_parts"):  # otherwise the constructor adds its groups
            self._make_parts()

    def _split(self, groups: list[dict[str, Any]]) -> list[Optimizer]:
        muon, adamw = self._constants
        others = [group for group in groups if not is_muons(group)]
        parts: list[Optimizer] = [Muon([g for g in groups if is_muons(g)], **muon)]
        return [*parts, AdamW(others, **adamw)] if others else parts

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_constants": self._constants}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """After pickle, copy or `load_state_dict`: the groups and the state are new objects."""
        super().__setstate__(state)
        self._make_parts()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take a step with both optimizers."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        held = [id(group) for part in self._parts for group in part.param_groups]
        if sorted(held) != sorted(map(id, self.param_groups)):
            self._make_parts()
        with avx2.fast_products():
            for part in self._parts:
                part.step()
        return loss
