"""Tiny runs on the digits."""

from __future__ import annotations

from pathlib import Path

STEPS = 12
WARMUP = 2

TINY = (
    *("--steps", str(STEPS)),
    *("--training.local_batch_size", "16"),
    *("--training.global_batch_size", "32"),
    *("--lr_scheduler.warmup_steps", str(WARMUP)),
    *("--validator.freq", "1000"),
    *("--maxp.measure_from", "1"),
    *("--maxp.solve_interval", "3"),
)


def tiny_images(folder: Path, method: str, *more: str, scale: str = "vit-debug") -> list[str]:
    """The command line of a tiny run; of a flag given twice the last counts."""
    return ["--scale", scale, "--method", method, "--output-dir", str(folder), *TINY, *more]
