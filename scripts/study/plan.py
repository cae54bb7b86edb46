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
    """The spiral over widths and learning rates, at two batch sizes.

    All methods are the same model at the base width. There, the lr factors of the embedding and the
    readout are tuned, once for all methods.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """The first one is the base width."""

    depth: int = 4
    seeds: int = 5
    steps: int = 300
    batches: tuple[int, ...] = (16, 128)
    """The update from a small batch is more aligned with each of its points."""

    embedding_factors: tuple[float, ...] = (0.25, 1.0, 4.0, 16.0)
    readout_factors: tuple[float, ...] = (1.0, 4.0, 16.0, 64.0, 256.0)
    """Factors on the lr that are tried; that of hidden layers is 1."""

    tuning_seeds: int = 3
    tuning_log2_lrs: tuple[int, ...] = tuple(range(-11, -4))
    log2_lrs: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("standard", tuple(range(-13, -5))),
        ("mup", tuple(range(-11, -5))),
        ("maxP", tuple(range(-11, -5))),
    )
    measure_every: int = 20
    """In all methods. maxP also solves for the lrs at these steps."""


@dataclass(frozen=True)
class Depths:
    """The spiral at the sweep's base width, over depths and learning rates, with its factors."""

    blocks: tuple[int, ...] = (2, 4, 8, 16)
    """Numbers of hidden layers. The first one is the base depth, that of the sweep."""

    batch: int = 128
    seeds: int = 3
    steps: int = 300
    log2_lrs: tuple[int, ...] = tuple(range(-14, -5))


@dataclass(frozen=True)
class Plan:
    single: SinglePass = field(default_factory=SinglePass)
    training: Training = field(default_factory=Training)
    sweep: Sweep = field(default_factory=Sweep)
    depths: Depths = field(default_factory=Depths)


FULL = Plan()
QUICK = Plan(
    SinglePass(widths=(64, 128, 256), depths=(2, 4, 8), seeds=3),
    Training(widths=(32, 64), depths=(2, 4), seeds=2, steps=50),
    Sweep(
        widths=(32, 64),
        seeds=2,
        steps=40,
        batches=(16,),
        embedding_factors=(1.0,),
        readout_factors=(1.0, 16.0),
        tuning_seeds=2,
        tuning_log2_lrs=(-9, -7, -5),
        log2_lrs=tuple((method, (-9, -7, -5)) for method in ("standard", "mup", "maxP")),
    ),
    Depths(blocks=(2, 4), batch=16, seeds=2, steps=40, log2_lrs=(-9, -7, -5)),
)
