"""torchtitan's checkpoints, checked before they are loaded.

A checkpoint that is damaged or of another model is refused with a reason, and renamed; the run
resumes from the checkpoint before it. If no checkpoint of a run can be used, the run ends with an
error: it does not silently start over. A checkpoint of another run ends the run with an error.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torchtitan.components.checkpointer import CheckpointManager
from torchtitan.tools.logging import logger

from train.checkpoint_files import METADATA, CheckpointError, complete_steps, fault, foreign
from train.integrity import MANIFEST, write_manifest
from train.run.owner import checkpoint_folder, owner

# What torch's zip writer says where the disk is full, or a file may not grow; the OSError is lost.
_CUT_SHORT = "unexpected pos"


class SaveError(Exception):
    """A checkpoint could not be written; the message is one line with the file and the remedy."""


class CheckedCheckpointManager(CheckpointManager):
    """Loads the newest checkpoint that is whole and of this run.

    The first rank checks, and all ranks load what it chose. Every checkpoint gets a manifest
    (`train.integrity`).

    Raises:
        CheckpointError: from `load`, on every rank: checkpoints exist but none can be used, the
            checkpoint of ``--checkpoint.load_step`` cannot be used, or a checkpoint is of another
            run.
        SaveError: from `save` and `maybe_wait_for_saving`: a checkpoint could not be written.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(CheckpointManager.Config):
        pass

    save_future: Future[Any] | None

    def __init__(self, config: Config, *, base_folder: str = "", **parts: Any) -> None:
        super().__init__(config, base_folder=base_folder, **parts)
        if self.enable:
            run = Path(base_folder)
            self.folder = str(checkpoint_folder(run, config.folder))
            self._owner = owner(run)
            self._saving: Path | None = None

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
        if not self._should_save(curr_step, last_step):
            return False
        self.maybe_wait_for_saving()
        folder = self._saving = Path(self._create_checkpoint_id(curr_step))
        first = dist.get_rank() == 0
        try:
            if first:
                # An older checkpoint of this step loses its metadata first, so that a partly
                # overwritten one never looks complete.
                (folder / METADATA).unlink(missing_ok=True)
                (folder / MANIFEST).unlink(missing_ok=True)
            super()._save(curr_step, last_step)
            if first:
                seal = partial(write_manifest, folder, self._owner)
                if self.save_future is None:
                    seal()
                else:
                    self.save_future = _after(self.save_future, seal)
        except (CheckpointException, OSError) as error:
            raise self._not_saved(folder, error) from error
        return True

    def _wait_for_saving(self) -> None:
        assert self._saving is not None
        try:
            super()._wait_for_saving()
        except (CheckpointException, OSError) as error:
            self.save_future = None
            raise self._not_saved(self._saving, error) from error

    def _not_saved(self, folder: Path, error: BaseException) -> SaveError:
        """The error for a checkpoint that could not be written; deletes what was written of it.

        No rank writes any more: either all ranks failed together, or all had finished.
        """
        cause = _first_cause(error)
        file = getattr(cause, "filename", None) or folder
        reason = getattr(cause, "strerror", None) or f"{type(cause).__name__}: {cause}"
        if _CUT_SHORT in reason:
            reason = "a write was cut short, as on a full disk"
        if dist.get_rank() == 0 and not (folder / METADATA).exists():
            shutil.rmtree(folder, ignore_errors=True)  # frees space for the run's status
        return SaveError(
            f"{file} cannot be written ({reason.splitlines()[0]}); make room, or make it "
            "writable, then run the same command again: it resumes from the last checkpoint"
        )

    def _choose(self, step: int, refused: list[str]) -> int | None:
        """The step to load; None where this run has no checkpoint to load.

        Appends to ``refused`` the checkpoints that it refused, with reasons.
        """
        choice: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                choice = [(self._look(step, refused), refused, None)]
            except CheckpointError as error:
                choice = [(None, refused, str(error))]
        dist.broadcast_object_list(choice, src=0)
        chosen, refused[:], message = choice[0]
        if message is not None:
            raise CheckpointError(message)
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
            if other := foreign(folder, self._owner):
                raise CheckpointError(
                    f"--checkpoint.folder {self.folder}: {folder.name} belongs to the run {other}, "
                    f"not to this run, {self._owner}; move it away, or choose another "
                    "--output-dir or --checkpoint.folder"
                )
            reason = fault(folder, model, model_only=candidate == 0)
            if reason is None:
                return candidate
            if step != -1:
                refused.append(f"{folder.name}: {reason}")
                return None
            self._put_aside(candidate, reason, refused)
        if self.initial_load_path and not refused:
            reason = fault(Path(self.initial_load_path), model, model_only=True)
            if reason is not None:
                raise CheckpointError(
                    f"--checkpoint.initial_load_path {self.initial_load_path}: {reason}; choose "
                    "another checkpoint"
                )
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


def _first_failure(error: CheckpointException) -> str:
    """The first error of a `torch.distributed.checkpoint` exception, as one line."""
    first = _first_cause(error)
    return f"{type(first).__name__}: {first}".splitlines()[0]


def _first_cause(error: BaseException) -> BaseException:
    """The error of the first rank that failed."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def _after(done: Future[Any], then: Callable[[], None]) -> Future[None]:
    """A future of ``then()``, which the thread that completes ``done`` calls."""
    both: Future[None] = Future()

    def call(_: Future[Any]) -> None:
        try:
            done.result()
            then()
        except BaseException as error:
            both.set_exception(error)
        else:
            both.set_result(None)

    done.add_done_callback(call)
    return both
