"""What `Parametrization.step` adds to a training loop of one's own, on the CPU.

    python -m scripts.bench.loop --json loop.json

The model is the GPT of `scripts.gpt_trial`, trained by AdamW in one thread. Loops take turns in one
process, one short block of steps each, in a rotating order, so a disturbance of the machine affects
all of them: the plain model with one group of parameters, the marked model with a group per site,
and the marked model with a call of `Parametrization.step` after each step, for each kind of probe.
The first step of a block is not timed. After it, every second call measures.

A call that measures and one that does not are timed apart from the rest of the step. The cost at
interval k is ``((k - 1) other + measuring) / k`` relative to a step of the plain loop, with the
medians of a round. The report has the median over rounds, in CPU time and in wall time. On a busy
machine only CPU time is reliable.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import tyro

from maxp import Parametrization
from scripts.bench.outputs import check_folders, write_json
from scripts.gpt_trial.model import GPT
from scripts.gpt_trial.run import Recipe, corpus, loss_of, windows
from train.progress import progress

PLAIN, STATIC = "plain loop", "marked, static"
INTERVALS = (1, 10, 100)
CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
Times = dict[str, float]


@dataclass(frozen=True)
class Options:
    """What to time, and where to write it."""

    width: int = 256
    """Width of the GPT; the base has a quarter of it."""
    batch: int = 8
    """Sequences of a step."""
    sequence: int = Recipe.sequence
    """Tokens of a sequence."""
    probe: int = 4
    """Sequences of a probe; at most those of a step."""
    rounds: int = 30
    """Blocks per loop."""
    block: int = 4
    """Timed steps per block; half of the calls measure."""
    json: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: none)")] = None
    """File to write all figures to."""

    def __post_init__(self) -> None:
        for name in ("batch", "sequence", "probe", "rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} {getattr(self, name)}: must be at least 1")
        if self.width < 128 or self.width % 128:
            raise ValueError(f"--width {self.width}: must be a multiple of 128")
        if self.probe > self.batch:
            raise ValueError(f"--probe {self.probe}: must be at most --batch {self.batch}")
        if self.block < 2 or self.block % 2:
            raise ValueError(f"--block {self.block}: must be even and at least 2")
        check_folders(json=self.json)


@dataclass
class Loop:
    """A model, its optimizer, and what is called after each step.

    Attributes:
        call: receives the batch; None for a loop that never measures.
        steps: the times of steps without that call, by round.
        measuring, other: the times of calls that measure, and of those that do not, by round.
    """

    name: str
    model: GPT
    optimizer: torch.optim.Optimizer
    p: Parametrization | None = None
    call: Callable[[torch.Tensor], None] | None = None
    steps: list[list[Times]] = field(default_factory=list)
    measuring: list[list[Times]] = field(default_factory=list)
    other: list[list[Times]] = field(default_factory=list)

    def run(self, batches: list[torch.Tensor]) -> None:
        """Make a step per batch; the first one is not timed."""
        self.steps.append([])
        self.measuring.append([])
        self.other.append([])
        if self.p is not None:
            # The call after the first step does not measure, the next one does.
            self.p.warmup_steps, self.p.solve_interval = self.p.steps, 2
        for number, x in enumerate(batches):
            trained = timed(self.train, x)
            called = None if self.call is None else timed(self.call, x)
            if not number:
                continue
            self.steps[-1].append(trained)
            if called is not None:
                (self.measuring if number % 2 else self.other)[-1].append(called)

    def train(self, x: torch.Tensor) -> None:
        loss_of(self.model, x).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def timed(call: Callable[[torch.Tensor], object], x: torch.Tensor) -> Times:
    """The times of a call in ms, by clock."""
    start = {name: clock() for name, clock in CLOCKS.items()}
    call(x)
    return {name: 1e3 * (clock() - start[name]) for name, clock in CLOCKS.items()}


def loops(options: Options) -> list[Loop]:
    """The loops that are compared, all with the same model."""

    def gpt(width: int) -> GPT:
        return GPT(width, sequence=options.sequence)

    def marked(name: str, **more: Any) -> Loop:
        p = Parametrization(
            gpt(options.width),
            base=gpt(options.width // 4),
            sample_input=torch.zeros(1, options.sequence, dtype=torch.int64),
            lr_prefactor=1e-3,
            **more,
        )
        assert isinstance(p.model, GPT)
        return Loop(name, p.model, torch.optim.AdamW(p.param_groups), p)

    plain = gpt(options.width)
    made = [Loop(PLAIN, plain, torch.optim.AdamW(plain.parameters(), 1e-3)), marked(STATIC)]

    def add(
        name: str, select: Callable[[torch.Tensor], Any], probe: Any = None, **more: Any
    ) -> None:
        loop = marked(name, **more)
        p = loop.p
        assert p is not None
        p.capture_initial(probe, any_batch=probe is None)
        loop.call = lambda x: p.step(select(x), loop.optimizer)
        made.append(loop)

    count = options.probe
    tokens = torch.randint(256, (count, options.sequence))
    add(f"fixed probe of {count}", lambda x: None, tokens)
    add(f"fresh probe of {count}", lambda x: x[:count, :-1])
    add("the training batch", lambda x: x[:, :-1])
    add("training's activations", lambda x: None, use_training_activations=True)
    return made


@dataclass(frozen=True)
class Row:
    """Medians of a loop, by clock.

    Attributes:
        step_ms: a step without the call.
        relative: that, relative to the plain loop.
        other_ms, measuring_ms: a call that does not measure, and one that does.
        costs: the calls at each interval, relative to a step of the plain loop.
    """

    name: str
    step_ms: Times
    relative: Times
    other_ms: Times
    measuring_ms: Times
    costs: dict[int, Times]


def row(loop: Loop, plain: Loop) -> Row:
    """A loop's medians over rounds; ratios are taken within a round."""

    def middle(clock: str, rounds: list[list[Times]]) -> list[float]:
        return [median(times[clock] for times in steps) for steps in rounds if steps]

    def over_rounds(rounds: list[list[Times]]) -> Times:
        return {c: median(of) for c in CLOCKS if (of := middle(c, rounds))}

    relative: Times = {}
    costs: dict[int, Times] = {k: {} for k in INTERVALS} if loop.call is not None else {}
    for clock in CLOCKS:
        base = middle(clock, plain.steps)
        relative[clock] = median(
            mine / its for mine, its in zip(middle(clock, loop.steps), base, strict=True)
        )
        for k in costs:
            calls = zip(middle(clock, loop.other), middle(clock, loop.measuring), base, strict=True)
            costs[k][clock] = median(((k - 1) * o + m) / k / its for o, m, its in calls)
    return Row(
        loop.name,
        over_rounds(loop.steps),
        relative,
        over_rounds(loop.other),
        over_rounds(loop.measuring),
        costs,
    )


def report(rows: list[Row]) -> str:
    """The table in Markdown, as docs/measuring.md has it."""
    heads = ["loop", "step (ms)", "step / plain", "call, not measuring (ms)"]
    heads += ["call, measuring (ms)", *(f"cost, interval {k}" for k in INTERVALS)]
    lines = [heads, ["---"] * len(heads)]
    for r in rows:
        cells = [r.name, _pair(r.step_ms, ".1f"), _pair(r.relative, ".3f")]
        cells += [_pair(r.other_ms, ".2f"), _pair(r.measuring_ms, ".1f")]
        lines.append([*cells, *(_pair(r.costs.get(k, {}), ".2%") for k in INTERVALS)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _pair(times: Times, how: str) -> str:
    """CPU time, and wall time in brackets."""
    return f"{times['cpu']:{how}} ({times['wall']:{how}})" if times else ""


def run(options: Options) -> list[Row]:
    """Time all loops."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made, (data, _) = loops(options), corpus()
    generator = torch.Generator().manual_seed(0)
    turns = [(r + i) % len(made) for r in range(options.rounds) for i in range(len(made))]
    for turn in progress(turns, unit=" blocks"):
        count = options.block + 1
        x = windows(data, count * options.batch, options.sequence, generator)
        made[turn].run(list(x.split(options.batch)))
    return [row(loop, made[0]) for loop in made]


def main() -> int:
    try:
        options = tyro.cli(Options, prog="python -m scripts.bench.loop", description=__doc__)
        rows = run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(rows))
    if options.json is not None:
        write_json(options.json, [asdict(r) for r in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
