"""Why Muon's coordinate check scatters at small widths: ``python -m scripts.theory.muon``.

It prints the table of docs/theory.md, "Muon", "Small widths": slopes over widths of what a first
update changes in a LLaMA-3 of two blocks on 3 tokens, with torch's Newton-Schulz steps and with the
exact U V^T. Each number is the geometric mean over both blocks.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import Muon

from maxp import MuonAdamW, Parametrization
from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.slopes import Array, SiteStats, fit
from maxp.muon import is_muons
from scripts.command import run_command
from scripts.coord_check import build_model, draw_batch
from scripts.theory.options import check_ladder
from train.data.corpus import prepare_embedded
from train.method.methods import get_method
from train.model.scales import get_scale
from train.progress import progress

KINDS = ("wv", "wo", "w2")
BLOCKS, TOKENS, LR = 2, 3, 1e-3
# Singular values below this part of the largest are rounding errors of float32.
_ZERO = 1e-5


@dataclass
class Options:
    """Compare Muon's first update with the exact U V^T over widths."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    """At least two widths of the scales cpu64 to cpu512."""

    seeds: int = 32
    """Models per width, at least 2. Their spread gives the standard errors."""


def check(options: Options) -> None:
    """Check the options before anything runs.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    check_ladder("cpu", options.widths, options.seeds)


def svd(gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """U, S and V in float64 of a gradient (out, in) of `TOKENS` tokens, without zero values."""
    u, s, v = torch.svd_lowrank(gradient.double(), q=TOKENS)
    kept = s > _ZERO * s[0]
    return u[:, kept], s[kept], v[:, kept]


def exact(gradient: torch.Tensor) -> torch.Tensor:
    """U V^T."""
    u, _, v = svd(gradient)
    return u @ v.T


def five_steps(gradient: torch.Tensor) -> torch.Tensor:
    """torch's Newton-Schulz steps without rounding: a polynomial of the singular values."""
    u, s, v = svd(gradient)
    constants = Muon([nn.Parameter(torch.empty(1, 1))]).defaults
    a, b, c = constants["ns_coefficients"]
    s = s / s.norm()
    for _ in range(constants["ns_steps"]):
        s = a * s + b * s**3 + c * s**5
    return (u * s) @ v.T


def torchs_steps(gradient: torch.Tensor) -> torch.Tensor:
    """What `torch.optim.Muon` subtracts at learning rate 1, without the scale of its shape."""
    weight = nn.Parameter(torch.zeros_like(gradient))
    weight.grad = gradient
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    return -weight.detach().double() / shape_scale(weight)


def shape_scale(weight: torch.Tensor) -> float:
    """The scale ``original``: max(1, out / in)^1/2."""
    return max(1.0, weight.shape[0] / weight.shape[1]) ** 0.5


UPDATES: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "exact `U V^T`": exact,
    "torch's five steps, in bfloat16": torchs_steps,
    "the same steps in float64": five_steps,
}


class ExactMuonAdamW(MuonAdamW):
    """`MuonAdamW` with the exact U V^T, for a single step, whose momentum is the gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> float | None:  # type: ignore[override]
        for group in filter(is_muons, self.param_groups):
            for weight in group["params"]:
                weight -= group["lr"] * shape_scale(weight) * exact(weight.grad)
                weight.grad = None  # Muon then leaves it
        return super().step(closure)


def make_model(width: int) -> tuple[nn.Module, Parametrization]:
    """A LLaMA-3 of two blocks; drawn from torch's global generator."""
    scale = replace(get_scale(f"cpu{width}"), n_layers=BLOCKS)
    return build_model(scale, get_method("mup-full"), LR, TOKENS, "original")


def loss_fn(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Each token predicts the next one, and the last the first, so that all have a gradient."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.roll(-1).flatten())


def gradients(
    model: nn.Module, tokens: torch.Tensor, names: Sequence[str]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The input (tokens, in) of each site in float64, and the gradient of its weight (out, in)."""
    inputs: dict[str, torch.Tensor] = {}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.update({name: args[0].detach().flatten(0, -2)})
        )
    loss_fn(model(tokens), tokens).backward()
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in names}
    return {name: (inputs[name].double(), weights[name].grad) for name in names}


def own_part(z: torch.Tensor, update: torch.Tensor) -> float:
    """rms(z0 dW^T) / rms(z0), for z (tokens, in) and an update (out, in)."""
    return float((z @ update.T).square().mean().sqrt() / z.square().mean().sqrt())


def measure_own(options: Options, corpus: np.ndarray) -> dict[str, dict[str, Array]]:
    """Values (seeds, widths) by kind, for each of `UPDATES` and of the smallest singular value."""
    pairs = [(seed, width) for seed in range(options.seeds) for width in options.widths]
    logs: dict[str, dict[str, list[float]]] = {kind: {} for kind in KINDS}
    for seed, width in progress(pairs, desc="first updates", unit="model"):
        torch.manual_seed(seed)
        tokens = draw_batch(corpus, 1, TOKENS)
        model, parametrization = make_model(width)
        names = [name for name in parametrization.weights if name.endswith(KINDS)]
        for name, (z, gradient) in gradients(model, tokens, names).items():
            s = svd(gradient)[1]
            values = {words: own_part(z, update(gradient)) for words, update in UPDATES.items()}
            values["smallest"] = float(s[-1] / s.norm())
            for words, value in values.items():
                logs[_kind(name)].setdefault(words, []).append(np.log(value))
    return {
        kind: {
            words: np.exp(np.reshape(values, (options.seeds, len(options.widths), BLOCKS)).mean(-1))
            for words, values in rows.items()
        }
        for kind, rows in logs.items()
    }


def measure_whole(options: Options, corpus: np.ndarray, *, is_exact: bool) -> dict[str, SiteStats]:
    """The changes of the hidden sites after one step."""
    constants = {"weight_decay": 0.0}

    def optimizer(groups: Any) -> MuonAdamW:
        cls = ExactMuonAdamW if is_exact else MuonAdamW
        return cls(groups, muon=constants, adamw=constants)

    def model_and_groups(width: int) -> tuple[nn.Module, Any]:
        model, parametrization = make_model(width)
        hidden.update(group["name"] for group in parametrization.param_groups if is_muons(group))
        return model, parametrization.param_groups

    hidden: set[str] = set()
    _, _, stats = diagnose_axis(
        model_and_groups, lambda _: draw_batch(corpus, 1, TOKENS), options.widths, steps=1,
        seeds=options.seeds, optimizer=optimizer, loss_fn=loss_fn,
    )  # fmt: skip
    return {name: stats[name] for name in stats if name in hidden}


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def row(words: str, cells: Sequence[str]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join([words, *cells])} |"


def slope_cells(widths: Sequence[int], values: Sequence[Array]) -> list[str]:
    """``slope +- standard error`` of each of some values (seeds, widths)."""
    return ["{:+.3f} +- {:.3f}".format(*fit(widths, value)) for value in values]


def table(
    widths: Sequence[int],
    own: Mapping[str, Mapping[str, Array]],
    whole: Mapping[str, Mapping[str, SiteStats]],
) -> str:
    """The table of the page, and for each optimizer the range of slopes of all hidden sites."""
    lines = [row("", [f"`{kind}`" for kind in own]), "|" + "---|" * (len(own) + 1)]
    for words in UPDATES:
        lines.append(row(words, slope_cells(widths, [rows[words] for rows in own.values()])))
    smallest = [rows["smallest"].mean(0) for rows in own.values()]
    first, *others = [
        [f"{value:.2f}" for value in values] for values in zip(*smallest, strict=True)
    ]
    lines.append(row(f"smallest singular value / Frobenius norm, width {widths[0]}", first))
    later = [", ".join(values) for values in zip(*others, strict=True)]
    lines.append(row(f"at width {', '.join(map(str, widths[1:]))}", later))
    for words, stats in whole.items():
        means = [
            np.exp(np.mean([np.log(s.change_rms) for n, s in stats.items() if _kind(n) == k], 0))
            for k in own
        ]
        lines.append(row(f"whole change, {words}", slope_cells(widths, means)))
    lines.append("")
    for words, stats in whole.items():
        slopes = {name: site.change.mean for name, site in stats.items()}
        largest = max(slopes, key=lambda name: slopes[name])
        error = max(site.change.error for site in stats.values())
        lines.append(
            f"whole changes of all {len(stats)} hidden sites, {words}: {min(slopes.values()):+.3f} "
            f"to {slopes[largest]:+.3f} ({largest}), standard errors up to {error:.3f}"
        )
    return "\n".join(lines)


def run(options: Options) -> None:
    """Measure, and print the table."""
    options = replace(options, widths=tuple(sorted(set(options.widths))))
    corpus = prepare_embedded().train.tokens
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        own = measure_own(options, corpus)
    whole = {
        words: measure_whole(options, corpus, is_exact=is_exact)
        for words, is_exact in (("exact `U V^T`", True), ("torch's five steps", False))
    }
    print(table(options.widths, own, whole))


def main() -> int:
    return run_command(Options, check, run, "python -m scripts.theory.muon")


if __name__ == "__main__":
    sys.exit(main())
