"""Many independent pieces of work, on a few processes of one thread each, with a bar."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import torch
from tqdm import tqdm

R = TypeVar("R")


def run_all(
    work: Callable[..., Sequence[R]],
    tasks: Sequence[tuple[Any, ...]],
    cost: Callable[..., float],
    *,
    workers: int,
    label: str,
) -> list[R]:
    """``work(*task)`` of every task, in the order of ``tasks``, whatever the number of workers.

    Args:
        work: a function of a module, since it is sent to other processes.
        cost: of a task; the dearest start first, and the bar advances by it.
        workers: processes; 0 is this one.
    """
    order = sorted(range(len(tasks)), key=lambda i: -cost(*tasks[i]))
    results: list[Sequence[R]] = [[] for _ in tasks]
    total = sum(cost(*task) for task in tasks)
    form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=total, desc=label, bar_format=form) as bar:
        if workers == 0:
            for i in order:
                results[i] = work(*tasks[i])
                bar.update(cost(*tasks[i]))
        else:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(workers, context, torch.set_num_threads, (1,)) as pool:
                futures = {pool.submit(work, *tasks[i]): i for i in order}
                for future in as_completed(futures):
                    i = futures[future]
                    results[i] = future.result()
                    bar.update(cost(*tasks[i]))
    return [row for rows in results for row in rows]
