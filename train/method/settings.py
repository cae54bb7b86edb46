"""What a run sets beyond torchtitan's own flags: ``--maxp.*``."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from train.method.methods import get_method
from train.model.costs import Probe

ProbeText = Literal["fresh", "fixed"]


@dataclass(kw_only=True, slots=True)
class MaxPSettings:
    method: str = "maxP"
    """maxP, mup-full, mup-no, maxP-frozen (needs alignment_table) or sp."""

    lr: float = 1e-2
    """Learning rate: n^-c multiplies it at each site; all other parameters use it unchanged."""

    solve_interval: int = 10
    """Steps between measurements; a method that follows alignment solves after each one."""

    measure_from: int = 10
    """Steps without measurements at the start, where updates are not typical yet."""

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
        if self.probe not in get_args(ProbeText):
            raise ValueError(f"--maxp.probe {self.probe}: must be fresh or fixed")
        for name in ("solve_interval", "probe_sequences", "probe_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"--maxp.{name} {getattr(self, name)}: must be at least 1")
        for name in ("c_ema", "alignment_ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"--maxp.{name} {getattr(self, name)}: must be in [0, 1)")
        if self.measure_from < 0 or self.independent_weight_decay < 0:
            raise ValueError(
                "--maxp.measure_from and --maxp.independent_weight_decay must not be negative"
            )
