"""Checks of a run's input, made before its folder is claimed and its processes are connected.

A sweep makes them as well, before it submits anything.
"""

import copy
import math
import os
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torchtitan.distributed import ParallelDims

from train.alignment_table import read_table
from train.checkpoint_files import check_flags
from train.data.loader import TextDataLoader
from train.model.classifier import Classifier, SizedClassifier


def check(config: Any) -> None:
    """Check how the parts of a `train.trainer.MaxPTrainer.Config` fit together.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    _check_environment()
    _check_numbers(config)
    if config.model_spec is not None and isinstance(config.model_spec.model, Classifier.Config):
        _check_images(config)
    _check_parallelism(config.parallelism)
    _check_mesh(config)
    _check_experts(config)
    if config.maxp.optimizer == "muon":
        _check_muon(config)
    _check_batch(config)
    check_flags(config.checkpoint, measures=config.maxp.measures)
    if config.maxp.measures:
        _check_probe(config)
    if config.maxp.alignment_table is not None:
        read_table(config.maxp.alignment_table)
    _check_rates(config)
    _check_compile(config.compile)
    _check_vocabulary(config)
    _check_names(config)
    if config.metrics.enable_wandb and find_spec("wandb") is None:
        raise ValueError(
            "--metrics.enable_wandb: the package wandb is not installed; pip install wandb, or "
            "leave the flag out"
        )
    _check_data("dataloader", config.dataloader, "train")
    if config.validator.enable:
        _check_data("validator.dataloader", config.validator.dataloader, "validation")


_AT_LEAST_1 = ((1, math.inf), "must be at least 1")
_NOT_NEGATIVE = ((0, math.inf), "must not be negative")
_PART = ((0, 1), "must be in [0, 1]")
# Flag -> (smallest, largest) value, in words.
_RANGES: dict[str, tuple[tuple[float, float], str]] = {
    "training.steps": _AT_LEAST_1,
    "training.seq_len": _AT_LEAST_1,
    "training.local_batch_size": _AT_LEAST_1,
    "training.gc_freq": _AT_LEAST_1,
    "training.max_norm": (
        (math.ulp(0.0), math.inf), "must be positive; pass inf to leave gradients unclipped"
    ),
    "validator.freq": _AT_LEAST_1,
    "validator.sequences": _AT_LEAST_1,
    "metrics.log_freq": _AT_LEAST_1,
    "comm.init_timeout_seconds": _AT_LEAST_1,
    "comm.train_timeout_seconds": _AT_LEAST_1,
    "debug.seed": (
        (0, 2**63 - 1), "must be a number that is not negative, and less than 2^63"
    ),
    "lr_scheduler.warmup_steps": _NOT_NEGATIVE,
    "lr_scheduler.decay_ratio": _PART,
    "lr_scheduler.min_lr_factor": _PART,
    "maxp.independent_weight_decay": (
        (0, math.nextafter(1, 0)),
        "must be in [0, 1): each step subtracts this part of a weight",
    ),
}  # fmt: skip
# Flag -> its value that stands for a default.
_DEFAULTS = {"training.global_batch_size": -1, "validator.steps": -1}


def _check_numbers(config: Any) -> None:
    for flag, ((low, high), words) in _RANGES.items():
        value = attrgetter(flag)(config) if flag != "validator.sequences" else _sequences(config)
        if value is None and flag == "lr_scheduler.decay_ratio":
            continue  # torchtitan's: decay right after the warm-up
        if value is None or not low <= value <= high:
            raise ValueError(f"--{flag} {value}: {words}")
    for flag, default in _DEFAULTS.items():
        value = attrgetter(flag)(config)
        if value < 1 and value != default:
            raise ValueError(f"--{flag} {value}: must be at least 1, or {default} for the default")
    total, steps = config.lr_scheduler.total_steps, config.training.steps
    if total is not None and total < steps:
        raise ValueError(
            f"--lr_scheduler.total_steps {total}: must be at least the {steps} steps of the run, "
            "or the schedule ends before them; pass more, or leave it out"
        )


def _check_images(config: Any) -> None:
    if (number := processes()) > 1:
        raise ValueError(
            f"--scale {config.scale}: image classifiers train on one process, and this run has "
            f"{number}; start it without torchrun, and in a sweep set nodes and gpus_per_node to 1"
        )
    if config.training.seq_len != 1:
        raise ValueError(
            f"--training.seq_len {config.training.seq_len}: an image has no sequence; leave it out"
        )
    model = config.model_spec.model
    is_vit = isinstance(model, SizedClassifier.Config) and model.kind == "vit"
    if is_vit and model.image_size % model.patch_size:
        raise ValueError(
            f"--dataloader.image_size {model.image_size}: must be a multiple of the "
            f"{model.patch_size} pixels of a patch of --scale {config.scale}"
        )


def _sequences(config: Any) -> int:
    return int(getattr(config.validator, "sequences", 1))


def _check_rates(config: Any) -> None:
    """Every group's lr is replaced by ``maxp.lr``: refuse one that differs from the others'."""
    lrs = {
        group.optimizer_kwargs.get("lr", config.maxp.lr) for group in config.optimizer.param_groups
    }
    if len(lrs) > 1:
        raise ValueError(
            f"--optimizer.param_groups with lr {', '.join(map(str, sorted(lrs)))}: the method sets "
            "the lr of every group from --lr; give all groups the same, or none"
        )


def _check_compile(compile_: Any) -> None:
    if compile_.backend == "inductor":
        return
    import torch._dynamo  # slow to import

    known = torch._dynamo.list_backends(exclude_tags=())
    if compile_.backend not in known:
        raise ValueError(
            f"--compile.backend {compile_.backend}: unknown; choose one of {', '.join(known)}"
        )


def _check_vocabulary(config: Any) -> None:
    loss = getattr(config.loss, "loss_fn", config.loss)
    size = getattr(loss, "global_vocab_size", None)
    if config.model_spec is None or size is None:
        return
    if size < config.model_spec.model.vocab_size:
        raise ValueError(
            f"--loss.global_vocab_size {size}: smaller than the model's vocabulary of "
            f"{config.model_spec.model.vocab_size}; leave it out"
        )


def _check_names(config: Any) -> None:
    names = {
        "output-dir": config.dump_folder,
        "checkpoint.folder": config.checkpoint.folder,
        "metrics.save_tb_folder": config.metrics.save_tb_folder,
    }
    for flag, name in names.items():
        if not name.strip():
            raise ValueError(f"--{flag} {name!r}: must not be empty; leave it out for the default")
        if not name.isprintable():
            raise ValueError(
                f"--{flag} {name!a}: must not have control characters, or bytes that are not UTF-8"
            )


def _check_data(flag: str, data: Any, split: str) -> None:
    if (given := getattr(data, "split", split)) != split:
        raise ValueError(f"--{flag}.split {given}: must be {split}; leave it out")
    if not isinstance(data, TextDataLoader.Config):
        return
    path = data.dataset_path
    if data.dataset == "embedded" and path is not None:
        raise ValueError(
            f"--dataset-path {path}: --dataset embedded reads no files; pass --dataset local, or "
            "leave the path out"
        )
    if data.dataset == "local" and path is None:
        raise ValueError("--dataset local needs --dataset-path, a file or folder of text")
    if path is not None and not Path(path).expanduser().exists():
        raise ValueError(f"--dataset-path {path}: no such file or folder")


def _check_parallelism(parallelism: Any) -> None:
    for name in ("pipeline_parallel_degree", "context_parallel_degree", "expert_parallel_degree"):
        if getattr(parallelism, name) > 1:
            raise ValueError(
                f"--parallelism.{name} {getattr(parallelism, name)}: not supported; "
                "alignment is measured on whole sequences of a whole model, so leave it at 1"
            )


def _check_environment() -> None:
    """What torchrun sets; a launcher or a shell may leave something else there."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        value = os.environ.get(name, "0")
        if not value.isdecimal():
            raise ValueError(
                f"{name}={value} in the environment: must be a number; unset it, or start the run "
                "with torchrun, which sets it"
            )


def processes() -> int:
    """The processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _check_mesh(config: Any) -> None:
    """torchtitan's own checks, made early; its assertions name no flag."""
    parallelism = config.parallelism
    try:
        ParallelDims.from_config(parallelism, processes())
    except AssertionError:
        names = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
        flags = [f"--parallelism.{n}_degree {getattr(parallelism, f'{n}_degree')}" for n in names]
        raise ValueError(
            f"{', '.join(flags)}: each must be at least 1 and their product the number of "
            f"processes of this run, {processes()}; a data_parallel_shard_degree of -1 takes all "
            "processes that the others leave"
        ) from None
    if config.model_spec is not None:
        try:
            copy.deepcopy(config.model_spec.model).update_from_config(config=config)
        except ValueError as error:
            raise ValueError(
                f"torchtitan refuses --scale {config.scale} with these flags: {error}"
            ) from None


def _check_experts(config: Any) -> None:
    """Check how processes share a mixture of experts."""
    layers = getattr(config.model_spec and config.model_spec.model, "layers", ())
    numbers = [layer.moe.num_experts for layer in layers if getattr(layer, "moe", None)]
    if not numbers:
        return
    if (degree := config.parallelism.tensor_parallel_degree) > 1:
        raise ValueError(
            f"--parallelism.tensor_parallel_degree {degree} with --scale {config.scale}: not "
            "supported with experts; leave it at 1, and divide the model among processes with "
            "--parallelism.data_parallel_shard_degree"
        )
    shards, number = (
        ParallelDims.from_config(config.parallelism, processes()).dp_shard,
        min(numbers),
    )
    if shards > number:
        raise ValueError(
            f"--parallelism.data_parallel_shard_degree {shards} with --scale {config.scale}: it "
            f"has {number} experts, which {number} processes can share; pass {number} or "
            "fewer, and the other processes as --parallelism.data_parallel_replicate_degree"
        )


def _check_muon(config: Any) -> None:
    parallelism = config.parallelism
    if (degree := parallelism.tensor_parallel_degree) > 1:
        raise ValueError(
            f"--optimizer muon with --parallelism.tensor_parallel_degree {degree}: torchtitan has "
            "no Muon for tensor-parallel weights; leave the degree at 1, or pass --optimizer adamw"
        )
    shards = ParallelDims.from_config(parallelism, processes()).dp_shard
    if shards > 1 and not torch.cuda.is_available():
        raise ValueError(
            f"--optimizer muon on {shards} shards: torchtitan's Muon for sharded weights needs "
            "CUDA devices; pass --parallelism.data_parallel_shard_degree 1 "
            f"--parallelism.data_parallel_replicate_degree {processes()}, or --optimizer adamw"
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
    """Processes, or groups of tensor-parallel processes, that divide a step's sequences."""
    return max(1, processes() // int(config.parallelism.tensor_parallel_degree))


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
    if training.global_batch_size > 0 and training.global_batch_size % together:
        raise ValueError(
            f"--training.global_batch_size {training.global_batch_size}: must be a multiple of "
            f"--training.local_batch_size {training.local_batch_size} times {ranks} data-parallel "
            "processes; change one of them"
        )
