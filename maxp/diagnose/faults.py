"""Which site is the cause: its own multiplier, initial weights or updates scale with a wrong power.

A model transfers if, at each site of width n, with W0 the initial weight and dW its first update,

    n^-a rms(W0)    is n^0 at an embedding, n^-1/2 at a hidden site, at most n^-1/2 at a readout
    n^-a rms(dW)    is n^0 at an embedding, n^-align_z0_dW at another site
    lr * decay      does not depend on the width

Each of these concerns one site alone, so a site that only receives a wrong input is no cause. All
exponents are slopes against the width of the model. They hardly depend on the seed.
"""

from collections.abc import Iterator
from typing import NamedTuple

from maxp.module import MUP_AB, LayerType


class Fault(NamedTuple):
    """A cause at a site.

    Attributes:
        kind: ``"not marked"``, ``"layer type"``, ``"width_dim"``, ``"multiplier"``, ``"init"``,
            ``"not in the optimizer"``, ``"lr"``, ``"eps"``, ``"update"``, ``"decay"`` or
            ``"unknown"``.
        measured: what is wrong: the measured exponent, and the expected one.
        remedy: what to do.
    """

    kind: str
    measured: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.measured}; {self.remedy}"


class Facts(NamedTuple):
    """What is known of a site's weight. Quantities are exponents of the model's width.

    Attributes:
        marked_as: the layer type that the site is marked with; None if it is not marked.
        layer_type: the layer type by its shapes.
        n: of the width by its shapes.
        width_dim: of the ``width_dim`` that the site is marked with.
        align: align_z0_dW times n.
        scale: of the multiplier; None if the site can have none.
        weight: of the rms of the initial weight; None if that is zero.
        lr: None if the learning rate is zero.
        update: of the rms of the first update; None if that is zero.
        decay: of the learning rate times the weight decay; None without decay.
        is_held: whether the optimizer holds the weight, if it is trained.
        lost: the part of the first update that eps takes, at the first and the last width.
    """

    marked_as: LayerType | None
    layer_type: LayerType
    n: float
    width_dim: float
    align: float
    scale: float | None
    weight: float | None
    lr: float | None
    update: float | None
    decay: float | None
    is_held: bool
    lost: tuple[float, float]


def find_faults(
    facts: Facts, tolerance: float, *, is_sgd: bool = False, judge_update: bool = True
) -> Iterator[Fault]:
    """The causes at one site.

    Args:
        facts: of the site.
        tolerance: the allowed distance between two exponents.
        is_sgd: whether the update grows in proportion to the gradient.
        judge_update: False if the update is wrong only because of the gradient.
    """
    if not facts.is_held:
        yield Fault(
            "not in the optimizer",
            "its weight is trained, and the optimizer does not hold it",
            "build the optimizer on all of Parametrization.param_groups, or freeze the weight",
        )
    init, update = _offsets(facts)
    if abs(init) <= tolerance:
        init = 0.0
    if abs(update) <= tolerance or not judge_update:
        update = 0.0
    if init or update:
        yield wrong_mark(facts, tolerance) or _wrong_size(facts, init, update, tolerance, is_sgd)
    if facts.decay is not None and abs(facts.decay) > tolerance:
        yield Fault(
            "decay",
            f"its learning rate times its weight decay is {_power(facts.decay)}, expected n^0",
            "pass weight_decay to Parametrization instead of to the optimizer, or set it to 0",
        )


def wrong_mark(facts: Facts, tolerance: float) -> Fault | None:
    """The fault of a site that is marked as something else than its shapes tell."""
    grows = {"embedding": "only its fan-out grows", "readout": "only its fan-in grows"}.get(
        facts.layer_type, "its fan-in and fan-out grow"
    )
    if facts.marked_as is None:
        return Fault(
            "not marked",
            f"{grows}, and it is not marked; its update is {_power(facts.update or 0.0)}, expected "
            f"{_power(_update_wanted(facts))}",
            f"mark it as {facts.layer_type}",
        )
    if facts.marked_as != facts.layer_type:
        return Fault(
            "layer type",
            f"it is marked as {facts.marked_as}, but {grows}",
            f"mark it as {facts.layer_type}",
        )
    if abs(facts.width_dim - facts.n) > tolerance:
        return Fault(
            "width_dim",
            f"its width_dim is {_power(facts.width_dim)}, expected {_power(facts.n)}",
            "give the dimension that grows with the model: the fan-in, or the fan-out of an "
            "embedding",
        )
    return None


def wrong_multiplier(facts: Facts) -> Fault:
    """The fault of a multiplier other than muP's."""
    wanted = -MUP_AB[facts.layer_type][0] * facts.n
    return Fault(
        "multiplier",
        f"its multiplier is {_power(facts.scale or 0.0)}, expected {_power(wanted)}",
        "leave the multiplier to Parametrization, and call its constructor last",
    )


def _update_wanted(facts: Facts) -> float:
    return 0.0 if facts.layer_type == "embedding" else -facts.align


def _offsets(facts: Facts) -> tuple[float, float]:
    """How far the exponents of n^-a rms(W0) and of n^-a rms(dW) are above the wanted ones."""
    scale = facts.scale or 0.0
    init = 0.0 if facts.weight is None else scale + facts.weight
    if facts.weight is not None and facts.layer_type != "embedding":
        init += facts.n / 2
    if facts.layer_type == "readout":
        init = max(init, 0.0)
    return init, 0.0 if facts.update is None else scale + facts.update - _update_wanted(facts)


def _wrong_size(facts: Facts, init: float, update: float, tolerance: float, is_sgd: bool) -> Fault:
    """The fault of a site that is marked correctly."""
    if facts.scale is not None:
        extra = facts.scale + MUP_AB[facts.layer_type][0] * facts.n  # above muP's
        # One wrong multiplier moves both by the same amount; a readout may start smaller.
        both = abs(init - extra) <= tolerance or (facts.layer_type == "readout" and not init)
        if abs(extra) > tolerance and both and abs(update - extra * (1 + is_sgd)) <= tolerance:
            return wrong_multiplier(facts)
    if init and facts.weight is not None:
        return Fault(
            "init",
            f"its initial weights are {_power(facts.weight)}, expected "
            f"{_power(facts.weight - init)}",
            "let Parametrization draw the weights, and do not draw them again after it",
        )
    assert facts.update is not None
    from_lr = 0.0 if facts.lr is None else (facts.scale or 0.0) + facts.lr - _update_wanted(facts)
    if facts.lr is not None and (is_sgd or abs(from_lr) > tolerance):
        wrong = update if is_sgd else from_lr
        return Fault(
            "lr",
            f"its learning rate is {_power(facts.lr)}, expected {_power(facts.lr - wrong)}",
            "build the optimizer on Parametrization.param_groups, and keep the lr of each group",
        )
    if max(facts.lost) > tolerance:
        return Fault(
            "eps",
            f"its updates are {_power(facts.update)}, expected {_power(facts.update - update)}: "
            f"eps takes {facts.lost[0]:.0%} of them at the first width, and {facts.lost[1]:.0%} at "
            "the last",
            "pass eps to Parametrization instead of to the optimizer, or make it smaller",
        )
    return Fault(
        "update",
        f"its updates are {_power(facts.update)}, expected {_power(facts.update - update)}",
        "use an optimizer whose update does not depend on the gradient's scale, or give diagnose "
        "the alignment_overrides that hold for its updates",
    )


def _power(exponent: float) -> str:
    return f"n^{round(exponent, 2) + 0.0:g}"
