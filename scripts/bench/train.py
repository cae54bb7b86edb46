"""Step times and memory of torchtitan's own trainer, a static method and maxP, in one run.

    python -m scripts.bench.train --scale debug --json debug.json
    python -m scripts.bench.train --scale cpu256 --processes 2

All trainers live in the same processes, have the same model and batches, and take turns in short
blocks of steps in a rotating order, so that whatever disturbs the machine disturbs all. The first
step of a block is not timed.

A contender's step time is ``plain + (measuring - plain) / interval``, of the medians of its steps
that do not measure and of those that do: the mean over a whole interval, robust to outliers. (The
median of all steps would hide the measuring ones.) Where an interval is longer than a block,
one step of each block is made to measure all the same; at interval 1 every step does. Ratios are of
these step times; ``paired`` is the median over rounds of the same ratio to the static method within
a round, which drifts of the machine touch less. Times are the first rank's.

Peak memory is what torch's allocator of the accelerator gave out in a block beyond what was there,
plus what the contender keeps between steps. On a CPU no allocator tells: only what is kept is
counted, exactly, on the first rank. The predictions are of `train.model.costs`.
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

import tyro
from tqdm import tqdm

from scripts.bench.outputs import check_folders, write_json
from scripts.bench.report import report, rows_of
from train.model import costs
from train.model.scales import get_scale


@dataclass(frozen=True)
class Options:
    """What to compare, for how long, and where to write it."""

    scale: str = "debug"
    """Scale of the model; predictions are of s1 to s5 as well."""
    processes: int = 1
    """Processes that share each model; under torchrun leave it out."""
    intervals: tuple[int, ...] = (1, 10, 100, 1000)
    """Solve intervals of maxP."""
    rounds: int = 40
    """Blocks of each contender."""
    block: int = 5
    """Timed steps a block."""
    log_freq: int = 10
    """Steps between those that are logged, in all contenders; 10 is torchtitan's default."""
    probe_tokens: int | None = None
    """As --maxp.probe_tokens; by default its default."""
    probe_sequences: int | None = None
    """As --maxp.probe_sequences."""
    tensor_parallel: int = 1
    """As --parallelism.tensor_parallel_degree."""
    replicate: int = 1
    """As --parallelism.data_parallel_replicate_degree."""
    json: Path | None = None
    """Write all figures here."""

    def __post_init__(self) -> None:
        get_scale(self.scale)
        positive = ("processes", "rounds", "block", "log_freq", "tensor_parallel", "replicate")
        for name in positive:
            if getattr(self, name) < 1:
                flag = name.replace("_", "-")
                raise ValueError(f"--{flag} {getattr(self, name)}: must be at least 1")
        if not self.intervals or min(self.intervals) < 1:
            raise ValueError("--intervals needs at least one, each at least 1")
        if self.block > 1 and any(1 < k < self.block and self.block % k for k in self.intervals):
            raise ValueError(f"--block {self.block}: must be a multiple of the intervals under it")
        check_folders(json=self.json)

    def mesh(self, world: int) -> costs.Mesh:
        """The devices' axes.

        Raises:
            ValueError: the processes do not divide.
        """
        rest, left = divmod(world, self.tensor_parallel * self.replicate)
        if left or not rest:
            raise ValueError(
                f"--tensor-parallel {self.tensor_parallel} --replicate {self.replicate}: do not "
                f"divide {world} processes"
            )
        return costs.Mesh(self.replicate, rest, self.tensor_parallel)


def run(options: Options) -> None:
    """Compare in this process, one rank of however many there are."""
    # torchtitan's import takes seconds, and the process that only starts others needs none.
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
        found = []
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
        for contender in tqdm(built, "build", total=count, disable=not first):
            stack.callback(contender.trainer.close)
            found.append(contender)
        turns = [(r + i) % len(found) for r in range(options.rounds) for i in range(len(found))]
        for turn in tqdm(turns, "time", unit="block", disable=not first):
            found[turn].run(options.block)
        rows = rows_of(found)
        maxp = found[-1].trainer.config.maxp
    accelerator = torch.accelerator.is_available()
    dist.destroy_process_group()
    if first:
        probe = costs.Probe(
            maxp.probe_sequences, maxp.probe_tokens, 2 if accelerator else costs.FLOAT32
        )
        print(report(rows, options.scale, mesh, probe, accelerator=accelerator))
        if options.json is not None:
            figures = {"mesh": asdict(mesh), "probe": asdict(probe)}
            write_json(options.json, {**figures, "rows": [asdict(row) for row in rows]})


def main() -> int:
    try:
        options = tyro.cli(Options, description=__doc__)
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
