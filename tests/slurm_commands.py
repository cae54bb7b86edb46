"""``python -m slurm`` with a stub for training: in this process, or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from slurm import __main__ as cli
from slurm import local, preflight
from slurm.ledger import SweepFolder

TESTS = Path(__file__).parent
STUB = TESTS / "slurm_stub.py"

SWEEP = """
scales = ["debug"]
methods = ["maxP", "mup-no"]
lrs = [0.01]
seeds = [1, 2]
steps = {steps}
"""
LOCAL = """
kind = "local"
max_parallel = {parallel}
"""

# What `in_process` patches, in a process of its own.
_DRIVER = f"""
import sys
sys.path.insert(0, {str(TESTS.parent)!r})
from slurm import __main__, local, preflight
preflight.check = lambda *_: None
local.training = lambda words, **_: [sys.executable, {str(STUB)!r}, *words]
sys.exit(__main__.main(sys.argv[1:]))
"""


@dataclass
class Case:
    """A sweep file ``s.toml``, a cluster file and a folder for runs.

    The sweep has four runs: two methods, two seeds.
    """

    root: Path
    steps: int = 3

    @property
    def sweep(self) -> Path:
        return self.root / "s.toml"

    @property
    def cluster(self) -> Path:
        return self.root / "here.toml"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def folder(self) -> SweepFolder:
        return SweepFolder(self.runs / "s")

    def write(self, *, steps: int = 3, parallel: int = 2, cluster: str = "") -> Case:
        self.sweep.write_text(SWEEP.format(steps=steps))
        self.cluster.write_text(LOCAL.format(parallel=parallel) + cluster)
        return self

    def submission(self, *more: str) -> list[str]:
        where = ["--cluster", str(self.cluster), "--runs-dir", str(self.runs)]
        return ["submit", str(self.sweep), *where, *more]

    def starts(self, name: str) -> list[dict[str, Any]]:
        """The starts of a run, as the stub wrote them down."""
        file = self.folder.run(name) / "starts"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def all_starts(self) -> dict[str, int]:
        return {run.name: len(self.starts(run.name)) for run in self.folder.runs()}

    def losses(self, name: str) -> list[tuple[int, float]]:
        lines = (self.folder.run(name) / "metrics.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return [(record["step"], record["loss"]) for record in records if "loss" in record]


NAMES = tuple(f"debug_{m}_lr1e-02_seed{s}" for s in (1, 2) for m in ("maxP", "mup-no"))


def patched(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], int]:
    """The command line in this process, with the stub for training."""

    def training(words: list[str], **_: Any) -> list[str]:
        return [sys.executable, str(STUB), *words]

    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(local, "training", training)
    return cli.main


def begin(arguments: list[str], *, stub: bool = True, **variables: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    start = ["-c", _DRIVER] if stub else ["-m", "slurm"]
    return subprocess.Popen(
        [sys.executable, *start, *arguments],
        cwd=TESTS.parent,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
