"""A copy of the code for a sweep's jobs, so that later edits do not change queued jobs."""

import hashlib
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from train.run.provenance import COMMIT

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("maxp", "train", "configs", "slurm")


@dataclass(frozen=True)
class Snapshot:
    """Attributes: folder, absolute; commit, with "+dirty" where tracked files were changed."""

    folder: Path
    commit: str | None


def take(into: Path, commit: str | None) -> Snapshot:
    """Copy the packages to a folder below ``into`` that is named by a hash of their content.

    The same code is copied once, completely or not at all.
    """
    files = sorted(
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    digest = hashlib.sha256(str(commit).encode())
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    folder = into.resolve() / digest.hexdigest()[:16]
    if not folder.is_dir():
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        try:
            for path in files:
                copy = temporary / path.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, copy)
            (temporary / COMMIT).write_text(f"{commit or ''}\n")
            _move(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return Snapshot(folder, commit)


def _move(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # otherwise another process has just made it
            raise


def environment(code: str) -> dict[str, str]:
    """This process's environment, with Python importing the packages from a snapshot."""
    return {**os.environ, **exports(code)}


def exports(code: str) -> dict[str, str]:
    """Variables that make Python import the packages from a snapshot, in any working folder."""
    paths = [code, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",  # not from the working directory, which may be the checkout
        "PYTHONUNBUFFERED": "1",
    }
