"""Versions of the packages, and commit of the code, that a run was made with."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("maxp", "torch", "torchtitan", "pulp", "highspy")

COMMIT = ".git_commit"
"""File in a copy of the code that is not a git checkout: the commit that was copied."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    numbers = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            numbers[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            numbers[package] = "not installed"
    return numbers


def git_commit() -> str | None:
    """Commit of the checkout of this code, with "+dirty" if tracked files are modified.

    None without git, without a commit, or if the code is not in a checkout of its own.
    """
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(root), *words]
        return subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=30
        ).stdout.strip()

    try:
        if (root / COMMIT).is_file():
            return (root / COMMIT).read_text().strip() or None
        # An installed copy may be inside another repository, whose commit is not ours.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
