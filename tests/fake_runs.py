"""Runs' folders as the harness leaves them, written without the harness."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def write_run(
    root: Path,
    *,
    scale: str = "s1",
    method: str = "maxP",
    lr: float = 0.01,
    seed: int = 0,
    steps: int = 400,
    state: str | None = "completed",
    reason: str | None = None,
    validation: float | None = None,
    records: list[dict[str, Any]] | None = None,
    name: str = "",
    settings: dict[str, Any] | None = None,
    recorded: dict[str, Any] | None = None,
) -> Path:
    """One run's folder below ``root``.

    ``settings`` are further keys of its configuration, ``recorded`` of config.json beside it.
    """
    folder = root / (name or f"{scale}-{method}-{lr}-{seed}")
    folder.mkdir(parents=True)
    config = {"scale": scale, "method": method, "lr": lr, "seed": seed, "steps": steps, "clip": 1}
    config |= settings or {}
    content = {"identity": "0", "config": config} | (recorded or {})
    (folder / "config.json").write_text(json.dumps(content))
    if state is not None:
        status = {"state": state, "step": steps, "reason": reason}
        (folder / "status.json").write_text(json.dumps(status))
    lines = list(records or [])
    if validation is not None:
        lines.append({"step": steps, "validation_loss": validation})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_sweep(root: Path, *, scales: int = 3, seeds: int = 2) -> None:
    """A sweep in which everything happens: bests, divergence, failures, runs still going."""
    lrs = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]
    drift = {"maxP": 0.02, "mup-full": 0.05, "mup-no": -0.35}  # decades of best lr a scale
    floor = {"maxP": 0.0, "mup-full": 0.03, "mup-no": 0.05}
    for number in range(scales):
        for method, moves in drift.items():
            for lr in lrs:
                for seed in range(1, seeds + 1):
                    away = math.log10(lr) + 1.5 - moves * number
                    loss = 3.6 - 0.3 * number + floor[method] + 0.25 * away**2
                    loss += 0.012 * math.sin(12.9898 * (seed + 7 * lr + number))
                    _member(root, f"s{number + 1}", method, lr, seed, loss, away)


def _member(
    root: Path, scale: str, method: str, lr: float, seed: int, loss: float, away: float
) -> None:
    run: dict[str, Any] = {"scale": scale, "method": method, "lr": lr, "seed": seed}
    run["name"] = f"{scale}_{method}_lr{lr:.0e}_seed{seed}"
    records = [
        {
            "step": step,
            "loss": loss + 5 * math.exp(-step / 60) + 0.03 * math.sin(step * seed),
            "tokens": 4096 * step,
            "tokens_per_second": 81920 + 512 * math.sin(step),
            "sites": {
                f"layers.{layer}.{kind}": {"lr": lr, "c": _c(method, rank, layer, step)}
                for layer in range(2)
                for rank, kind in enumerate(("wq", "wo", "w1", "w2"))
            },
        }
        for step in range(10, 401, 10)
    ]
    if away > 1.1:
        write_run(root, **run, state="diverged", steps=37, records=records[:3])
    elif (scale, lr, seed, method) == ("s3", 1e-3, 2, "mup-no"):
        reason = (
            "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB & <1 GiB> is free"
        )
        write_run(root, **run, state="failed", steps=120, reason=reason, records=records[:12])
    elif (scale, lr, method) == ("s3", 3e-3, "maxP"):
        write_run(root, **run, state="running", steps=200, records=records[:20])
    else:
        write_run(root, **run, validation=loss, records=records)


def _c(method: str, rank: int, layer: int, step: int) -> float:
    moved = (1 - math.exp(-step / 80)) * (0.12 + 0.04 * layer) * rank / 3 if method == "maxP" else 0
    return 1 - moved
