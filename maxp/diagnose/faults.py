"""The cause of a wrong slope: a site whose own multiplier, weights or updates have a wrong power.

Each quantity concerns one site alone, as if its input were data. A site that only receives a wrong
input is therefore no cause. Exponents are those of the model's width, and hardly vary with seeds.
"""

from typing import NamedTuple

from maxp.module import LayerType


class Fault(NamedTuple):
    """A cause.

    Attributes:
        kind: ``"not marked"``, ``"layer type"``, ``"width_dim"``, ``"multiplier"``, ``"init"``,
            ``"lr"``, ``"not in the optimizer"``, ``"eps"``, ``"decay"`` or ``"unknown"``.
        measured: the measured exponent, and the expected one.
        remedy: what to do.
    """

    kind: str
    measured: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.measured}; {self.remedy}"


class Facts(NamedTuple):
    """A weight, in exponents of the model's width. An offset is 0 if it is within the tolerance.

    Attributes:
        marked_as: the layer type that the site is marked with; None if it is not marked.
        layer_type: the layer type by its shapes.
        n: of its width by its shapes.
        width_dim: of the ``width_dim`` that it is marked with.
        init: the offset of the output at init from n^0; a readout's may be negative.
        update: the offset of the change that the site's own update makes.
        scale: of the multiplier.
        extra: the offset of the multiplier from muP's; 0 if the site can have none.
        weight: of the initial weight.
        lr: of the learning rate.
        eps: of the part of the first update that eps leaves.
        lost: the part of the first update that eps takes, at the first and the last width.
        decay: of the learning rate times the weight decay.
        is_held: whether the optimizer holds the weight, or it is frozen.
    """

    marked_as: LayerType | None
    layer_type: LayerType
    n: float
    width_dim: float
    init: float
    update: float
    scale: float
    extra: float
    weight: float
    lr: float
    eps: float
    lost: tuple[float, float]
    decay: float
    is_held: bool


def find_faults(facts: Facts, tolerance: float, *, is_sgd: bool) -> list[Fault]:
    """The causes at one site."""
    may_shrink = facts.layer_type == "readout"
    init = max(facts.init, 0.0) if may_shrink else facts.init
    faults = []
    if not facts.is_held:
        text = "the optimizer does not hold its weight"
        remedy = "build it on all of Parametrization.param_groups, or freeze the weight"
        faults.append(Fault("not in the optimizer", text, remedy))
    if init or facts.update:
        # A multiplier moves both offsets; SGD's gradient has passed it as well.
        at_init = facts.init - facts.extra
        at_init = max(at_init, 0.0) if may_shrink else abs(at_init)
        change = abs(facts.update - facts.extra * (1 + is_sgd))
        if fault := wrong_mark(facts, tolerance):
            faults.append(fault)
        elif facts.extra and max(at_init, change) <= tolerance:
            faults.append(wrong_multiplier(facts))
        elif init:
            text = f"its initial weights are {_pair(facts.weight, init)}"
            remedy = "let Parametrization draw the weights, and do not draw them again after it"
            faults.append(Fault("init", text, remedy))
        else:
            text = f"its learning rate is {_pair(facts.lr, facts.update)}"
            remedy = "build the optimizer on Parametrization.param_groups, and keep their lr"
            faults.append(Fault("lr", text, remedy))
    if facts.eps:
        first, last = facts.lost
        text = f"its updates are {_pair(facts.lr + facts.eps, facts.eps)}: eps takes {first:.0%} "
        text += f"of them at the smallest width, and {last:.0%} at the largest"
        remedy = "pass eps to Parametrization instead of the optimizer, or make it smaller"
        faults.append(Fault("eps", text, remedy))
    if facts.decay:
        text = f"its learning rate times its weight decay is {_pair(facts.decay, facts.decay)}"
        remedy = "pass weight_decay to Parametrization instead of the optimizer, or set it to 0"
        faults.append(Fault("decay", text, remedy))
    return faults


def wrong_mark(facts: Facts, tolerance: float) -> Fault | None:
    """The fault of a site that is not marked as what it is by its shapes."""
    grows = {"embedding": "only its fan-out grows", "readout": "only its fan-in grows"}.get(
        facts.layer_type, "its fan-in and fan-out grow"
    )
    remedy = f"mark it as {facts.layer_type}"
    if facts.marked_as is None:
        lr = f"its learning rate is {_pair(facts.lr, facts.update)}"
        return Fault("not marked", f"{grows}, and {lr}", remedy)
    if facts.marked_as != facts.layer_type:
        return Fault("layer type", f"it is marked as {facts.marked_as}, but {grows}", remedy)
    if abs(facts.width_dim - facts.n) > tolerance:
        text = f"its width_dim is {_pair(facts.width_dim, facts.width_dim - facts.n)}"
        remedy = "give the fan-in, or the fan-out of an embedding"
        return Fault("width_dim", text, remedy)
    return None


def wrong_multiplier(facts: Facts) -> Fault:
    """The fault of a multiplier other than muP's."""
    text = f"its multiplier is {_pair(facts.scale, facts.extra)}"
    return Fault("multiplier", text, "leave it to Parametrization, with the (a, b) of muP")


def _pair(exponent: float, offset: float) -> str:
    """A measured power of the width, and the expected one."""
    measured, expected = (round(x, 2) + 0.0 for x in (exponent, exponent - offset))
    return f"n^{measured:g}, expected n^{expected:g}"
