"""What is wrong with a run's input, told before its folder is taken or a process group made."""

import math
import os
from pathlib import Path
from typing import Any

from train.alignment_table import read_table
from train.data.loader import TextDataLoader
from train.method.methods import get_method


def check(config: Any) -> None:
    """Check what no single part of a `train.trainer.MaxPTrainer.Config` can see.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    _check_parallelism(config.parallelism)
    _check_mesh(config.parallelism)
    if config.model_spec is not None:
        _check_tensor_parallelism(config)
    _check_batch(config)
    if get_method(config.maxp.method).follows or config.maxp.measure:
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
                f"--parallelism.{name} {getattr(parallelism, name)}: not supported; sites are "
                "measured on whole sequences of a whole dense model, so leave it at 1"
            )


def _processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_mesh(parallelism: Any) -> None:
    """torchtitan asserts this, and what `_check_batch` looks at, once processes are connected."""
    processes = _processes()
    degrees = {
        name: getattr(parallelism, name)
        for name in (
            "data_parallel_replicate_degree",
            "data_parallel_shard_degree",
            "tensor_parallel_degree",
        )
    }
    rest = degrees["data_parallel_shard_degree"] == -1  # as many as there are
    for name, degree in degrees.items():
        if degree < 1 and not (rest and name == "data_parallel_shard_degree"):
            raise ValueError(f"--parallelism.{name} {degree}: must be at least 1")
    product = math.prod(degree for degree in degrees.values() if degree > 0)
    if processes % product or not (rest or product == processes):
        flags = " times ".join(f"--parallelism.{n} {d}" for n, d in degrees.items() if d > 0)
        raise ValueError(
            f"{flags}: {product} must {'divide' if rest else 'be'} the {processes} processes of "
            "this run; change one of them, or how many processes are started"
        )


def _check_tensor_parallelism(config: Any) -> None:
    degree, model = config.parallelism.tensor_parallel_degree, config.model_spec.model
    attention = model.layers[0].attention
    divided = {
        "heads": attention.n_heads,
        "key and value heads": attention.n_kv_heads or attention.n_heads,
    }
    if config.parallelism.enable_sequence_parallel:
        divided["tokens of --training.seq_len"] = config.training.seq_len
    for what, number in divided.items():
        if number % degree:
            raise ValueError(
                f"--parallelism.tensor_parallel_degree {degree}: must divide the {number} {what} "
                f"of --scale {config.scale}; take a divisor of {number}"
            )


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
    """Processes, or groups of tensor-parallel ones, that share out a step's sequences."""
    return max(1, _processes() // int(config.parallelism.tensor_parallel_degree))


def global_batch_size(config: Any) -> int:
    """Sequences a step; where none is set, one local batch on each data-parallel rank."""
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
