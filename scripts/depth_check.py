"""The coordinate check of the parametrized LLaMA-3 over depth, as a table and a figure.

    python -m scripts.depth_check --depths 2 4 8 16 32 --exponent 1

It makes a few updates on one batch at each depth, relative to a base of the smallest depth, and
fits the slopes of log rms against log depth: of the residual stream at init, of its change, and of
the change relative to the stream. The stream is the input of the last norm.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.figure import Figure

from maxp import Depth
from maxp.diagnose.slopes import Array, Slope, fit_slope
from scripts.bench.outputs import write_figure
from scripts.command import check_file, run_command, write_json
from scripts.coord_check import build_model, draw_batch, next_token_loss, optional_file
from train.data.corpus import prepare_embedded
from train.method.methods import get_method
from train.model.decoders import BRANCH_ENDS, base_model
from train.model.scales import VOCAB_SIZE, get_scale
from train.progress import progress

MEASURED = ("stream at init", "change of the stream", "change relative to the stream")


@dataclass
class Options:
    """Check whether the residual stream of LLaMA-3 changes by as much at every depth.

    For example: python -m scripts.depth_check --depths 2 8 32 --exponent 0.5
    """

    depths: tuple[int, ...] = (2, 4, 8, 16, 32)
    """At least two numbers of layers. The smallest is the base."""

    exponent: float = 1.0
    """Branches are multiplied by (depth / base depth)^-exponent, and the learning rate inside
    blocks by (depth / base depth)^(exponent - 1)."""

    scale: str = "cpu64"
    """The scale whose other sizes the models have. It has width 64."""

    steps: int = 3
    """Updates before the change is measured."""

    seeds: int = 4
    """Models per depth, at least 2. Their spread gives the standard errors."""

    lr: float = 1e-3
    """Learning rate at the base."""

    branch_std: float = 1.0
    """Factor on the initial weights that end a branch."""

    sequences: int = 4
    """Sequences per batch, from the embedded corpus. Each seed draws other sequences."""

    seq_len: int = 32
    """Tokens per sequence."""

    tolerance: float = 0.1
    """Largest slope that counts as flat."""

    png: Annotated[Path | None, optional_file("./depth_check.png")] = None
    """File to write the figure to."""

    json: Annotated[Path | None, optional_file("none")] = None
    """File to write every slope and rms to."""


def check(options: Options) -> None:
    """Check the options before anything runs.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    get_scale(options.scale)
    if len(set(options.depths)) < 2 or min(options.depths) < 1:
        given = " ".join(map(str, options.depths))
        raise ValueError(f"--depths {given}: give two different numbers of layers, from 1")
    for name, least in (("steps", 1), ("seeds", 2), ("sequences", 1), ("seq_len", 2)):
        if (value := getattr(options, name)) < least:
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be at least {least}")
    for name in ("lr", "branch_std", "tolerance"):
        if not (0 < (value := getattr(options, name)) < math.inf):
            raise ValueError(f"--{name.replace('_', '-')} {value}: must be positive")
    if not 0 <= options.exponent < math.inf:
        raise ValueError(f"--exponent {options.exponent}: must not be negative")
    check_file("png", options.png)
    check_file("json", options.json)


def stream_sizes(options: Options, depth: int, seed: int, tokens: np.ndarray) -> tuple[float, ...]:
    """`MEASURED` for one model."""
    torch.manual_seed(seed)
    batch = draw_batch(tokens, options.sequences, options.seq_len)
    scale, least = replace(get_scale(options.scale), n_layers=depth), min(options.depths)
    model, parametrization = build_model(
        scale,
        get_method("mup-full"),  # at the base's width, every fixed method is the same
        options.lr,
        options.seq_len,
        base=base_model(scale, scale, VOCAB_SIZE),
        depth=Depth(depth / least, options.exponent, BRANCH_ENDS),
        std_multipliers=dict.fromkeys(BRANCH_ENDS, options.branch_std),
    )
    streams: list[torch.Tensor] = []
    hook = model.norm.register_forward_pre_hook(
        lambda _, args: streams.append(args[0].detach().double())
    )
    optimizer = torch.optim.AdamW(parametrization.param_groups)
    for _ in range(options.steps):
        optimizer.zero_grad()
        next_token_loss(model(batch), batch).backward()
        optimizer.step()
    with torch.no_grad():
        model(batch)
    hook.remove()
    before, change = _rms(streams[0]), _rms(streams[-1] - streams[0])
    return before, change, change / before


def _rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def measure(options: Options) -> dict[str, Array]:
    """Each of `MEASURED`: (seeds, depths)."""
    tokens, depths = prepare_embedded().train.tokens, sorted(set(options.depths))
    pairs = [(seed, depth) for seed in range(options.seeds) for depth in depths]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        rows = [
            stream_sizes(options, depth, seed, tokens)
            for seed, depth in progress(pairs, desc="depth check", unit="model")
        ]
    sizes = np.array(rows).reshape(options.seeds, len(depths), len(MEASURED))
    return dict(zip(MEASURED, np.moveaxis(sizes, -1, 0), strict=True))


def table(depths: Sequence[int], sizes: dict[str, Array], slopes: dict[str, Slope]) -> str:
    """One line per measured size: its geometric mean at each depth, and the slope."""
    wide = max(map(len, sizes))
    lines = [" " * wide + "".join(f"{depth:>10}" for depth in depths) + "   slope"]
    for name, rms in sizes.items():
        means = "".join(f"{mean:10.4g}" for mean in np.exp(np.log(rms).mean(0)))
        slope = slopes[name]
        lines.append(f"{name:<{wide}}{means}   {slope.mean:+.3f} +- {slope.error:.3f}  {slope}")
    return "\n".join(lines)


def draw(depths: Sequence[int], sizes: dict[str, Array], title: str) -> Figure:
    """A line per measured size, relative to that at the base, with one standard error."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name, rms in sizes.items():
        logs = np.log(rms / rms[:, :1])
        mean, error = logs.mean(0), logs.std(0, ddof=1) / math.sqrt(len(logs))
        (line,) = axes.plot(depths, np.exp(mean), marker=".", label=name)
        low, high = np.exp(mean - error), np.exp(mean + error)
        axes.fill_between(depths, low, high, color=line.get_color(), alpha=0.2, lw=0)
    axes.set(xscale="log", yscale="log", xlabel="layers", ylabel="rms, relative to the base")
    axes.set_title(title)
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.set_xticks([], minor=True)
    axes.legend()
    return figure


def run(options: Options) -> None:
    """Measure, print the table, and write the files."""
    depths, sizes = sorted(set(options.depths)), measure(options)
    slopes = {
        name: fit_slope(depths, rms, math.nan, 0.0, options.tolerance)
        for name, rms in sizes.items()
    }
    title = f"{options.scale}, exponent {options.exponent:g}, lr {options.lr:g}"
    print(f"{title}, {options.steps} steps\n{table(depths, sizes, slopes)}")
    png = options.png or Path("depth_check.png")
    write_figure(png, draw(depths, sizes, title))
    print(f"wrote {png}")
    if options.json is not None:
        results = {
            name: {"rms": rms.tolist(), "slope": slopes[name].mean, "error": slopes[name].error}
            for name, rms in sizes.items()
        }
        write_json(options.json, options, {"sizes": results})


def main() -> int:
    return run_command(Options, check, run, "python -m scripts.depth_check")


if __name__ == "__main__":
    sys.exit(main())
