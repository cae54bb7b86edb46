"""Run many independent measurements in a few single-threaded processes, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch

from train.progress import progress


def run_all(
    measure: Callable[..., list[dict[str, Any]]],
    tasks: Iterable[tuple[Any, ...]],
    *,
    workers: int,
    label: str,
) -> pd.DataFrame:
    """The rows of ``measure(*task)`` for all tasks; `files.write_rows` sorts them.

    Args:
        measure: a module-level function, because it is sent to other processes.
        tasks: start in this order: put the longest first, so that no process is idle at the end.
        workers: number of processes; 0 runs everything in this process.
        label: shown next to the bar.
    """
    tasks = list(tasks)
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,))
        if workers
        else nullcontext()
    ) as pool:
        results = (pool.map if pool else map)(measure, *zip(*tasks, strict=True))
        bar = progress(results, desc=label, total=len(tasks), unit=" models")
        return pd.DataFrame([row for rows in bar for row in rows])
