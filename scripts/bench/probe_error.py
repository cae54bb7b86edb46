"""How well a probe of so many tokens, from so many sequences, knows the alignment of a run.

    python -m scripts.bench.probe_error --plot docs/figures/probe_error

Trains with maxP to the middle of a run and takes every token's own exponents, at every site with a
weight, on many sequences. Then draws probes from these again and again, sequences first and tokens
of them then, as a run does: the spread of the means is the standard error, with the correlation of
tokens within a sequence in it. It is set beside the naive one, that of single tokens over sqrt(n).
Each drawn probe is also solved for, which gives the spread of c, and so of lr = n^-c.
"""

import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from maxp.capture import Capture
from maxp.exponents import PRESETS, Alignment
from maxp.shards import local
from maxp.solver import Program
from maxp.trace import evaluating
from scripts.bench.outputs import check_folders, write_figure, write_json
from train.method.probe import draw_probe
from train.model.scales import get_scale

# By site: (terms, sequences, positions), a NaN where a term is zero for a token.
PerToken = dict[str, np.ndarray]


@dataclass(frozen=True)
class Options:
    """Which run to look at, and which probes to draw."""

    scale: str = "debug"
    """Scale of the run."""
    lr: float = 1e-1
    """Its learning rate."""
    steps: int = 400
    """Its length; exponents are taken at half of it."""
    seeds: tuple[int, ...] = (1, 2)
    """Runs that the figures are averaged over."""
    pool: int = 64
    """Sequences to draw probes from."""
    tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
    """Tokens of a probe."""
    sequences: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    """Sequences of a probe; where they hold fewer tokens than asked for, it is left out."""
    draws: int = 200
    """Probes drawn of each kind."""
    json: Path | None = None
    """Write the rows here."""
    plot: Path | None = None
    """Draw them to this name with .png and .svg."""

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
        exponent: of the measured exponents, root mean square over sites and terms.
        worst: of the worst of them.
        naive: what ``exponent`` would be if tokens were independent.
        c: of c, root mean square over sites; ``lr`` the same as a factor of lr, in percent.
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
    """The exponents of each token alone, (3, tokens); their mean is `maxp.compute_alignment`.

    Args:
        z0, z: inputs with the initial and the current weights, (tokens, in).
        w0, w: initial and current weight, (out, in).
        fan_in: n.
    """
    z0, z, w0, w = (t.double() for t in (z0, z, w0, w))
    dz, dw = z - z0, w - w0

    def rms(x: torch.Tensor, dim: Any) -> torch.Tensor:
        return x.square().mean(dim).sqrt()

    found = []
    for x, m in ((z0, dw), (dz, w0), (dz, dw)):
        # The definition has rms(x) of ``in`` entries and sums over them: hence the factor.
        grown = rms(x @ m.T, -1) / (rms(x, -1) * rms(m, (0, 1)))
        found.append(torch.where(grown > 0, grown.log() / math.log(fan_in), torch.nan))
    return torch.stack(found)


def measured_run(options: Options, seed: int, folder: Path) -> tuple[PerToken, Any]:
    """Train to the middle; every token's exponents, and the graph of the sites."""
    from train.config import Flags, make_config, match_tokenizer

    flags = Flags(
        options.scale, lr=options.lr, seed=seed, steps=options.steps, output_dir=str(folder)
    )
    config = make_config(flags)
    match_tokenizer(config)
    config.validator.enable = False
    config.checkpoint.enable = False
    trainer = config.build()
    parametrization = trainer.parametrization
    names = [n for n in parametrization.measured if n in parametrization.weights]
    weights = {n: local(parametrization.weights[n]) for n in names}
    w0 = {n: w.detach().clone() for n, w in weights.items()}
    z0 = inputs(trainer, names, options.pool)
    data = trainer.batch_generator(trainer.dataloader)
    for _ in tqdm(range(options.steps // 2), f"seed {seed}: train", unit="step"):
        trainer.step += 1
        trainer.train_step(data)
    z = inputs(trainer, names, options.pool)
    tokens: PerToken = {}
    for n in tqdm(names, f"seed {seed}: tokens", unit="site"):
        values = per_token(
            z0[n], z[n], w0[n], weights[n].detach(), parametrization.sites[n].width_dim
        )
        tokens[n] = values.reshape(3, options.pool, -1).cpu().numpy()
    trainer.close()
    return tokens, parametrization.graph


def inputs(trainer: Any, names: list[str], pool: int) -> dict[str, torch.Tensor]:
    """The present inputs of sites on the pool's sequences, (pool * positions, in)."""
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
    """The errors of every kind of probe that the pool can give."""
    from scripts.bench.milp_oracle import preset_exponents

    rng = np.random.default_rng(seed)
    program = Program(graph)
    preset = preset_exponents(graph, "mup", PRESETS["full"])
    positions = next(iter(tokens.values())).shape[-1]
    width = get_scale(options.scale).dim
    kinds = [(n, s) for s in options.sequences for n in options.tokens if s <= n <= s * positions]
    single = np.stack([np.nanvar(v, axis=(1, 2)) for v in tokens.values()])
    for count, sequences in tqdm(kinds, f"seed {seed}: draw", unit="kind"):
        means, answers = [], []
        for _ in range(options.draws):
            found = draw(tokens, count, sequences, rng)
            exponents = dict(preset)
            for name, values in found.items():
                exponents[name] = replace(preset[name], alignment=Alignment(*map(float, values)))
            means.append(np.stack(list(found.values())))
            answers.append(list(program.solve(exponents).c.values()))
        variance = np.var(means, axis=0, ddof=1)
        c = math.sqrt(np.var(answers, axis=0, ddof=1).mean())
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
    found = []
    for same in zip(*runs, strict=True):
        values = {
            key: math.sqrt(sum(getattr(r, key) ** 2 for r in same) / len(same))
            for key in ("exponent", "worst", "naive", "c", "lr")
        }
        found.append(replace(same[0], **values))
    return found


def table(found: list[Row]) -> str:
    head = ("tokens", "sequences", "exponent", "naive", "worst", "c", "lr %")
    lines = ["".join(f"{x:>11}" for x in head)]
    for r in found:
        errors = (f"{x:.4f}" for x in (r.exponent, r.naive, r.worst, r.c))
        cells = (str(r.tokens), str(r.sequences), *errors, f"{r.lr:.2f}")
        lines.append("".join(f"{cell:>11}" for cell in cells))
    return "\n".join(lines)


def write_plot(found: list[Row], path: Path) -> None:
    """Standard error of the exponents, and lr's, against tokens; one line a number of sequences."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    naive = {r.tokens: r.naive for r in found}
    left.loglog(sorted(naive), [naive[n] for n in sorted(naive)], "k:", label="if independent")
    for sequences in sorted({r.sequences for r in found}):
        some = [r for r in found if r.sequences == sequences]
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
        options = tyro.cli(Options, description=__doc__)
        scale = get_scale(options.scale)
        if options.pool < max(options.sequences):
            raise ValueError(f"--pool {options.pool}: must be at least the most --sequences")
        if not any(n <= s * scale.seq_len for n in options.tokens for s in options.sequences):
            raise ValueError("--tokens: no probe of --sequences has so many; ask for fewer")
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
    found = averaged(runs)
    print(table(found))
    if options.json is not None:
        write_json(options.json, [asdict(row) for row in found])
    if options.plot is not None:
        write_plot(found, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
