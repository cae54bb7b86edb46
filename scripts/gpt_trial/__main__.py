"""Does a learning rate that was tuned at width 64 carry to widths 128 and 256?

    python -m scripts.gpt_trial --processes 2
    python -m scripts.gpt_trial --processes 0
    python -m scripts.gpt_trial --quick

A GPT that knows nothing of `maxp` is trained for 150 steps on the bytes of the embedded corpus. All
runs together take 25 minutes of one core. Each run appends a line to docs/gpt_trial/runs.csv when
it ends. The command makes the runs that the file lacks, so it continues where it was interrupted.
Then it writes the figure and the table in docs/gpt_trial.md; with ``--processes 0``, from the runs
that are there.
"""

import multiprocessing
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from scripts.gpt_trial.report import curves, figure, line, read_losses, summary, write_losses
from scripts.gpt_trial.run import ARMS, Recipe, Run, train
from scripts.marked import fill
from train.progress import progress
from train.results.style import to_bytes
from train.run.files import write_whole

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "gpt_trial.md"
QUICK = Recipe(steps=3, warmup=1, batch=2, sequence=16, solve_interval=1, held_out=2)
WIDTHS = (64, 128, 256)
# The arms and seeds that are run first.
MAIN = ("standard", "mup", "mup-without-base")
FIRST_SEEDS = 2


@dataclass(frozen=True)
class Options:
    """What to run, and where to write it."""

    processes: int = 1
    """Number of single-threaded processes; 0 makes no runs. The numbers do not depend on it."""

    seeds: int = 5
    """Seeds per arm, width and learning rate."""

    quick: bool = False
    """Make a few runs of 3 steps, to try the command, in runs/gpt-trial-quick."""

    def __post_init__(self) -> None:
        if self.processes < 0:
            raise ValueError(f"--processes {self.processes}: must not be negative")
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: must be at least 1")

    @property
    def folder(self) -> Path:
        return ROOT / "runs" / "gpt-trial-quick" if self.quick else PAGE.with_suffix("")

    @property
    def planned(self) -> list[Run]:
        if self.quick:
            some = [run for run in runs(1) if run.width < WIDTHS[-1]]
            return [run for run in some if run.log2_lr in ARMS[run.arm].log2_lrs[1:3]]
        return runs(self.seeds)


def runs(seeds: int) -> list[Run]:
    """All runs of the trial; the main arms first, and the first seeds before the others."""
    others = [arm for arm in ARMS if arm not in MAIN]
    return [
        Run(arm, width, log2_lr, seed)
        for seeds_of_part in (range(min(seeds, FIRST_SEEDS)), range(FIRST_SEEDS, seeds))
        for arms in (MAIN, others)
        for seed in seeds_of_part
        for arm in arms
        for width in WIDTHS
        for log2_lr in ARMS[arm].log2_lrs
    ]


def make(todo: list[Run], recipe: Recipe, processes: int, file: Path) -> None:
    """Make runs, and append a line to the file for each as it ends."""
    bar = progress(losses_of(todo, recipe, processes), total=len(todo), unit=" runs")
    with file.open("a") as stream:
        for run, loss in bar:
            stream.write(line(run, loss))
            stream.flush()


def losses_of(todo: list[Run], recipe: Recipe, processes: int) -> Iterator[tuple[Run, float]]:
    """Each run and its loss, in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, torch.set_num_threads, (1,)) as pool:
        futures = {pool.submit(train, run, recipe): run for run in todo}
        for future in as_completed(futures):
            yield futures.pop(future), future.result()


def report(folder: Path, losses: dict[Run, float]) -> None:
    """Print the table, and write it and the figure."""
    by_arm = curves(losses)
    if not by_arm:
        raise ValueError(f"{folder}: no arm has a complete seed; make runs with --processes 1")
    write_whole(folder / "loss.png", to_bytes(figure(by_arm), "png"))
    print(summary(by_arm))
    if folder == PAGE.with_suffix(""):
        write_whole(PAGE, fill(PAGE.read_text(), "trial", {"summary": summary(by_arm)}))


def main() -> None:
    try:
        options = tyro.cli(Options, prog="python -m scripts.gpt_trial", description=__doc__)
        file = options.folder / "runs.csv"
        options.folder.mkdir(parents=True, exist_ok=True)
        losses = read_losses(file)
        todo = [run for run in options.planned if run not in losses]
        if todo and options.processes:
            write_losses(file, losses)
            make(todo, QUICK if options.quick else Recipe(), options.processes, file)
            losses = read_losses(file)
            # In the order of the plan, whichever ended first.
            write_losses(file, {run: losses[run] for run in options.planned} | losses)
        report(options.folder, losses)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
