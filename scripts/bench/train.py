"""Compare step times and memory of torchtitan's own trainer, a static method and maxP in one run.

    python -m scripts.bench.train --scale debug --json debug.json
    python -m scripts.bench.train --scale cpu256 --processes 2

All trainers live in the same processes, with the same model and batches, and take turns in short
blocks of steps in a rotating order, so a disturbance of the machine affects all of them. The first
step of a block is not timed.

A trainer's step time is ``plain + (measuring - plain) / interval``, where ``plain`` and
``measuring`` are the medians of its steps without and with a measurement. This is the mean over a
whole interval, robust to outliers. (The median of all steps would ignore the measuring ones.) If an
interval is longer than a block, one step of each block measures; at interval 1 every step does.
Ratios compare these step times. ``paired`` is the median over rounds of the ratio to the static
method within one round, which slow drifts of the machine affect less. Times are those of the first
rank.

Peak memory is what the accelerator's allocator gave out in a block beyond what it had given out
before, plus what the trainer keeps between steps. On a CPU no allocator reports this, and only what
the trainer keeps on the first rank is counted. `train.model.costs` makes the predictions.
"""

import contextlib
import logging
import os
import subprocess
import sys
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scripts.bench.outputs import check_folders, write_json
from scripts.bench.report import report, rows_of
from train.model import costs
from train.model.scales import get_scale
from train.progress import progress


@dataclass(frozen=True)
class Options:
    """What to compare, for how long, and where to write it."""

    scale: str = "debug"
    """Scale of the model; the report also predicts s1 to s5."""
    processes: int = 1
    """Processes that share each model; leave the flag out under torchrun."""
    intervals: tuple[int, ...] = (1, 10, 100, 1000)
    """Solve intervals of maxP."""
    rounds: int = 40
    """Blocks per trainer."""
    block: int = 5
    """Timed steps per block."""
    log_freq: int = 10
    """Steps between logged steps, for all trainers; torchtitan's default is 10."""
    probe_tokens: int = costs.Probe.tokens
    """As --maxp.probe_tokens."""
    probe_sequences: int = costs.Probe.sequences
    """As --maxp.probe_sequences."""
    tensor_parallel: int = 1
    """As --parallelism.tensor_parallel_degree."""
    replicate: int = 1
    """As --parallelism.data_parallel_replicate_degree."""
    json: Annotated[Path | None, tyro.conf.arg(help_behavior_hint="(default: none)")] = None
    """File to write all figures to."""

    def __post_init__(self) -> None:
        get_scale(self.scale)
        positive = ("processes", "rounds", "block", "log_freq", "tensor_parallel", "replicate")
        for name in positive:
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: must be at least 1")
        if not self.intervals or min(self.intervals) < 1:
            raise ValueError("--intervals: give at least one, each at least 1")
        if self.block > 1 and any(1 < k < self.block and self.block % k for k in self.intervals):
            raise ValueError(f"--block {self.block}: must be a multiple of every smaller interval")
        check_folders(json=self.json)

    def mesh(self, world: int) -> costs.Mesh:
        """The mesh of ``world`` processes.

        Raises:
            ValueError: the degrees do not divide the processes.
        """
        shard, remainder = divmod(world, self.tensor_parallel * self.replicate)
        if remainder or not shard:
            raise ValueError(
                f"--tensor-parallel {self.tensor_parallel} --replicate {self.replicate}: do not "
                f"divide {world} processes"
            )
        return costs.Mesh(self.replicate, shard, self.tensor_parallel)


def run(options: Options) -> None:
    """Compare the trainers in this process, which is one rank."""
    # Imported here: torchtitan's import takes seconds, and a process that only starts ranks needs
    # none of it.
    import torch
    import torch.distributed as dist
    from torchtitan.tools.logging import logger

    from scripts.bench.contenders import contenders
    from train.faults import single_process_environment

    world = int(os.environ.get("WORLD_SIZE", "1"))
    mesh = options.mesh(world)
    single_process_environment()
    first = os.environ["RANK"] == "0"
    logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "DTensor random operators")
    parallelism = {
        "tensor_parallel_degree": options.tensor_parallel,
        "data_parallel_replicate_degree": options.replicate,
    }
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        runners = []
        built = contenders(
            options.scale,
            options.intervals,
            Path(folder),
            log_freq=options.log_freq,
            probe_tokens=options.probe_tokens,
            probe_sequences=options.probe_sequences,
            parallelism=parallelism,
        )
        count = len(options.intervals) + 3
        for contender in progress(built, desc="build", total=count, disable=not first):
            stack.callback(contender.trainer.close)
            runners.append(contender)
        count = len(runners)
        turns = [(r + i) % count for r in range(options.rounds) for i in range(count)]
        for turn in progress(turns, desc="time", unit="block", disable=not first):
            runners[turn].run(options.block)
        rows = rows_of(runners)
    accelerator = torch.accelerator.is_available()
    dist.destroy_process_group()
    if first:
        itemsize = 2 if accelerator else costs.FLOAT32
        probe = costs.Probe(options.probe_sequences, options.probe_tokens, itemsize)
        print(report(rows, options.scale, mesh, probe, accelerator=accelerator))
        if options.json is not None:
            figures = {"mesh": asdict(mesh), "probe": asdict(probe)}
            write_json(options.json, {**figures, "rows": [asdict(row) for row in rows]})


def main() -> int:
    try:
        options = tyro.cli(
            Options,
            prog="python -m scripts.bench.train",
            description=__doc__,
            config=(tyro.conf.DisallowNone,),
        )
        if options.processes > 1 and "RANK" not in os.environ:
            options.mesh(options.processes)
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            torchrun += [f"--nproc-per-node={options.processes}", "-m", "scripts.bench.train"]
            return subprocess.run([*torchrun, *sys.argv[1:]]).returncode
        run(options)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
