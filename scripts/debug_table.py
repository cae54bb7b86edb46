"""Train a small scale with several methods and learning rates on this machine; print the table.

Runs that are already complete are not run again, so the command continues where it was stopped.
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from train.results.collect import collect
from train.results.formats import render
from train.run_folder import RunFolder


@dataclass
class Options:
    """Train LLaMA-3 with each method over several learning rates and print one loss table."""

    scale: str = "debug"
    """Scale of every run."""

    methods: list[str] = field(default_factory=lambda: ["maxP", "mup-full", "mup-no"])
    """Methods, the columns."""

    lrs: list[float] = field(default_factory=lambda: [1e-2, 3e-2, 1e-1, 3e-1])
    """Learning rates, the rows."""

    seeds: list[int] = field(default_factory=lambda: [1])
    """Seeds; more than one gives a standard deviation."""

    steps: int = 200
    """Steps of every run."""

    runs_dir: Path = Path("runs/debug")
    """Where the runs' folders are."""

    at_once: int | None = None
    """Runs at a time; by default one a CPU core without an accelerator, else one."""


@dataclass(frozen=True)
class Run:
    """One run: its folder's name, its command line and where its output goes."""

    folder: Path
    arguments: list[str]

    @property
    def log(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}.log")


def expand(options: Options) -> list[Run]:
    """The runs of a grid, the methods of one lr next to each other."""
    runs = []
    for seed in options.seeds:
        for lr in options.lrs:
            for method in options.methods:
                name = f"{options.scale}_{method}_lr{lr:g}_seed{seed}_steps{options.steps}"
                folder = options.runs_dir / name
                flags = {
                    "scale": options.scale,
                    "method": method,
                    "lr": lr,
                    "seed": seed,
                    "steps": options.steps,
                    "output-dir": folder,
                }
                words = [
                    word for flag, value in flags.items() for word in (f"--{flag}", str(value))
                ]
                runs.append(Run(folder, words))
    return runs


def execute(run: Run, threads: int) -> int:
    """Train one run, its output in ``run.log``; returns the exit status."""
    run.log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with run.log.open("w") as log:
        command = [sys.executable, "-m", "train", *run.arguments]
        return subprocess.run(command, stdout=log, stderr=log, env=environment).returncode


def main() -> int:
    options = tyro.cli(Options, prog="scripts/run_debug.sh")
    runs = expand(options)
    cores = len(os.sched_getaffinity(0))
    at_once = options.at_once or (1 if _has_accelerator() else cores)
    _prepare_data()
    failed = 0
    with (
        ThreadPoolExecutor(at_once) as pool,
        tqdm(total=len(runs), desc="runs", unit="run") as progress,
    ):
        started = {pool.submit(execute, run, max(1, cores // at_once)): run for run in runs}
        for done in as_completed(started):
            run = started[done]
            if done.result():
                failed += 1
                lines = run.log.read_text().splitlines() or ["no output"]
                progress.write(f"{run.folder.name} failed: {lines[-1]} (see {run.log})")
            else:
                progress.write(f"{run.folder.name}: {RunFolder(run.folder).describe()}")
            progress.update()
    print()
    print(render(collect(options.runs_dir), "validation"))
    return 1 if failed else 0


def _has_accelerator() -> bool:
    import torch

    return bool(torch.accelerator.is_available())


def _prepare_data() -> None:
    """Make the corpus and its tokenizer before several runs would wait for it out of sight."""
    from train.corpus import prepare_embedded

    prepare_embedded()


if __name__ == "__main__":
    sys.exit(main())
