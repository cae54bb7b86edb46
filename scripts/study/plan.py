"""The sizes of the study: widths, depths, seeds and learning rates; the full and the quick one."""

from dataclasses import dataclass, field
from typing import Literal

Optimizer = Literal["adam", "sgd"]
OPTIMIZERS: tuple[Optimizer, ...] = ("adam", "sgd")

# Slopes and coefficients of variation use the widths from this one up.
FIT_FROM = 128


@dataclass(frozen=True)
class SinglePass:
    """One forward and backward pass and one step. The loss is the sum of the outputs."""

    widths: tuple[int, ...] = (64, 128, 256, 512, 1024, 2048)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """Number of layers: an embedding, hidden layers, a readout."""

    seeds: int = 10
    inputs: int = 128
    outputs: int = 10
    lr: float = 1e-3
    """The factor of n^-c. The changes are proportional to it."""


@dataclass(frozen=True)
class Training:
    """The two-arm spiral in the standard parametrization, with one lr for all sizes."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    seeds: int = 2
    steps: int = 500
    batch: int = 32
    lr: float = 1e-3
    observe_every: int = 50


@dataclass(frozen=True)
class Sweep:
    """The spiral at one depth, over widths and learning rates, at two batch sizes."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    depth: int = 4
    seeds: int = 5
    steps: int = 300
    batches: tuple[int, ...] = (16, 128)
    """The update from a small batch is more aligned with each of its points."""

    log2_lrs: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("standard", tuple(range(-11, -4))),
        ("mup", tuple(range(-5, 4))),
        ("maxP", tuple(range(-6, 1))),
    )
    solve_interval: int = 20


@dataclass(frozen=True)
class Plan:
    single: SinglePass = field(default_factory=SinglePass)
    training: Training = field(default_factory=Training)
    sweep: Sweep = field(default_factory=Sweep)


FULL = Plan()
QUICK = Plan(
    SinglePass(widths=(64, 128, 256), depths=(2, 4, 8), seeds=3),
    Training(widths=(32, 64), depths=(2, 4), seeds=2, steps=50),
    Sweep(
        widths=(32, 64),
        seeds=2,
        steps=40,
        batches=(16,),
        log2_lrs=(("standard", (-9, -7, -5)), ("mup", (-6, -4, -2)), ("maxP", (-6, -4, -2))),
    ),
)
