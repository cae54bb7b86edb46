"""What is wrong with a run's input, told before its folder is taken or a process group made."""

import os
from pathlib import Path
from typing import Any

from train.alignment_table import read_table
from train.data import TextDataLoader


def check(config: Any) -> None:
    """Check what no single part of a `train.trainer.MaxPTrainer.Config` can see.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    _check_parallelism(config.parallelism)
    _check_batch(config)
    if config.training.steps < 1:
        raise ValueError(f"--training.steps {config.training.steps}: must be at least 1")
    if config.maxp.alignment_table is not None:
        read_table(config.maxp.alignment_table)
    if isinstance(config.dataloader, TextDataLoader.Config):
        _check_data(config.dataloader)


def _check_data(data: TextDataLoader.Config) -> None:
    path = data.dataset_path
    if data.dataset == "local" and path is None:
        raise ValueError("--dataset local needs --dataset-path, a file or folder of text")
    if path is not None and not Path(path).expanduser().exists():
        raise ValueError(f"--dataset-path {path}: no such file or folder")


def _check_parallelism(parallelism: Any) -> None:
    for name in ("pipeline_parallel_degree", "context_parallel_degree"):
        if getattr(parallelism, name) > 1:
            raise ValueError(
                f"--parallelism.{name} {getattr(parallelism, name)}: not supported; sites are "
                "measured on whole sequences of the whole model, so leave it at 1"
            )


def _check_batch(config: Any) -> None:
    """torchtitan asserts this, once the processes are connected."""
    training = config.training
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    ranks = max(1, processes // config.parallelism.tensor_parallel_degree)
    together = training.local_batch_size * ranks
    if together < 1:
        raise ValueError(
            f"--training.local_batch_size {training.local_batch_size}: must be at least 1"
        )
    if training.global_batch_size > 0 and training.global_batch_size % together:
        raise ValueError(
            f"--training.global_batch_size {training.global_batch_size}: must be a multiple of "
            f"--training.local_batch_size {training.local_batch_size} times {ranks} data-parallel "
            "processes; change one of them"
        )
