"""Compare solve times of the linear program through HiGHS, cold and warm, with big-M through CBC.

    python -m scripts.bench.solver --json solver.json --plot solver.png

A cold solve builds the program and solves it. A warm solve solves it again after every alignment
has changed a little, as between two measurements of a run. The mixed-integer program, also built
and solved in this process, gets the same exponents. All times are medians in ms.
"""

import math
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pulp
import tyro

from maxp.exponents import PRESETS, Alignment, Exponents
from maxp.graph import Graph
from maxp.solver import Program, solve
from scripts.bench.milp_oracle import chain_of, preset_exponents, solve_big_m
from scripts.bench.outputs import check_folders, write_figure, write_json
from train.progress import progress

NO_FILE = tyro.conf.arg(help_behavior_hint="(default: none)")
TARGET_SITES = 226
TARGET_COLD_RATIO = 50.0
TARGET_WARM_RATIO = 100.0
TARGET_WARM_MS = 2.0
# Allowed difference of the objectives: CBC returns each c as text with eight digits.
CBC_DIGITS = 1e-5


@dataclass(frozen=True)
class Options:
    """What to time, and where to write the results."""

    chains: tuple[int, ...] = (10, 50, 113, TARGET_SITES)
    """Sites of each chain."""
    scales: tuple[str, ...] = ("s1", "s2", "s3", "s4", "s5")
    """LLaMA-3 scales whose graphs are timed; --scales without a value times none."""
    repeats: int = 15
    """Linear solves per median."""
    milp_repeats: int = 3
    """Mixed-integer solves per median, at most --repeats."""
    seed: int = 0
    """Seed of the alignments."""
    json: Annotated[Path | None, NO_FILE] = None
    """File to write the rows to."""
    plot: Annotated[Path | None, NO_FILE] = None
    """File to draw the times to, against the number of sites."""

    def __post_init__(self) -> None:
        if not 1 <= self.milp_repeats <= self.repeats:
            raise ValueError(
                f"--milp-repeats {self.milp_repeats}: must be 1 to --repeats, {self.repeats}"
            )
        if min(self.chains, default=2) < 2:
            raise ValueError("--chains: each needs at least 2 sites, an embedding and a readout")


@dataclass(frozen=True)
class Row:
    """Medians of one graph, in ms. ``sites`` counts the sites with a weight."""

    graph: str
    sites: int
    milp_ms: float
    cold_ms: float
    warm_ms: float
    difference: float
    """The largest difference between the objectives of the two programs."""

    @property
    def cold_ratio(self) -> float:
        return self.milp_ms / self.cold_ms

    @property
    def warm_ratio(self) -> float:
        return self.milp_ms / self.warm_ms


def measured_like(rng: random.Random, graph: Graph) -> dict[str, Exponents]:
    """muP with alignments spread as in a run; sites without a weight have the default, 1/2."""
    exponents = preset_exponents(graph, "mup", PRESETS["full"])
    for site in graph.weighted:
        drawn = Alignment(rng.gauss(0.75, 0.1), rng.gauss(0.5, 0.03), rng.gauss(0.75, 0.1))
        exponents[site.name] = replace(exponents[site.name], alignment=drawn)
    return exponents


def moved(
    rng: random.Random, graph: Graph, exponents: Mapping[str, Exponents]
) -> dict[str, Exponents]:
    """The exponents after another measurement."""
    weighted = {site.name for site in graph.weighted}
    return {
        name: replace(e, alignment=Alignment(*(x + rng.gauss(0, 0.01) for x in e.alignment)))
        if name in weighted
        else e
        for name, e in exponents.items()
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The time that ``call`` took in ms, and its result."""
    start = time.perf_counter()
    value = call()
    return 1e3 * (time.perf_counter() - start), value


def bench(name: str, graph: Graph, options: Options, rng: random.Random) -> Row:
    """Time the three ways to solve ``graph`` on the same exponents.

    Raises:
        RuntimeError: their optima differ, so the times cannot be compared.
    """
    exponents = measured_like(rng, graph)
    live = Program(graph, warm_start=True)
    live.solve(exponents)
    cbc = pulp.PULP_CBC_CMD(msg=False)
    milp_ms, cold_ms, warm_ms, differences = [], [], [], []
    for i in range(options.repeats):
        exponents = moved(rng, graph, exponents)
        warm, again = timed(partial(live.solve, exponents))
        cold, fresh = timed(partial(solve, graph, exponents))
        cold_ms.append(cold)
        warm_ms.append(warm)
        if again.c != fresh.c:
            raise RuntimeError(f"{name}: the warm and the cold solve disagree")
        if i < options.milp_repeats:
            solve_milp = partial(solve_big_m, graph, exponents, polish=False, solver=cbc)
            milp, exact = timed(solve_milp)
            milp_ms.append(milp)
            objective = math.nan if exact is None else exact.objective
            differences.append(abs(sum(fresh.c.values()) - objective))
    if not max(differences) <= CBC_DIGITS:
        raise RuntimeError(f"{name}: the objectives differ by {max(differences):.3g}")
    median = statistics.median
    times = median(milp_ms), median(cold_ms), median(warm_ms)
    return Row(name, len(graph.weighted), *times, max(differences))


def graphs(options: Options) -> Iterator[tuple[str, Graph]]:
    for sites in options.chains:
        yield f"chain {sites}", chain_of(sites)
    for scale in options.scales:
        # Imported here: torchtitan's import takes seconds, and chains do not need it.
        from train.model.decoders import decoder_graph

        yield f"LLaMA-3 {scale}", decoder_graph(scale)


def table(rows: list[Row]) -> str:
    names = ("CBC big-M ms", "cold ms", "ratio", "warm ms", "ratio")
    head = f"{'graph':<14}{'sites':>6}" + "".join(f"{name:>14}" for name in names)
    lines = [
        f"{r.graph:<14}{r.sites:>6}{r.milp_ms:>14.1f}{r.cold_ms:>14.2f}{r.cold_ratio:>13.0f}x"
        f"{r.warm_ms:>14.2f}{r.warm_ratio:>13.0f}x"
        for r in rows
    ]
    return "\n".join([head, *lines])


def verdict(rows: list[Row]) -> str:
    """Whether the chain of `TARGET_SITES` sites reaches the targets."""
    target = next((row for row in rows if row.graph == f"chain {TARGET_SITES}"), None)
    if target is None:
        return f"targets: not measured; they need --chains {TARGET_SITES}"
    cold = target.cold_ratio >= TARGET_COLD_RATIO
    warm = target.warm_ms <= TARGET_WARM_MS or target.warm_ratio >= TARGET_WARM_RATIO
    return (
        f"targets at {TARGET_SITES} sites: "
        f"cold {target.cold_ratio:.0f}x, target {TARGET_COLD_RATIO:.0f}x: {_reached(cold)}; "
        f"warm {target.warm_ms:.2f} ms and {target.warm_ratio:.0f}x, "
        f"target {TARGET_WARM_MS:.0f} ms or {TARGET_WARM_RATIO:.0f}x: {_reached(warm)}"
    )


def _reached(yes: bool) -> str:
    return "reached" if yes else "MISSED"


def write_plot(rows: list[Row], path: Path) -> None:
    """Draw chains as lines and LLaMA-3 graphs as crosses, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4.5), layout="constrained")
    curves = {"milp_ms": "big-M, CBC", "cold_ms": "linear, cold", "warm_ms": "linear, warm"}
    for i, (key, label) in enumerate(curves.items()):
        for kind, style in (("chain", "o-"), ("LLaMA-3", "x")):
            some = sorted((r.sites, getattr(r, key)) for r in rows if r.graph.startswith(kind))
            if some:
                sites, times = zip(*some, strict=True)
                axes.loglog(sites, times, style, color=f"C{i}", label=f"{label}, {kind}")
    axes.axhline(TARGET_WARM_MS, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xlabel("sites with a weight")
    axes.set_ylabel("ms")
    axes.legend(fontsize="small")
    write_figure(path, figure)
    pyplot.close(figure)


def main() -> None:
    try:
        options = tyro.cli(
            Options,
            prog="python -m scripts.bench.solver",
            description=__doc__,
            config=(tyro.conf.DisallowNone,),
        )
        check_folders(json=options.json, plot=options.plot)
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    rng = random.Random(options.seed)
    total = len(options.chains) + len(options.scales)
    rows = []
    with progress(graphs(options), total=total, unit="graph") as bar:
        for name, graph in bar:
            bar.set_postfix_str(name)
            rows.append(bench(name, graph, options, rng))
    print(table(rows))
    print(verdict(rows))
    if options.json is not None:
        ratios = [{"cold_ratio": r.cold_ratio, "warm_ratio": r.warm_ratio} for r in rows]
        written = [asdict(r) | ratio for r, ratio in zip(rows, ratios, strict=True)]
        write_json(options.json, written)
    if options.plot is not None:
        write_plot(rows, options.plot)


if __name__ == "__main__":
    main()
