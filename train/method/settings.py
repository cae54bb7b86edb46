"""What a run sets beyond torchtitan's own flags: ``--maxp.*``."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from train.method.methods import get_method
from train.model.costs import Probe
from train.model.scales import find_scale
from train.run.identity import ADAMW, ADJUST_LR_FN, NO_BASE


@dataclass(kw_only=True, slots=True)
class StdMultipliers:
    """Factors on the standard deviation of initial weights, by layer type or site."""

    embedding: float = 1.0
    """Factor for the embedding."""

    hidden: float = 1.0
    """Factor for all hidden layers."""

    readout: float = 1.0
    """Factor for the head."""

    sites: dict[str, float] = field(default_factory=dict)
    """Factors by site, or by the end of its name: lm_head 3 attention.wo 0.5. They replace the
    factor of the site's layer type."""

    def by_key(self) -> dict[str, float]:
        """Factors by layer type, site or suffix, as `maxp.Parametrization` takes them."""
        types = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "sites"}
        return {**{name: factor for name, factor in types.items() if factor != 1}, **self.sites}


@dataclass(kw_only=True, slots=True)
class LrMultipliers(StdMultipliers):
    """Factors on learning rates, by layer type or site."""

    rest: float = 1.0
    """Factor for all parameters that belong to no site: the gains of normalisations."""


ProbeText = Literal["fresh", "fixed"]
OptimizerName = Literal["adamw", "muon"]
AdjustLrFn = Literal["original", "match_rms_adamw"]
"""`maxp.exponents.AdjustLrFn`; to import that would import torch, which sweeps do without."""


@dataclass(kw_only=True, slots=True)
class MaxPSettings:
    method: str = "maxP"
    """maxP, mup-full, mup-no, maxP-frozen (needs alignment_table) or sp."""

    optimizer: OptimizerName = ADAMW
    """adamw; or muon, which is Muon for the matrices of hidden layers and AdamW for all else."""

    adjust_lr_fn: AdjustLrFn = ADJUST_LR_FN
    """Muon's scale. match_rms_adamw gives its updates the size of AdamW's, so that both can have
    one lr. original gives them a spectral norm of about the lr, so that the lr of hidden layers
    does not depend on the width; lr_multipliers.hidden gives them an lr of their own."""

    lr: float = 1e-2
    """Learning rate of the base scale. Each site multiplies it by (n / n_base)^-c, where n is its
    width here and n_base its width in the base scale; other parameters use it unchanged."""

    base_scale: str = NO_BASE
    """Scale that a method changes nothing at, where learning rates are tuned: by default the
    smallest of the scale's ladder. none takes n_base = 1 at every site."""

    lr_multipliers: LrMultipliers = field(default_factory=LrMultipliers)

    std_multipliers: StdMultipliers = field(default_factory=StdMultipliers)

    depth_exponent: float = 1.0
    """The output of a residual branch is multiplied by (L / L_base)^-depth_exponent, for L layers
    here and L_base in the base scale: 1, or 0.5. 0 does not scale with depth."""

    bounded: bool = True
    """Bound measured alignments and those of a table to what theory allows; see docs/theory.md."""

    weight_decay: Literal["follow", "coupled"] = "follow"
    """follow: per step, a weight loses the same part at every width, lr * weight_decay without
    (n / n_base)^-c. coupled: AdamW's own, multiplied by each site's lr."""

    epsilon: Literal["follow", "fixed"] = "follow"
    """follow: Adam's eps shrinks with width as the site's gradient does. fixed: AdamW's own."""

    solve_interval: int = 10
    """Steps between measurements; a method that follows alignment solves after each one."""

    measure_from: int | None = None
    """Steps without measurements at the start, where updates are not typical yet; by default those
    of the learning rate's warm-up."""

    measure: bool = False
    """Measure and log alignment under a method that does not follow it."""

    probe: ProbeText = "fresh"
    """Text that alignment is measured on: new text at each measurement, or always the same."""

    probe_sequences: int = Probe.sequences
    """Sequences of the probe, which the model is run on for a measurement."""

    probe_tokens: int = Probe.tokens
    """Tokens of the probe that alignment is averaged over; see docs/measuring.md."""

    c_ema: float = 0.0
    """Weight of the current c when a solve gives a new one; 0 uses the new one alone."""

    alignment_ema: float = 0.0
    """Weight of earlier measurements in the average that is solved for; 0 uses the last alone."""

    resample_w0: bool = False
    """Draw initial weights again for each measurement instead of keeping a copy."""

    measure_bilinear: bool = False
    """Solve with the measured alignment of QK^T, which is noisy since head_dim is small."""

    warm_start: bool = True
    """Start each solve from the previous solution."""

    independent_weight_decay: float = 0.0
    """Weight decay per step, multiplied by the schedule's factor but not by the lr; 0 uses AdamW's
    own weight_decay, which is multiplied by each site's lr."""

    alignment_table: str | None = None
    """File that `python -m train.alignment_table` wrote, for method maxP-frozen."""

    def __post_init__(self) -> None:
        method = get_method(self.method)
        if method.needs_table and self.alignment_table is None:
            raise ValueError(
                f"--method {self.method} needs --maxp.alignment-table FILE; make one with "
                "`python -m train.alignment_table RUN --to FILE`"
            )
        if self.alignment_table is not None and not method.needs_table:
            raise ValueError(
                f"--maxp.alignment-table {self.alignment_table}: method {self.method} takes no "
                "table; leave the flag out, or use --method maxP-frozen"
            )
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"--lr {self.lr}: must be positive")
        if self.base_scale != NO_BASE:
            find_scale(self.base_scale, "--maxp.base_scale")
        for flag, factor in self._multipliers():
            if not (factor > 0 and math.isfinite(factor)):
                raise ValueError(f"--maxp.{flag} {factor}: must be positive")
        if not 0 <= self.depth_exponent <= 1:
            raise ValueError(f"--maxp.depth_exponent {self.depth_exponent}: must be in [0, 1]")
        if self.optimizer not in get_args(OptimizerName):
            raise ValueError(f"--optimizer {self.optimizer}: must be adamw or muon")
        if self.adjust_lr_fn not in get_args(AdjustLrFn):
            choices = " or ".join(get_args(AdjustLrFn))
            raise ValueError(f"--maxp.adjust_lr_fn {self.adjust_lr_fn}: must be {choices}")
        if self.optimizer != "muon" and self.adjust_lr_fn != ADJUST_LR_FN:
            raise ValueError(
                f"--maxp.adjust_lr_fn {self.adjust_lr_fn}: only Muon has it; pass --optimizer muon"
            )
        if self.probe not in get_args(ProbeText):
            raise ValueError(f"--maxp.probe {self.probe}: must be fresh or fixed")
        for name in ("solve_interval", "probe_sequences", "probe_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--maxp.{name} {getattr(self, name)}: must be at least 1")
        for name in ("c_ema", "alignment_ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--maxp.{name} {getattr(self, name)}: must be in [0, 1)")
        if self.measure_from is not None and self.measure_from < 0:
            raise ValueError(f"--maxp.measure_from {self.measure_from}: must not be negative")

    @property
    def measures(self) -> bool:
        """Whether alignment is measured during training."""
        return get_method(self.method).follows or self.measure

    def _multipliers(self) -> Iterator[tuple[str, float]]:
        """(flag, factor) of every multiplier."""
        for group in ("lr_multipliers", "std_multipliers"):
            factors = getattr(self, group)
            for f in fields(factors):
                value = getattr(factors, f.name)
                own = value if f.name == "sites" else {"": value}
                yield from ((f"{group}.{f.name} {key}".strip(), v) for key, v in own.items())


def read_settings(record: Mapping[str, Any]) -> MaxPSettings:
    """The settings that a run's config.json holds; those of earlier versions have no base scale.

    Raises:
        TypeError: a key is unknown.
        ValueError: a value is not allowed.
    """
    values: dict[str, Any] = dict(record)
    for key, cls in (("lr_multipliers", LrMultipliers), ("std_multipliers", StdMultipliers)):
        if key in values:
            values[key] = cls(**values[key])
    return MaxPSettings(**values)
