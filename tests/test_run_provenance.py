"""What a run was made with: versions of packages, hardware and the commit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from run_cases import CONFIG

from train.run import provenance
from train.run.folder import RunFolder
from train.run.provenance import git_commit, hardware, versions


def test_versions_name_python_and_the_packages_that_decide_the_numbers() -> None:
    import torch

    recorded = versions()
    assert list(recorded) == ["python", "maxp", "torch", "torchtitan", "pulp", "highspy"]
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    # A CUDA build on PyPI says its CUDA version to Python only.
    assert recorded["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_hardware_of_a_run_is_its_device_and_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    devices = SimpleNamespace(get_device_name=lambda index: f"GPU {index}")
    current = SimpleNamespace(current_accelerator=lambda check_available: SimpleNamespace(type="x"))
    torch = SimpleNamespace(accelerator=current, get_device_module=lambda device: devices)
    monkeypatch.setitem(sys.modules, "torch", torch)
    recorded = hardware()
    assert recorded.pop("host")
    assert recorded == {"type": "x", "device": "GPU 3", "world_size": 8}
    current.current_accelerator = lambda check_available: None
    monkeypatch.setenv("WORLD_SIZE", "x")  # refused elsewhere
    recorded = hardware()
    assert (recorded["type"], recorded["world_size"]) == ("cpu", 1)
    assert recorded["device"].endswith(" cores")


def test_a_run_resumes_on_other_hardware(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(CONFIG)
    file = run.path / "config.json"
    content = json.loads(file.read_text())
    content["hardware"] |= {"device": "another", "world_size": 64}
    file.write_text(json.dumps(content))
    assert run.claim(CONFIG) == "resumable"
    del content["hardware"]  # of an earlier version
    file.write_text(json.dumps(content))
    assert run.claim(CONFIG) == "resumable"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A checkout in tmp_path with one commit, which the module believes to lie in."""

    def run(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "train" / "run" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("first\n")
    run("init")
    run("add", ".")
    run("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return run


def test_git_commit_is_that_of_the_checkout(git: Callable[..., str]) -> None:
    assert git_commit() == git("rev-parse", "HEAD")


def test_git_commit_says_when_files_were_modified(tmp_path: Path, git: Callable[..., str]) -> None:
    (tmp_path / "train" / "run" / "provenance.py").write_text("second\n")
    assert git_commit() == git("rev-parse", "HEAD") + "+dirty"


def test_git_commit_is_none_for_a_copy_inside_another_repository(
    tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "site-packages" / "train" / "run" / "provenance.py"
    inner.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inner))
    assert git_commit() is None


def test_git_commit_is_none_without_git(
    git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
