"""``python -m train --scale debug --method maxP --lr 1e-2`` trains one model.

Exit status: 0 completed or diverged (both count as results), 2 bad input, 75 stopped by SIGUSR2,
SIGTERM or SIGHUP, 130 by SIGINT (Ctrl-C), 1 anything else. The same command resumes the run.
"""

import contextlib
import logging
import os
import sys
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn

import torch.distributed as dist
from filelock import FileLock, Timeout
from torchtitan.tools.logging import init_logger, logger

from train.checkpoint import SaveError
from train.checkpoint_files import CheckpointError, find_resumable
from train.cli import parse, record, wants_check
from train.data.loader import DataError
from train.faults import (
    limit_new_groups,
    lost_contact,
    meeting_within,
    port_taken,
    quiet_threads,
    single_process_environment,
    unwritable,
)
from train.metrics import DivergedError
from train.preemption import PreemptedError
from train.preview import preview
from train.run.exit_status import BAD_INPUT, INTERRUPTED, PREEMPTED
from train.run.folder import FINISHED, RunFolder, RunFolderError, State, load_run
from train.run.hparams import write_hparams
from train.run.summary import write_summary
from train.trainer import MaxPTrainer


def main() -> int:
    init_logger()
    # Libraries that report every request or file at INFO.
    for name in ("httpx", "filelock", "datasets", "fsspec"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        config = parse()
        if wants_check():
            if _is_first():
                print(preview(config))
            return 0
        folder = RunFolder(config.dump_folder)
        # On every rank, so that all ranks refuse a folder together: a rank that continued alone
        # would wait for the others.
        folder.claim(record(config))
        hold = _lock(folder) if _is_first() else contextlib.nullcontext()
    except (ValueError, RunFolderError) as error:
        return _refuse(error)
    try:
        return _resume(config, folder, hold)
    except OSError as error:
        if (reason := unwritable(error, folder.path)) is None:
            raise
        print(f"error: {reason}", file=sys.stderr)
        return 1


def _resume(
    config: MaxPTrainer.Config, folder: RunFolder, hold: AbstractContextManager[Any]
) -> int:
    """Run a claimed folder's run, unless it has its result already."""
    with hold:
        if load_run(folder.path, metrics=False).status.get("state") in FINISHED:
            if _is_first():
                print(f"{folder.path}: already {folder.describe()}; nothing to do")
            return 0
        try:
            resumes = find_resumable(folder.path, config.checkpoint)
        except (ValueError, RunFolderError) as error:
            if _is_first():
                folder.set_status("failed", reason=str(error))
            return _refuse(error)
        if _is_first() and not resumes:
            folder.metrics().archive()  # of an earlier attempt that left no checkpoint
        return _run(config, folder)


def _lock(folder: RunFolder) -> AbstractContextManager[Any]:
    """Lock a claimed folder against other processes until this one ends.

    Raises:
        RunFolderError: another process holds the lock.
    """
    try:
        return FileLock(folder.path / ".lock").acquire(timeout=0)
    except Timeout:
        raise RunFolderError(
            f"--output-dir {folder.path}: another process is running this run; wait for it, or "
            "choose another --output-dir"
        ) from None
    except (OSError, NotImplementedError) as error:
        logger.warning(
            "%s cannot be locked (%s): do not start the same run twice at once", folder.path, error
        )
        return contextlib.nullcontext()


def _run(config: MaxPTrainer.Config, folder: RunFolder) -> int:
    single_process_environment()
    quiet_threads()
    first = _is_first()
    lost: str | None = None
    status: Any = partial(_set_status, folder) if first else lambda *args, **kwargs: None
    trainer: MaxPTrainer | None = None
    if first:
        folder.set_status("running")
    try:
        with _meeting(config, folder):
            trainer = config.build()
        trainer.train()
        remarks = trainer.remarks()
        if first:
            folder.set_status("completed", step=trainer.step, reason=remarks)
    except DivergedError as error:
        if first:
            folder.metrics().append({"step": error.step, "loss": None})
            folder.set_status("diverged", step=error.step)
        logger.warning("%s", error)
    except PreemptedError as error:
        status("preempted", step=error.step)
        logger.warning("%s", error)
        return INTERRUPTED if error.by_hand else PREEMPTED
    except SaveError as error:
        status("failed", step=trainer.step if trainer else None, reason=str(error))
        _refuse(error)
        return 1
    except ValueError as error:
        status("failed", reason=str(error))
        if trainer is not None and not isinstance(error, (DataError, CheckpointError)):
            raise  # an error in training, not in its input
        return _refuse(error)
    except KeyboardInterrupt:
        status("failed", reason="interrupted")
        return INTERRUPTED
    except BaseException as error:
        if taken := port_taken(error):
            status("failed", reason=taken)
            return _refuse(ValueError(taken))
        if full := unwritable(error, folder.path):
            if trainer is not None:
                with contextlib.suppress(SaveError):  # deletes a checkpoint that is not complete
                    trainer.checkpointer.maybe_wait_for_saving()
            _fail(folder, full)
            print(f"error: {full}", file=sys.stderr)
            return 1
        lost = lost_contact(error)
        if lost is None:
            _fail(folder, f"{type(error).__name__}: {error}".splitlines()[0])
            raise
        logger.error("rank %s stopped", os.environ["RANK"], exc_info=True)
        _tell_lost(folder, lost)
        return 1
    finally:
        # Where another process is gone, both could wait for it.
        if lost is None:
            with contextlib.suppress(Exception):
                if trainer is not None:
                    trainer.close()
                if dist.is_initialized():
                    dist.destroy_process_group()
    if first and trainer is not None:
        weights = [weight for part in trainer.model_parts for weight in part.parameters()]
        try:
            summary = write_summary(folder.path, parameters=sum(w.numel() for w in weights))
            write_hparams(folder.path, summary)
        except Exception as error:  # the result itself is in the metrics already
            logger.warning("%s: no summary or no HParams entry (%s)", folder.path, error)
    return 0


def _meeting(config: MaxPTrainer.Config, folder: RunFolder) -> AbstractContextManager[None]:
    """Limit how long several processes may take to connect."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return contextlib.nullcontext()

    def late(reason: str) -> None:
        _tell_lost(folder, reason)
        _leave_at_once(1)

    limit_new_groups(config.comm.init_timeout_seconds)
    return meeting_within(config.comm.init_timeout_seconds, late)


def _fail(folder: RunFolder, reason: str) -> None:
    """Write to the folder why the run failed; any rank may, since the first may be gone."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        reason = f"rank {os.environ['RANK']}: {reason}"
    _set_status(folder, "failed", reason=reason)


def _set_status(folder: RunFolder, state: State, **details: Any) -> None:
    """Write the status of a run without a result, if the disk allows it."""
    try:
        folder.set_status(state, **details)
    except OSError as error:
        logger.error("%s: status %s cannot be written (%s)", folder.path, state, error.strerror)


def _tell_lost(folder: RunFolder, reason: str) -> None:
    """Report that contact was lost, unless a rank that has ended wrote its own status."""
    state = load_run(folder.path, metrics=False).status.get("state")
    if state not in ("failed", "preempted", *FINISHED):
        _fail(folder, reason)
    print(f"error: rank {os.environ['RANK']}: {reason}", file=sys.stderr)


def _refuse(error: Exception) -> int:
    if _is_first():
        print(f"error: {error}", file=sys.stderr)
    return BAD_INPUT


def _is_first() -> bool:
    rank = os.environ.get("RANK", "0")
    return not rank.isdecimal() or int(rank) == 0


def _leave_at_once(status: int) -> NoReturn:
    """Exit without torch's own shutdown, which would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    try:
        code = main()
    except KeyboardInterrupt:  # before the run began
        code = INTERRUPTED
    if dist.is_initialized():  # not shut down, since another process is gone
        _leave_at_once(code)
    sys.exit(code)
