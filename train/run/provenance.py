"""Versions of the packages, commit of the code, and hardware that a run was made with."""

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

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


def hardware() -> dict[str, Any]:
    """The devices that the run of this process is on; no part of the run's identity.

    Returns:
        type, such as "cuda" or "cpu"; device, its name; world_size, the number of processes; and
        host, the name of this one's machine.
    """
    kind, name = _accelerator() or ("cpu", _cpu())
    size = _number_in("WORLD_SIZE", 1)
    return {"type": kind, "device": name, "world_size": size, "host": socket.gethostname()}


def _accelerator() -> tuple[str, str] | None:
    """Type and name of this process's accelerator; None without one."""
    torch = sys.modules.get("torch")  # slow to import; a process that trains has imported it
    device = torch and torch.accelerator.current_accelerator(check_available=True)
    if torch is None or device is None:
        return None
    module = torch.get_device_module(device)
    return device.type, module.get_device_name(_number_in("LOCAL_RANK", 0))


def _number_in(variable: str, default: int) -> int:
    text = os.environ.get(variable, "")
    return int(text) if text.isdecimal() else default


def _cpu() -> str:
    """Name of the processor and its cores, e.g. "AMD EPYC 7B13, 2 cores"."""
    try:
        names = re.findall(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        names = []
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"
