"""How mixtures of experts change over widths: ``python -m scripts.theory.decoders``.

It prints the table of docs/theory.md, "Other decoders", "The coordinate check": slopes over widths
of the change of the first mixture after a few updates, with the routing at init and with its own.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torchtitan.models.common.moe import RoutedExperts

from maxp.diagnose.slopes import Array, fit
from scripts.command import run_command
from scripts.coord_check import build_model, draw_batch, next_token_loss
from scripts.theory.options import check_ladder
from train.data.corpus import prepare_embedded
from train.method.methods import get_method
from train.model.scales import get_scale
from train.progress import progress

FAMILIES = {"Qwen3": "qwen3-moe-cpu", "DeepSeek-V3": "deepseek-cpu", "GPT-OSS": "gptoss-cpu"}
# (a, b) of the router: as the readout that it is, and with a + b = 1/2.
ROUTERS = {"readout": (0.5, 0.5), "a + b = 1/2": (0.0, 0.5)}
STEPS, LR, SEQUENCES, SEQ_LEN = 3, 1e-2, 4, 32


@dataclass
class Options:
    """Measure how the mixtures of experts of torchtitan's decoders change over widths."""

    widths: tuple[int, ...] = (64, 128, 256)
    """At least two widths of the ladders for CPUs."""

    seeds: int = 16
    """Models per width, at least 2. Their spread gives the standard errors."""


def check(options: Options) -> None:
    """Check the options before anything runs.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    for family in FAMILIES.values():
        check_ladder(family, options.widths, options.seeds)


def changes(
    scale: str, seed: int, corpus: np.ndarray, router: tuple[float, float]
) -> tuple[float, float, float]:
    """What `STEPS` updates change in the first mixture of experts.

    Args:
        scale: of the model.
        seed: of the batch and the model.
        corpus: tokens to draw the batch from.
        router: (a, b) of the routers.

    Returns:
        the rms of the change of the routed experts' output with the experts and the scores that
        each token has at init, the same with its current ones, and the share of its experts at init
        that a token no longer has.
    """
    torch.manual_seed(seed)
    tokens = draw_batch(corpus, SEQUENCES, SEQ_LEN)
    model, parametrization = build_model(
        get_scale(scale), get_method("mup-full"), LR, SEQ_LEN,
        ab_overrides={**get_method("mup-full").ab, "router.gate": router},
    )  # fmt: skip
    experts: Any = next(m for m in model.modules() if isinstance(m, RoutedExperts))
    calls: list[tuple[torch.Tensor, ...]] = []
    outputs: list[torch.Tensor] = []

    def record(_: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append(tuple(arg.detach() for arg in args))
        outputs.append(output.detach())

    experts.register_forward_hook(record)
    optimizer = torch.optim.Adam(parametrization.param_groups)
    for _ in range(STEPS):
        optimizer.zero_grad()
        next_token_loss(model(tokens), tokens).backward()
        optimizer.step()
    with torch.no_grad():
        model(tokens)
        (now, _, chosen, _), (_, *at_init) = calls[-1], calls[0]
        routed_as_at_init = experts.forward(now, *at_init)
    kept = (at_init[1][..., None] == chosen[..., None, :]).any(-1)
    return (
        _rms(routed_as_at_init - outputs[0]),
        _rms(outputs[-1] - outputs[0]),
        1 - float(kept.double().mean()),
    )


def _rms(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def measure(options: Options) -> dict[str, dict[str, Array]]:
    """What `changes` returns, (seeds, widths, 3), by the name of the decoder and of the router."""
    corpus = prepare_embedded().train.tokens
    pairs = [(name, router) for name in FAMILIES for router in ROUTERS]
    runs = [(s, width) for s in range(options.seeds) for width in options.widths]
    sizes: dict[str, dict[str, Array]] = {name: {} for name in FAMILIES}
    bar = progress(total=len(pairs) * len(runs), desc="decoders", unit="model")
    with bar, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        for name, router in pairs:
            rows = []
            for seed, width in runs:
                rows.append(changes(f"{FAMILIES[name]}{width}", seed, corpus, ROUTERS[router]))
                bar.update()
            shape = (options.seeds, len(options.widths), -1)
            sizes[name][router] = np.reshape(rows, shape)
    return sizes


def table(widths: Sequence[int], sizes: Mapping[str, Mapping[str, Array]]) -> str:
    """The table of the page, in Markdown: slopes, and the shares at each width."""
    moved = f"experts of a token that changed, widths {', '.join(map(str, widths))}"
    lines = [["", "router", "change, routing of init", "change", moved]]
    for name, by_router in sizes.items():
        for router, values in by_router.items():
            slopes = [fit(widths, values[..., column]) for column in (0, 1)]
            shares = ", ".join(f"{share:.0%}" for share in values[..., 2].mean(0))
            cells = [f"{mean:+.2f} +- {error:.2f}" for mean, error in slopes]
            lines.append([name, router, *cells, shares])
    head, *rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rows])


def run(options: Options) -> None:
    """Measure, and print the table."""
    options = replace(options, widths=tuple(sorted(set(options.widths))))
    print(table(options.widths, measure(options)))


def main() -> int:
    return run_command(Options, check, run, "python -m scripts.theory.decoders")


if __name__ == "__main__":
    sys.exit(main())
