"""The folder of prepared data, and how concurrent processes prepare it only once."""

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """Data that cannot be used: one line that names the flag or folder, and the remedy."""


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its message, to quote in a `DataError`."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def cache_root() -> Path:
    """``$MAXP_CACHE``, else ``$XDG_CACHE_HOME/maxp``, else ``~/.cache/maxp``; it may not exist."""
    if own := os.environ.get("MAXP_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared).expanduser() / "maxp"
    return Path.home() / ".cache" / "maxp"


def build_once(folder: Path, build: Callable[[Path], None]) -> None:
    """Make ``folder`` by calling ``build``, unless it exists; it appears whole or not at all.

    ``build`` fills an empty folder next to the final one, which is renamed when it returns. One of
    several concurrent processes calls it; the others wait on a lock file.

    Raises:
        DataError: the parent of ``folder`` cannot be written.
    """
    if folder.is_dir():
        return
    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _acquire(lock, folder)
    except OSError as error:
        raise DataError(
            f"cannot write the data cache {folder.parent} ({error.strerror}): "
            "set MAXP_CACHE to a writable folder"
        ) from error
    try:
        if folder.is_dir():
            return
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        partial.mkdir()
        try:
            build(partial)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        lock.release()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process to prepare %s", folder)
        lock.acquire()
