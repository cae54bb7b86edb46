"""Estimate the error of measured alignment for probes of different sizes.

    python -m scripts.bench.probe_error --plot docs/figures/probe_error

Trains with maxP to the middle of a run, and takes the exponents of every token at every site with a
weight, on many sequences. Then it draws probes from these repeatedly, first sequences and then
tokens of them, as a run does. The spread of their means is the standard error, which includes the
correlation of tokens within a sequence. Next to it is the error that
independent tokens would have: the spread of single tokens divided by sqrt(n). Solving with each
drawn probe gives the spread of c, and so of lr = m^-c, where m is the width relative to the base.
"""

import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from maxp.capture import Capture
from maxp.exponents import PRESETS, Alignment
from maxp.shards import local
from maxp.solver import Program
from maxp.trace import evaluating
from scripts.bench.outputs import check_folders, write_figure, write_json
from train.method.probe import draw_probe
from train.model.scales import base_of, get_scale
from train.progress import progress

NO_FILE = tyro.conf.arg(help_behavior_hint="(default: none)")
# By site, an array (terms, sequences, positions); NaN where a term is zero for a token.
PerToken = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """The run to train, and the probes to draw."""

    scale: str = "debug"
    """Scale of the run."""
    lr: float = 1e-1
    """Learning rate of the run."""
    steps: int = 400
    """Steps of the run; exponents are taken after half of them."""
    seeds: tuple[int, ...] = (1, 2)
    """Seeds of the runs that the results are averaged over."""
    pool: int = 64
    """Sequences to draw probes from."""
    tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    """Numbers of tokens of a probe."""
    sequences: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    """Numbers of sequences of a probe; kinds with more tokens than their sequences hold are left
    out."""
    draws: int = 200
    """Probes to draw per kind."""
    json: Annotated[Path | None, NO_FILE] = None
    """File to write the rows to."""
    plot: Annotated[Path | None, NO_FILE] = None
    """File to draw them to, as .png and .svg."""

    def __post_init__(self) -> None:
        if min((*self.tokens, *self.sequences, *self.seeds, self.steps), default=0) < 1:
            raise ValueError("--tokens, --sequences, --seeds and --steps must be at least 1")
        if self.draws < 2 or self.pool < 2:
            raise ValueError("--draws and --pool must be at least 2")
        check_folders(json=self.json, plot=self.plot)


@dataclass(frozen=True)
class Row:
    """Probes of one kind. Errors are standard deviations over draws.

    Attributes:
        exponent: error of the measured exponents, root mean square over sites and terms.
        worst: error of the worst of them.
        naive: ``exponent`` if tokens were independent.
        c: error of c, root mean square over sites.
        lr: the same as a factor of lr, in percent.
    """

    tokens: int
    sequences: int
    exponent: float
    worst: float
    naive: float
    c: float
    lr: float


def per_token(
    z0: torch.Tensor, z: torch.Tensor, w0: torch.Tensor, w: torch.Tensor, fan_in: int
) -> torch.Tensor:
    """The exponents of each token, (3, tokens); their mean is `maxp.compute_alignment`.

    Args:
        z0, z: inputs with the initial and the current weights, (tokens, in).
        w0, w: initial and current weight, (out, in).
        fan_in: n.
    """
    z0, z, w0, w = (t.double() for t in (z0, z, w0, w))
    dz, dw = z - z0, w - w0

    def rms(x: torch.Tensor, dim: Any) -> torch.Tensor:
        return x.square().mean(dim).sqrt()

    exponents = []
    for x, m in ((z0, dw), (dz, w0), (dz, dw)):
        grown = rms(x @ m.T, -1) / (rms(x, -1) * rms(m, (0, 1)))
        exponents.append(torch.where(grown > 0, grown.log() / math.log(fan_in), torch.nan))
    return torch.stack(exponents)


def measured_run(options: Options, seed: int, folder: Path) -> tuple[PerToken, Any]:
    """Train to the middle of a run; the exponents of every token, and the graph of the sites."""
    from train.config import Flags, complete, make_config

    flags = Flags(
        options.scale, lr=options.lr, seed=seed, steps=options.steps, output_dir=str(folder)
    )
    config = make_config(flags)
    complete(config)
    config.validator.enable = False
    config.checkpoint.enable = False
    trainer = config.build()
    parametrization = trainer.parametrization
    names = [n for n in parametrization.measured if n in parametrization.weights]
    weights = {n: local(parametrization.weights[n]) for n in names}
    w0 = {n: w.detach().clone() for n, w in weights.items()}
    z0 = inputs(trainer, names, options.pool)
    data = trainer.batch_generator(trainer.dataloader)
    for _ in progress(range(options.steps // 2), desc=f"seed {seed}: train", unit="step"):
        trainer.step += 1
        trainer.train_step(data)
    z = inputs(trainer, names, options.pool)
    tokens: PerToken = {}
    for n in progress(names, desc=f"seed {seed}: tokens", unit="site"):
        values = per_token(
            z0[n], z[n], w0[n], weights[n].detach(), parametrization.sites[n].width_dim
        )
        tokens[n] = values.reshape(3, options.pool, -1).cpu().numpy()
    trainer.close()
    return tokens, parametrization.graph


def inputs(trainer: Any, names: list[str], pool: int) -> dict[str, torch.Tensor]:
    """The current inputs of sites on the pool's sequences, (pool * positions, in)."""
    config, parametrization = trainer.config, trainer.parametrization
    drawn, labels = draw_probe(
        config.dataloader, trainer.tokenizer, seq_len=config.training.seq_len, sequences=pool
    )
    sites = {name: parametrization.sites[name] for name in names}
    capture, batch_size = Capture(sites, labels.numel()), config.training.local_batch_size
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for start in range(0, pool, batch_size):
        some = slice(start, start + batch_size)
        batch = {key: value[some] for key, value in drawn.items()}
        with evaluating(parametrization.model), torch.no_grad(), capture.watching() as seen:
            parametrization.forward((batch, labels[some]))
        for name in names:
            parts[name].append(seen[name][0])
    return {name: torch.cat(some_parts) for name, some_parts in parts.items()}


def draw(
    tokens: Mapping[str, np.ndarray], count: int, sequences: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """One probe's mean exponents by site, (3,): sequences with replacement, tokens without."""
    _, pool, positions = next(iter(tokens.values())).shape
    chosen = rng.integers(pool, size=sequences)
    flat = rng.choice(sequences * positions, size=count, replace=False)
    where = chosen[flat // positions], flat % positions
    return {name: np.nanmean(values[:, *where], axis=-1) for name, values in tokens.items()}


def rows(tokens: PerToken, graph: Any, options: Options, seed: int) -> Iterator[Row]:
    """The errors of every kind of probe that the pool allows."""
    from scripts.bench.milp_oracle import preset_exponents

    rng = np.random.default_rng(seed)
    program = Program(graph)
    preset = preset_exponents(graph, "mup", PRESETS["full"])
    positions = next(iter(tokens.values())).shape[-1]
    base = base_of(options.scale)
    width = get_scale(options.scale).dim / (get_scale(base).dim if base else 1)
    kinds = [(n, s) for s in options.sequences for n in options.tokens if s <= n <= s * positions]
    single = np.stack([np.nanvar(v, axis=(1, 2)) for v in tokens.values()])
    for count, sequences in progress(kinds, desc=f"seed {seed}: draw", unit="kind"):
        means, solutions = [], []
        for _ in range(options.draws):
            probe = draw(tokens, count, sequences, rng)
            exponents = dict(preset)
            for name, values in probe.items():
                exponents[name] = replace(preset[name], alignment=Alignment(*map(float, values)))
            means.append(np.stack(list(probe.values())))
            solutions.append(list(program.solve(exponents).c.values()))
        variance = np.var(means, axis=0, ddof=1)
        c = math.sqrt(np.var(solutions, axis=0, ddof=1).mean())
        yield Row(
            tokens=count,
            sequences=sequences,
            exponent=math.sqrt(variance.mean()),
            worst=math.sqrt(variance.max()),
            naive=math.sqrt(single.mean() / count),
            c=c,
            lr=100 * (width**c - 1),
        )


def averaged(runs: list[list[Row]]) -> list[Row]:
    """Root mean squares over runs."""
    means = []
    for same in zip(*runs, strict=True):
        values = {
            key: math.sqrt(sum(getattr(r, key) ** 2 for r in same) / len(same))
            for key in ("exponent", "worst", "naive", "c", "lr")
        }
        means.append(replace(same[0], **values))
    return means


def table(rows: list[Row]) -> str:
    head = ("tokens", "sequences", "exponent", "naive", "worst", "c", "lr %")
    lines = ["".join(f"{x:>11}" for x in head)]
    for r in rows:
        errors = (f"{x:.4f}" for x in (r.exponent, r.naive, r.worst, r.c))
        cells = (str(r.tokens), str(r.sequences), *errors, f"{r.lr:.2f}")
        lines.append("".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def write_plot(rows: list[Row], path: Path) -> None:
    """Draw the errors of exponents and lr against tokens; one line per number of sequences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    naive = {r.tokens: r.naive for r in rows}
    left.loglog(sorted(naive), [naive[n] for n in sorted(naive)], "k:", label="if independent")
    for sequences in sorted({r.sequences for r in rows}):
        some = [r for r in rows if r.sequences == sequences]
        x, label = [r.tokens for r in some], f"{sequences} sequence{'s' if sequences > 1 else ''}"
        left.loglog(x, [r.exponent for r in some], "o-", markersize=3, label=label)
        right.loglog(x, [r.lr for r in some], "o-", markersize=3, label=label)
    left.set_ylabel("standard error of an exponent")
    right.set_ylabel("standard deviation of lr, %")
    for axes in (left, right):
        axes.set_xlabel("tokens of the probe")
        axes.set_xscale("log", base=2)
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    for suffix in (".png", ".svg"):
        write_figure(path.with_suffix(suffix), figure)
    pyplot.close(figure)


def main() -> int:
    from torchtitan.tools.logging import logger

    from train.faults import single_process_environment

    try:
        options = tyro.cli(
            Options,
            prog="python -m scripts.bench.probe_error",
            description=__doc__,
            config=(tyro.conf.DisallowNone,),
        )
        scale = get_scale(options.scale)
        if options.pool < max(options.sequences):
            raise ValueError(f"--pool {options.pool}: must be at least the largest of --sequences")
        if not any(n <= s * scale.seq_len for n in options.tokens for s in options.sequences):
            raise ValueError("--tokens: more than any of --sequences holds; ask for fewer")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    single_process_environment()
    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "DTensor random operators")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            tokens, graph = measured_run(options, seed, Path(folder) / str(seed))
            runs.append(list(rows(tokens, graph, options, seed)))
    means = averaged(runs)
    print(table(means))
    if options.json is not None:
        write_json(options.json, [asdict(row) for row in means])
    if options.plot is not None:
        write_plot(means, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
