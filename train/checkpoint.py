"""torchtitan's checkpoints, checked before they are loaded.

A checkpoint that is truncated or of another model is refused with a reason, and renamed; the run
resumes from the checkpoint before it. If no checkpoint of a run can be used, the run ends with an
error: it does not silently start over.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools.logging import logger

METADATA = ".metadata"
_PREFIX = "step-"
_METHOD_STATE = "train_state.maxp."


class CheckpointError(ValueError):
    """No checkpoint can be used; the message is one line with the remedy."""


class CheckedCheckpointManager(CheckpointManager):
    """Loads the newest checkpoint that is whole and of this model.

    The first rank checks, and all ranks load what it chose.

    Raises:
        CheckpointError: from `load`, on every rank: checkpoints exist but none can be used, or the
            checkpoint of ``--checkpoint.load_step`` cannot be used.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        pass

    def _load(self, step: int = -1) -> bool:
        refused: list[str] = []
        while True:
            chosen = self._choose(step, refused)
            if chosen is None:
                return bool(super()._load(step))  # torchtitan's own cases: no checkpoint, or a path
            try:
                return bool(super()._load(chosen))
            except CheckpointException as error:  # on every rank
                reason = _first_failure(error)
                if step != -1:
                    raise CheckpointError(
                        f"--checkpoint.load_step {step} cannot be used ({reason}); leave the flag "
                        "out to resume from another checkpoint"
                    ) from error
                if dist.get_rank() == 0:
                    self._put_aside(chosen, reason, refused)

    def _save(self, curr_step: int, last_step: bool = False) -> bool:
        # An older checkpoint of this step loses its metadata first, so that a partly overwritten
        # one never looks complete.
        if dist.get_rank() == 0 and self._should_save(curr_step, last_step):
            (Path(self._create_checkpoint_id(curr_step)) / METADATA).unlink(missing_ok=True)
        return bool(super()._save(curr_step, last_step))

    def _choose(self, step: int, refused: list[str]) -> int | None:
        """The step to load; None where this run has no checkpoint to load.

        Appends to ``refused`` the checkpoints that it refused, with reasons.
        """
        choice: list[Any] = [None]
        if dist.get_rank() == 0:
            choice = [(self._look(step, refused), refused)]
        dist.broadcast_object_list(choice, src=0)
        chosen, refused[:] = choice[0]
        if chosen is None and refused:
            raise CheckpointError(
                f"--checkpoint.folder {self.folder}: no checkpoint can be used "
                f"({'; '.join(refused)}); restore one, or start over in another --output-dir"
            )
        return chosen

    def _look(self, step: int, refused: list[str]) -> int | None:
        model = self.states["model"].state_dict()
        for candidate in [step] if step != -1 else complete_steps(Path(self.folder)):
            folder = Path(self._create_checkpoint_id(candidate))
            if not folder.is_dir():
                return None
            reason = fault(folder, model, model_only=candidate == 0)
            if reason is None:
                return candidate
            if step != -1:
                refused.append(f"{folder.name}: {reason}")
                return None
            self._put_aside(candidate, reason, refused)
        return None

    def _put_aside(self, step: int, reason: str, refused: list[str]) -> None:
        """Rename a checkpoint, so that a later one of that step does not mix with its files."""
        folder = Path(self._create_checkpoint_id(step))
        aside = next(
            name
            for number in range(1, 10**6)
            if not (name := folder.with_name(f"refused-{step}-{number}")).exists()
        )
        folder.rename(aside)
        refused.append(f"{folder.name}: {reason}, kept as {aside.name}")
        logger.warning("checkpoint refused: %s", refused[-1])


def complete_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in ``folder`` that were written to the end, newest first."""
    return [step for step in _steps(folder) if (folder / f"{_PREFIX}{step}" / METADATA).is_file()]


def _steps(folder: Path) -> list[int]:
    names = (path.name.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def find_checkpoint(folder: Path, model: Mapping[str, Any], step: int | None = None) -> Path:
    """The newest checkpoint in ``folder`` that `fault` accepts, or the checkpoint of ``step``.

    Raises:
        ValueError: one line: no checkpoint can be used, or that of ``step`` cannot.
    """
    faults = {
        number: fault(folder / f"{_PREFIX}{number}", model, model_only=True)
        for number in _steps(folder)
    }
    usable = [number for number, reason in faults.items() if reason is None]
    if not faults:
        raise ValueError(
            f"RUN {folder.parent}: no checkpoint in {folder.name}/; train with --checkpoint.enable"
        )
    if not usable:
        reasons = (f"{_PREFIX}{number}: {reason}" for number, reason in faults.items())
        raise ValueError(
            f"RUN {folder.parent}: no checkpoint in {folder.name}/ can be used "
            f"({'; '.join(reasons)}); restore one, or use the code and scale that trained it"
        )
    if step is not None and step not in usable:
        raise ValueError(
            f"--step {step}: {faults.get(step, 'there is no such checkpoint')}; choose one of "
            f"{', '.join(map(str, sorted(usable)))}"
        )
    chosen = max(usable) if step is None else step
    for number, reason in faults.items():
        if number > chosen and step is None:
            logger.warning("skipped %s%d: %s", _PREFIX, number, reason)
    return folder / f"{_PREFIX}{chosen}"


def fault(folder: Path, model: Mapping[str, Any], *, model_only: bool = False) -> str | None:
    """Why a checkpoint cannot be loaded into a model; None if no reason is found.

    Reads the list of contents and the sizes of the files, but no tensor.

    Args:
        folder: one checkpoint of `torch.distributed.checkpoint`.
        model: the model's state dict: names and whole shapes.
        model_only: accept a checkpoint without the state of a maxP run.
    """
    if not (folder / METADATA).is_file():
        return f"it was not written to the end (no {METADATA})"
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


def _first_failure(error: CheckpointException) -> str:
    """The first error of a `torch.distributed.checkpoint` exception, as one line."""
    first = next(iter(error.failures.values()))[0] if error.failures else error
    return f"{type(first).__name__}: {first}".splitlines()[0]
