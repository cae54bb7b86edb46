"""Which checkpoints a folder holds, and whether they can be loaded."""

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools.logging import logger

from train.integrity import DamagedError, damage, read_manifest
from train.run.folder import METRICS
from train.run.owner import Owner, checkpoint_folder, owner

METADATA = ".metadata"
PREFIX = "step-"
_METHOD_STATE = "train_state.maxp."


class CheckpointError(ValueError):
    """No checkpoint can be used; the message is one line with the remedy."""


def check_flags(config: CheckpointManager.Config, *, measures: bool) -> None:
    """Refuse flags of torchtitan that ignore the multipliers n^-a or the initial weights W0.

    Args:
        measures: the run measures alignment, for which it needs W0.

    Raises:
        ValueError: one line that names the flag and the remedy.
    """
    if not config.enable:
        return
    if config.last_save_in_hf:
        raise ValueError(
            "--checkpoint.last_save_in_hf: torchtitan does not fold the multipliers into the "
            "weights; leave it out, then run python -m train.export RUN --to FOLDER"
        )
    if config.initial_load_in_hf:
        raise ValueError(
            "--checkpoint.initial_load_in_hf: torchtitan does not divide the weights by the "
            "multipliers; leave it out, or continue from a checkpoint of this trainer with "
            "--checkpoint.initial_load_path"
        )
    if "train_state" in config.exclude_from_loading:
        raise ValueError(
            "--checkpoint.exclude_from_loading train_state: the step and the learning rates of a "
            "run are in it; leave it out of the list"
        )
    if config.create_seed_checkpoint:
        raise ValueError(
            "--checkpoint.create_seed_checkpoint: each run draws its weights from --seed, on any "
            "number of processes; leave it out"
        )
    if config.initial_load_path is None:
        return
    flag = f"--checkpoint.initial_load_path {config.initial_load_path}"
    if measures:
        raise ValueError(
            f"{flag}: alignment is measured against the initial weights, which a run draws from "
            "its seed; leave it out, or choose a method that does not measure, without "
            "--maxp.measure"
        )
    if not config.initial_load_model_only:
        raise ValueError(
            f"{flag}: the step and the optimizer of that checkpoint belong to another run; pass "
            "--checkpoint.initial_load_model_only as well"
        )


def find_resumable(run: Path, config: CheckpointManager.Config) -> bool:
    """Whether a run has a checkpoint to resume from; checks the folder before anything is written.

    Raises:
        ValueError: one line: the folder cannot be used, or has no checkpoint of
            ``--checkpoint.load_step``; or a run without checkpoints would start from a
            ``--checkpoint.initial_load_path`` that has none.
        RunFolderError: ``run`` holds no run.
    """
    if not config.enable:
        return False
    flag = f"--checkpoint.folder {config.folder}"
    if "://" in config.folder:
        raise ValueError(f"{flag}: remote folders are not supported; pass a mounted one")
    folder = checkpoint_folder(run, config.folder)
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ValueError(f"{flag}: {there} is not a folder; choose another one")
    if not config.load_only and not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{flag}: {there} is not writable; choose another one")
    steps = _steps(folder)
    for step in steps:
        if not (folder / f"{PREFIX}{step}").is_dir():
            raise ValueError(f"{flag}: {folder / PREFIX}{step} is not a folder; move it away")
    if config.load_step != -1 and config.load_step not in steps:
        choices = ", ".join(map(str, sorted(steps)))
        remedy = f"choose one of {choices}" if steps else "there are none yet: leave the flag out"
        raise ValueError(
            f"--checkpoint.load_step {config.load_step}: no such checkpoint in {folder}; {remedy}"
        )
    _check_moved(run, config.folder, folder)
    resumes, start = bool(complete_steps(folder)), config.initial_load_path
    if start and not resumes and not (Path(start) / METADATA).is_file():
        raise ValueError(
            f"--checkpoint.initial_load_path {start}: no checkpoint there; pass a folder such as "
            f".../{PREFIX}500"
        )
    return resumes


def _check_moved(run: Path, base: str, folder: Path) -> None:
    """Refuse to start over a run whose checkpoints an earlier version wrote into ``base`` itself.

    Raises:
        ValueError: one line with the remedy.
    """
    before = complete_steps(run / base)
    begun = (run / METRICS).exists() and not folder.exists()
    if before and begun and folder != run / base:
        raise ValueError(
            f"--checkpoint.folder {base}: {PREFIX}{before[0]} in it does not say whose it is; if "
            f"it is this run's, move the {PREFIX}* folders to {folder}, otherwise create that "
            "folder to start over"
        )


def complete_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder`` that were written to the end, newest first."""
    return [step for step in _steps(folder) if (folder / f"{PREFIX}{step}" / METADATA).is_file()]


def _steps(folder: Path) -> list[int]:
    names = (path.name.removeprefix(PREFIX) for path in folder.glob(f"{PREFIX}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def find_checkpoint(
    run: Path, folder: str, model: Mapping[str, Any], step: int | None = None
) -> Path:
    """The newest checkpoint of ``run`` that `fault` accepts, or the checkpoint of ``step``.

    Args:
        folder: ``--checkpoint.folder`` of the run.

    Raises:
        ValueError: one line: no checkpoint can be used, or that of ``step`` cannot.
        RunFolderError: ``run`` holds no run.
    """
    there, mine = checkpoint_folder(run, folder), owner(run)
    _check_moved(run, folder, there)
    inside = there.relative_to(run) if there.is_relative_to(run) else there
    reasons: dict[int, str] = {}
    for number in _steps(there):
        path = there / f"{PREFIX}{number}"
        if step not in (None, number):
            continue
        other = foreign(path, mine)
        reason = f"it belongs to the run {other}" if other else fault(path, model, model_only=True)
        if reason is None:
            for newer, why in reasons.items():
                logger.warning("skipped %s%d: %s", PREFIX, newer, why)
            return path
        reasons[number] = reason
    if not _steps(there):
        raise ValueError(f"RUN {run}: no checkpoint in {inside}/; train with --checkpoint.enable")
    if step is not None:
        others = ", ".join(str(n) for n in reversed(complete_steps(there)) if n != step)
        raise ValueError(
            f"--step {step}: {reasons.get(step, 'there is no such checkpoint')}; choose one of "
            f"{others}"
        )
    listed = "; ".join(f"{PREFIX}{number}: {reason}" for number, reason in reasons.items())
    raise ValueError(
        f"RUN {run}: no checkpoint in {inside}/ can be used ({listed}); restore one, or use the "
        "code and scale that trained it"
    )


def foreign(folder: Path, mine: Owner) -> Owner | None:
    """The other run that a checkpoint belongs to; None if it is ``mine`` or does not say."""
    try:
        manifest = read_manifest(folder)
    except DamagedError:
        return None  # `fault` refuses it
    return manifest.owner if manifest and manifest.owner.identity != mine.identity else None


def fault(folder: Path, model: Mapping[str, Any], *, model_only: bool = False) -> str | None:
    """Why a checkpoint cannot be loaded into a model; None if no reason is found.

    Compares the files with the checksums of the manifest. Earlier versions wrote none; for their
    checkpoints only the list of contents and the sizes of the files are read.

    Args:
        folder: one checkpoint of `torch.distributed.checkpoint`.
        model: the model's state dict: names and whole shapes.
        model_only: accept a checkpoint without the state of a maxP run.
    """
    if not (folder / METADATA).is_file():
        return f"it was not written to the end (no {METADATA})"
    try:
        manifest = read_manifest(folder)
    except DamagedError as error:
        return str(error)
    if manifest is not None and (reason := damage(folder, manifest)):
        return reason
    try:
        metadata: Metadata = pickle.loads((folder / METADATA).read_bytes())
        contents, stored = metadata.state_dict_metadata, metadata.storage_data
    except Exception as error:  # pickle raises nearly anything
        return f"its {METADATA} cannot be read ({type(error).__name__})"
    ends: dict[str, int] = {}
    for place in (stored or {}).values():
        end = place.offset + place.length
        ends[place.relative_path] = max(end, ends.get(place.relative_path, 0))
    for name, end in sorted(ends.items()):
        file = folder / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size < end:
            return f"{name} is truncated ({file.stat().st_size} of {end} bytes)"
    for name, tensor in model.items():
        if name not in contents:
            return f"it is of another model: {name} is not in it"
        shape = getattr(contents[name], "size", None)
        if isinstance(tensor, torch.Tensor) and shape != tensor.shape:
            size = "x".join(map(str, shape or ()))
            return f"it is of another model: {name} is {size}, not {_shape(tensor)}"
    if not model_only and not any(name.startswith(_METHOD_STATE) for name in contents):
        return "it is not of a maxP run: it holds no learning rates and no alignment"
    return None


def _shape(tensor: torch.Tensor) -> str:
    return "x".join(map(str, tensor.shape))
