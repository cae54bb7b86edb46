"""Learning rates under a schedule that somebody else applies to an optimizer's groups.

The lr of a group is a product: what a scheduler makes of the group's first lr, times the factor by
which n^-c has changed since. Schedulers of `torch.optim.lr_scheduler` either compute an lr from its
previous value or overwrite it, so they must find the lr that they wrote. Therefore, once there is
one, a group contains the scheduler's lr, and the product while ``optimizer.step()`` runs. If
`Parametrization.step` is called after the scheduler's step, the group contains the product from
there on, until the optimizer has stepped; a factor that multiplies it meanwhile is the schedule's.

Without such a scheduler, a group contains the product, and whatever multiplied it since it was last
written is kept: by hand, or by `ReduceLROnPlateau`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

Group = dict[str, Any]

# Keys of a group, so that they are saved with the optimizer: the lr without a schedule, as it was
# last written; its value when the scheduler was made; and the scheduler's lr while the group
# contains the product.
_OURS, _REFERENCE, _SCHEDULED = "maxp_lr", "maxp_reference_lr", "maxp_scheduled_lr"


def unwrapped(optimizer: Any) -> Any:
    """The optimizer that a wrapper of accelerate or Lightning contains."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = inner
    return optimizer


def has_scheduler(group: Group) -> bool:
    """Whether a scheduler of torch has been made for an optimizer with this group."""
    return "initial_lr" in group


def write_lrs(
    groups: Iterable[Group], lrs: Mapping[str, float], prefactor: float, *, show: bool
) -> None:
    """Write new learning rates into the groups of the same names, and keep their schedules.

    Args:
        groups: of an optimizer.
        lrs: the learning rates without a schedule, by group name.
        prefactor: the learning rate that factors multiply.
        show: let groups with a scheduler contain the product.
    """
    groups = [group for group in groups if group.get("name") in lrs]
    _refer(groups, prefactor)
    for group, scheduled in scheduled_lrs(groups):
        group.pop(_SCHEDULED, None)
        group["lr"], group[_OURS] = scheduled, lrs[group["name"]]
        if show:
            _show(group, scheduled)
    for group in groups:
        if not has_scheduler(group):
            ours, written = lrs[group["name"]], group.get(_OURS)
            unchanged = not written or group["lr"] == written
            group["lr"] = ours if unchanged else ours * (group["lr"] / written)
            group[_OURS] = ours


def scheduled_lrs(groups: Iterable[Group]) -> list[tuple[Group, float]]:
    """The groups that have a scheduler, each with the scheduler's lr.

    If groups contain products and one factor has multiplied them since, it counts for the schedule:
    by hand, or by a scheduler that multiplies what it finds, such as `StepLR`. Other new values are
    a scheduler's own.
    """
    groups = [group for group in groups if has_scheduler(group)]
    shown = [group for group in groups if _SCHEDULED in group]
    changed = [group for group in shown if group["lr"] != _product(group)]
    multiplied = (
        all(map(_product, changed))
        and _is_constant([group["lr"] / _product(group) for group in changed])
        and not _is_constant([group["lr"] / (group[_SCHEDULED] or 1.0) for group in shown])
    )

    def of(group: Group) -> float:
        if _SCHEDULED in group and group["lr"] == _product(group):
            return group[_SCHEDULED]
        is_product = _SCHEDULED in group and multiplied
        return group["lr"] / _ratio(group) if is_product else group["lr"]

    return [(group, of(group)) for group in groups]


def show_products(groups: Iterable[Group], prefactor: float) -> None:
    """Let every group that has a scheduler contain the product."""
    groups = [group for group in groups if _OURS in group]
    _refer(groups, prefactor)
    for group, scheduled in scheduled_lrs(groups):
        _show(group, scheduled)


def one_lr_for_all(groups: Iterable[Group]) -> bool:
    """Whether all groups contain one lr, though theirs differ, and no scheduler has written it."""
    groups = [group for group in groups if _OURS in group]
    return not any(map(has_scheduler, groups)) and _is_one_lr(
        [(float(group["lr"]), group[_OURS]) for group in groups]
    )


def one_scheduled_lr(groups: Iterable[Group]) -> bool:
    """Whether a scheduler leads all groups to one lr, though theirs differed when it was made.

    So does `torch.optim.swa_utils.SWALR` with one ``swa_lr``. The groups contain the products.
    """
    groups = [group for group in groups if _SCHEDULED in group]
    return _is_one_lr([(float(group[_SCHEDULED]), group[_REFERENCE]) for group in groups])


def _is_one_lr(pairs: Sequence[tuple[float, float]]) -> bool:
    """Whether all (lr, own lr) have one lr other than 0, and own ones that differ."""
    lrs, own = ({pair[i] for pair in pairs} for i in (0, 1))
    return len(lrs) == 1 and 0.0 not in lrs and len(own) > 1


def lrs_without_scheduler(groups: Iterable[Group]) -> dict[str, tuple[float, float]]:
    """The lr that a group contains, and the one that was last written into it, by group name."""
    return {
        group["name"]: (float(group["lr"]), group[_OURS])
        for group in groups
        if _OURS in group and not has_scheduler(group)
    }


def discards_solution(
    before: Mapping[str, tuple[float, float]], now: Mapping[str, tuple[float, float]]
) -> bool:
    """Whether all lrs have changed by one factor though those of the solution have not.

    So do lrs that a loop read once, and assigns before each step times its schedule.

    Args:
        before: `lrs_without_scheduler` when lrs were last written, just before that.
        now: the same before they are written again.
    """
    values = [value for name in now for value in (*before.get(name, (0.0, 0.0)), *now[name])]
    if before.keys() != now.keys() or len(now) < 2 or 0.0 in values:
        return False

    def spread(which: int) -> float:
        changes = [now[name][which] / before[name][which] for name in now]
        return max(changes) / min(changes) - 1

    return spread(0) < 1e-9 and spread(1) > 1e-6


def hide_products(groups: Iterable[Group]) -> None:
    """Let every group that has a scheduler contain the scheduler's lr."""
    for group in groups:
        if _SCHEDULED in group:
            group["lr"] = group.pop(_SCHEDULED)


def _show(group: Group, scheduled: float) -> None:
    group["lr"], group[_SCHEDULED] = scheduled * _ratio(group), scheduled


def _product(group: Group) -> float:
    """What a group contained when it was last made to show the product."""
    return group[_SCHEDULED] * _ratio(group)


def _is_constant(values: Sequence[float]) -> bool:
    return not values or max(values) - min(values) <= 1e-9 * abs(max(values))


def _ratio(group: Group) -> float:
    reference = group[_REFERENCE]
    return group[_OURS] / reference if reference else 1.0


def _refer(groups: list[Group], prefactor: float) -> None:
    """Remember what the learning rates were when a scheduler was made.

    A scheduler that sets one lr for all groups, such as ``OneCycleLR(optimizer, max_lr=0.01)``,
    replaces ``lr_prefactor``.
    """
    new = [g for g in groups if has_scheduler(g) and _REFERENCE not in g]
    firsts = {float(g["max_lr" if "max_lr" in g else "initial_lr"]) for g in new}
    one_lr = len(firsts) == 1 and len({g.get(_OURS) for g in new}) > 1
    for group in new:
        group[_REFERENCE] = prefactor if one_lr else group.get(_OURS, group["initial_lr"])
