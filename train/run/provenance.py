"""With what a run was made: versions of packages, and the code's commit."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path

_PACKAGES = ("maxp", "torch", "torchtitan", "pulp", "highspy")

COMMIT = ".git_commit"
"""Beside the packages in a copy of the code that is no checkout: the commit it was made from."""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_commit() -> str | None:
    """Commit of the checkout this file is in, "+dirty" when tracked files are modified.

    None without git, without a commit, or where this file lies in no checkout of its own.
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
        # An installed copy may lie inside somebody's repository: that commit says nothing of it.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != root:
            return None
        commit = git("rev-parse", "--verify", "HEAD")
        return commit + ("+dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None
