"""What AdamW's decay and eps do over widths: ``python -m scripts.bench.constants``.

It prints the two tables of docs/theory.md, "Decay and epsilon", for MLPs under muP with a base of
width 64: the slopes of the weights' size relative to init after training with decay, and the part
of a first step that eps takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import tyro
from torch.nn import functional as F

from maxp import Parametrization
from scripts.study.mlp import MLP, build
from scripts.study.rank_one import kept_with_eps
from scripts.study.single_pass import fixed_input, forward_backward
from train.progress import progress

BASE = dict.fromkeys(("embedding", "hidden", "readout"), 64)
INPUTS, CLASSES, BATCH, DECAY = 6, 4, 32, 0.7
DEEP, EPS = 32, 1e-8


@dataclass
class Options:
    """Measure what AdamW's decay and eps do over widths."""

    decay_widths: tuple[int, ...] = (64, 128, 256, 512)
    """Widths of the MLPs of 4 layers that train with decay."""

    eps_widths: tuple[int, ...] = (64, 256, 1024, 2048)
    """Widths of the MLPs of 32 layers that make one step with eps."""

    steps: int = 500
    """Steps of AdamW, at lr 0.003 and decay 0.7."""

    seeds: int = 2
    """Models per width that train."""


def size_after_training(width: int, seed: int, steps: int, *, coupled: bool) -> dict[str, float]:
    """The norm of each weight relative to init, by layer type.

    The task is the index of the largest of the first `CLASSES` inputs.
    """
    model, p = build(
        "mup", "adam", width, 4, INPUTS, CLASSES, 0.003, seed,
        base=BASE, weight_decay=None if coupled else DECAY,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(p.param_groups, weight_decay=DECAY)
    initial = {name: w.detach().norm() for name, w in p.weights.items()}
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        x = torch.randn(BATCH, INPUTS, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), x[:, :CLASSES].argmax(-1)).backward()
        optimizer.step()
    ratios = {name: float(w.detach().norm() / initial[name]) for name, w in p.weights.items()}
    return {kind: ratios[name] for kind, name in _layers(model).items()}


def _layers(model: MLP) -> dict[str, str]:
    return {
        "embedding": "embedding",
        "hidden": f"hidden.{len(model.hidden) - 1}",
        "readout": "readout",
    }


def decay_slopes(options: Options, *, coupled: bool) -> dict[str, float]:
    """Slopes of the logarithm of the weights' relative size against that of the width."""
    pairs = [(width, seed) for width in options.decay_widths for seed in range(options.seeds)]
    words = "coupled decay" if coupled else "independent decay"
    rows = [
        size_after_training(width, seed, options.steps, coupled=coupled)
        for width, seed in progress(pairs, desc=words, unit="model")
    ]
    logs = np.log([width for width, _ in pairs])
    return {
        kind: float(np.polyfit(logs, np.log([r[kind] for r in rows]), 1)[0]) for kind in rows[0]
    }


def taken_by_eps(width: int) -> tuple[float, float]:
    """The largest part, over layers, of a first step that eps takes: (eps fixed, eps scaled)."""
    shape: dict[str, Any] = {
        "width": width,
        "depth": DEEP,
        "inputs": 64,
        "outputs": 10,
        "lr": 1e-3,
        "seed": 0,
    }
    model, p = build("mup", "adam", **shape)
    sites = forward_backward(model, fixed_input(64), dict.fromkeys(p.sites, 1.0))
    meta, _ = build("mup", "adam", **shape, device="meta")
    factors = Parametrization(meta, base=BASE).factors()
    fixed = min(kept_with_eps(site, EPS) for site in sites.values())
    scaled = min(kept_with_eps(site, EPS * factors[n].eps) for n, site in sites.items())
    return 1 - fixed, 1 - scaled


def _row(name: str, values: Sequence[str]) -> str:
    return f"| {' | '.join([name, *values])} |"


def main(options: Options) -> None:
    print(_row("", list(BASE)))
    for coupled, words in ((False, "decay independent of exponents"), (True, "coupled")):
        slopes = decay_slopes(options, coupled=coupled)
        print(_row(words, [f"{slope:+.3f}" for slope in slopes.values()]))
    widths = progress(options.eps_widths, desc="eps", unit="width")
    parts = {width: taken_by_eps(width) for width in widths}
    print("\n" + _row("width", [str(width) for width in parts]))
    for position, words in enumerate((f"eps {EPS:g}", "eps scaled")):
        print(_row(words, [f"{part[position]:.1%}" for part in parts.values()]))


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m scripts.bench.constants"))
