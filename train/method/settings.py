"""What a run sets beyond torchtitan's own flags: ``--maxp.*``."""

import math
from dataclasses import dataclass

from train.method.methods import get_method
from train.model.costs import Probe


@dataclass(kw_only=True, slots=True)
class MaxPSettings:
    method: str = "maxP"
    """maxP, mup-full, mup-no, maxP-frozen (needs alignment_table) or sp."""

    lr: float = 1e-2
    """Learning rate: what n^-c multiplies at each site, and the lr of all else."""

    solve_interval: int = 10
    """Steps between measurements, and between solves of a method that follows them."""

    measure_from: int = 10
    """Last step before the first measurement: the first updates are not yet typical."""

    measure: bool = False
    """Measure and log alignment under a method that does not follow it."""

    probe_sequences: int = Probe.sequences
    """Sequences that the model is run on for a measurement."""

    probe_tokens: int = Probe.tokens
    """Token positions of them that alignment is averaged over; docs/measuring.md says why so few
    of so many sequences."""

    c_ema: float = 0.0
    """Weight of the present c when a solve gives a new one; 0 follows at once."""

    alignment_ema: float = 0.0
    """Weight of earlier measurements in what the program is given; 0 takes the last alone."""

    resample_w0: bool = False
    """Draw initial weights again for each measurement instead of keeping a copy."""

    measure_bilinear: bool = False
    """Let the measured alignment of QK^T into the program (head_dim is small: noisy)."""

    warm_start: bool = True
    """Start each solve from the last one's solution."""

    independent_weight_decay: float = 0.0
    """Decay a step, times the schedule's factor but not the lr; 0 leaves AdamW's own
    weight_decay, which is multiplied by each site's lr."""

    alignment_table: str | None = None
    """File made by `python -m train.alignment_table`, for method maxP-frozen."""

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
