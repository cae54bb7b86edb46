"""The folder of prepared data, and how concurrent processes prepare it only once."""

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)

T = TypeVar("T")


class DataError(ValueError):
    """Data that cannot be used: one line that names the flag or folder, and the remedy."""


class DamagedError(DataError):
    """Prepared data that is missing, truncated or corrupt.

    Args:
        damage: the folder or file, and what is wrong with it.
    """

    def __init__(self, damage: str) -> None:
        super().__init__(f"{damage}: delete it, it is rebuilt on the next start")
        self.damage = damage


def one_line(error: Exception) -> str:
    """The type of an error and the first line of its message, to quote in a `DataError`."""
    return f"{type(error).__name__}: {error}".splitlines()[0].removesuffix(": ")


def guarded(rows: Iterable[T], what: str) -> Iterator[T]:
    """``rows``, whose reader's errors become a `DataError` that says ``what`` was read."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the hub's client and each reader raise their own types
            raise DataError(
                f"reading {what} failed ({one_line(error)}): run the same command again to continue"
            ) from error
        yield row


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
        except OSError as error:
            raise DataError(
                f"cannot write the data cache {error.filename or folder} ({error.strerror}): make "
                "room, or set MAXP_CACHE to a writable folder"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        lock.release()


def open_cached(folder: Path, build: Callable[[Path], None], open_: Callable[[], T]) -> T:
    """What ``open_`` returns for a folder that `build_once` made; a damaged folder is made again.

    Raises:
        DataError: the cache cannot be written, or, with several processes, the folder is damaged.
            It is then deleted, because the other processes may have opened it.
    """
    build_once(folder, build)
    try:
        return open_()
    except DamagedError as error:
        damage = error.damage
    try:
        with FileLock(f"{folder}.lock"):
            try:
                return open_()  # another process may have made it again
            except DamagedError:
                if folder.exists():  # else another process deleted it
                    shutil.rmtree(folder)
    except OSError as error:
        raise DataError(
            f"{damage}, and {folder} cannot be deleted ({error.strerror}): "
            "set MAXP_CACHE to a writable folder"
        ) from error
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise DataError(
            f"{damage}; {folder} is deleted: run the same command again, which rebuilds it"
        )
    logger.warning("%s: it is deleted and prepared again", damage)
    build_once(folder, build)
    return open_()


def _acquire(lock: FileLock, folder: Path) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process to prepare %s", folder)
        lock.acquire()
