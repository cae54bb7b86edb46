"""Checks of a run's input, made before its folder is claimed and its processes are connected.

A sweep makes them as well, before it submits anything.
"""

import copy
import os
from pathlib import Path
from typing import Any

from torchtitan.distributed import ParallelDims

from train.alignment_table import read_table
from train.checkpoint_files import check_flags
from train.data.loader import TextDataLoader
from train.method.methods import get_method


def check(config: Any) -> None:
    """Check how the parts of a `train.trainer.MaxPTrainer.Config` fit together.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    _check_parallelism(config.parallelism)
    _check_mesh(config)
    _check_batch(config)
    measures = get_method(config.maxp.method).follows or config.maxp.measure
    check_flags(config.checkpoint, measures=measures)
    if measures:
        _check_probe(config)
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
    for name in ("pipeline_parallel_degree", "context_parallel_degree", "expert_parallel_degree"):
        if getattr(parallelism, name) > 1:
            raise ValueError(
                f"--parallelism.{name} {getattr(parallelism, name)}: not supported; "
                "alignment is measured on whole sequences of a whole dense model, so leave it at 1"
            )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_mesh(config: Any) -> None:
    """torchtitan's own checks, made early; its assertions name no flag."""
    parallelism = config.parallelism
    try:
        ParallelDims.from_config(parallelism, _processes())
    except AssertionError:
        names = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
        flags = [f"--parallelism.{n}_degree {getattr(parallelism, f'{n}_degree')}" for n in names]
        raise ValueError(
            f"{', '.join(flags)}: each must be at least 1 and their product the number of "
            f"processes of this run, {_processes()}; a data_parallel_shard_degree of -1 takes all "
            "processes that the others leave"
        ) from None
    if config.model_spec is not None:
        try:
            copy.deepcopy(config.model_spec.model).update_from_config(config=config)
        except ValueError as error:
            raise ValueError(
                f"torchtitan refuses --scale {config.scale} with these flags: {error}"
            ) from None


def _check_probe(config: Any) -> None:
    settings, training = config.maxp, config.training
    batch = global_batch_size(config)
    if settings.probe_sequences > batch:
        raise ValueError(
            f"--maxp.probe_sequences {settings.probe_sequences}: every process runs the probe, "
            f"which must not be larger than a step's batch of {batch} sequences; pass {batch} or "
            "fewer"
        )
    tokens = settings.probe_sequences * training.seq_len
    if settings.probe_tokens > tokens:
        raise ValueError(
            f"--maxp.probe_tokens {settings.probe_tokens}: the probe, --maxp.probe_sequences "
            f"{settings.probe_sequences} of --training.seq_len {training.seq_len}, has {tokens}; "
            f"pass {tokens} or fewer, or more sequences"
        )


def data_parallel_ranks(config: Any) -> int:
    """Processes, or groups of tensor-parallel processes, that divide a step's sequences."""
    return max(1, _processes() // int(config.parallelism.tensor_parallel_degree))


def global_batch_size(config: Any) -> int:
    """Sequences per step; where none is set, one local batch per data-parallel rank."""
    training = config.training
    if training.global_batch_size > 0:
        return int(training.global_batch_size)
    return int(training.local_batch_size) * data_parallel_ranks(config)


def _check_batch(config: Any) -> None:
    training = config.training
    ranks = data_parallel_ranks(config)
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
