"""What a run would do, as ``python -m train --check`` prints it before the first step."""

import copy
from dataclasses import replace
from pathlib import Path

import torch

from maxp import Parametrization
from train import cpu
from train.checks import data_parallel_ranks, global_batch_size, processes
from train.method.methods import get_method
from train.model import costs, image_costs
from train.model.classifier import Classifier
from train.model.kinds import site_graph
from train.model.scales import AnyScale, Scale, get_scale
from train.run.folder import CONFIG, RunFolder
from train.trainer import MaxPTrainer, method_arguments


def preview(config: MaxPTrainer.Config) -> str:
    """Folder, size, sites with learning rates, memory, steps and time of a checked configuration.

    Nothing is written, no data is read and no weight is drawn.

    Raises:
        ValueError: one line that names the flag and the remedy.
        RunFolderError: the folder's status is corrupt.
    """
    settings, training = config.maxp, config.training
    follows = get_method(settings.method).follows
    folder = RunFolder(config.dump_folder)
    state = folder.describe() if (Path(folder.path) / CONFIG).exists() else "new"
    lines = [
        f"run       {config.scale}, {settings.method}, {settings.optimizer}, lr {settings.lr:g}, "
        f"seed {config.debug.seed}",
        f"folder    {folder.path} ({state})",
        f"steps     {training.steps}, each of {_step(config)}",
        f"measures  {_measurements(config, follows) if settings.measures else 'never'}",
        *_costs(config),
        "",
        *_sites(config, follows),
    ]
    return "\n".join(lines)


def _step(config: MaxPTrainer.Config) -> str:
    training, batch = config.training, global_batch_size(config)
    if _is_image_run(config):
        return f"{batch} images: {training.steps * batch:,} images"
    tokens = training.steps * batch * training.seq_len
    return f"{batch} sequences of {training.seq_len} tokens: {tokens:,} tokens"


def _is_image_run(config: MaxPTrainer.Config) -> bool:
    assert config.model_spec is not None
    return isinstance(config.model_spec.model, Classifier.Config)


def _measurements(config: MaxPTrainer.Config, follows: bool) -> str:
    settings = config.maxp
    words = f"every {settings.solve_interval} steps after step {settings.measure_from}"
    return f"{words}{', and solves again' if follows else ''}"


def _costs(config: MaxPTrainer.Config) -> list[str]:
    settings, training = config.maxp, config.training
    scale, model, kept = _memory(config)
    kept = kept if settings.measures else 0
    lines = [
        f"memory    {_gib(model + kept)} on the first process, of which {_gib(kept)} for "
        "measuring; activations come on top"
    ]
    if not cpu.has_accelerator():
        return [*lines, "time      no estimate without a GPU"]
    devices = processes()
    interval = settings.solve_interval if settings.measures else None
    total = costs.gpu_hours(scale, training.steps, devices, solve_interval=interval)
    words = f"on {devices} H100 at {costs.USUAL_MFU:.0%} of peak"
    words += ", measuring on fresh text" if settings.measures else ""
    return [*lines, f"time      {total / devices:.2g} hours {words}"]


def _memory(config: MaxPTrainer.Config) -> tuple[AnyScale, int, int]:
    """The scale as flagged, and bytes on the first process: of training, and kept to measure."""
    settings, parallelism, training = config.maxp, config.parallelism, config.training
    batch = global_batch_size(config)
    assert config.model_spec is not None
    model, muon = config.model_spec.model, settings.optimizer == "muon"
    if isinstance(model, Classifier.Config):
        image = replace(model.as_scale(), global_batch_size=batch)
        kept = image_costs.measuring_bytes(image, resample_w0=settings.resample_w0)
        return image, image_costs.trained_bytes(image, muon=muon), kept
    scale: Scale = replace(
        get_scale(config.scale), seq_len=training.seq_len, global_batch_size=batch
    )
    replicas = parallelism.data_parallel_replicate_degree
    mesh = costs.Mesh(
        replicate=replicas,
        shard=max(1, data_parallel_ranks(config) // replicas),
        tensor=parallelism.tensor_parallel_degree,
    )
    probe = costs.Probe(
        settings.probe_sequences, settings.probe_tokens, fresh=settings.probe == "fresh"
    )
    memory = costs.memory(scale, mesh, probe, muon=muon)
    return scale, memory.model, memory.kept(resample_w0=settings.resample_w0)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _sites(config: MaxPTrainer.Config, follows: bool) -> list[str]:
    """One line per param group: n^-c times the lr, at the top of the schedule."""
    assert config.model_spec is not None
    model_config = copy.deepcopy(config.model_spec.model)
    graph = site_graph(model_config)
    with torch.device("meta"):
        model = model_config.build()
    # A seed, so that torch's generator is not used.
    parametrization = Parametrization(
        model, sample_input=graph, seed=0, **method_arguments(config, graph)
    )
    lrs = parametrization.lrs()
    width = max(map(len, lrs))
    first = " (until the first measurement)" if follows else ""
    lines = [f"{'site'.ljust(width)}  learning rate{first}"]
    return lines + [f"{name.ljust(width)}  {lr:.4g}" for name, lr in lrs.items()]
