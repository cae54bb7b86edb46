"""Tiny runs, and how two of them are compared bit for bit."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed.checkpoint as dcp

from scripts.torture.ranks import ROOT, Ranks
from train.checkpoint_files import METADATA, PREFIX, complete_steps
from train.run.folder import load_run
from train.run.tail import latest

STEPS = 40
LIMIT = 400.0
"""Seconds after which a run that does not end counts as hanging."""

_FLAGS = {
    "scale": "cpu64",
    "method": "maxP",
    "lr": 1e-1,
    "steps": STEPS,
    "training.seq_len": 32,
    "training.global_batch_size": 4,
    "lr_scheduler.warmup_steps": 5,
    "validator.sequences": 8,
    "validator.freq": 12,
    "maxp.measure_from": 1,
    "maxp.solve_interval": 3,
    "maxp.probe_tokens": 32,
    "checkpoint.interval": 4,
    "comm.init_timeout_seconds": 120,
    "comm.train_timeout_seconds": 120,
}
# Of the machine, not of the run.
_NOT_COMPARED = ("tokens_per_second", "mfu", "step_seconds", "memory_gib")


@dataclass
class Tiny:
    """A run of about two seconds.

    Attributes:
        folder: the run's folder.
        processes: 1 or 2.
        mode: "disabled" or "async", how it saves checkpoints.
        more: flags that replace those of the same name.
    """

    folder: Path
    processes: int = 1
    mode: str = "disabled"
    more: tuple[str, ...] = ()

    @property
    def arguments(self) -> list[str]:
        flags = {
            **_FLAGS,
            "training.local_batch_size": 4 // self.processes,
            "checkpoint.async_mode": self.mode,
            "output-dir": self.folder,
        }
        words = [(f"--{name}", str(value)) for name, value in flags.items()]
        return [*(word for pair in words for word in pair), "--checkpoint.enable", *self.more]

    def start(self) -> Ranks:
        return Ranks("train.__main__", *self.arguments, processes=self.processes)

    def start_torchrun(self, log: Path) -> psutil.Popen:
        command = ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={self.processes}", "-m", "train", *self.arguments]
        with log.open("wb") as output:
            return psutil.Popen(
                [sys.executable, *command], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def status(self) -> dict[str, Any]:
        return load_run(self.folder, metrics=False).status if self.begun else {}

    @property
    def begun(self) -> bool:
        return (self.folder / "config.json").exists()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoint"

    @property
    def saved(self) -> list[int]:
        """Steps of the complete checkpoints, newest first."""
        return complete_steps(self.checkpoints)

    @property
    def step(self) -> int:
        """The last step logged; 0 before the first."""
        return latest(self.folder / "metrics.jsonl").step or 0

    def inode(self) -> int:
        """Of metrics.jsonl, which a start replaces; 0 without one."""
        file = self.folder / "metrics.jsonl"
        return file.stat().st_ino if file.exists() else 0


def difference(run: Tiny, whole: Tiny) -> str | None:
    """The first difference of a run from an uninterrupted one; None if they are equal."""
    state = run.status.get("state")
    if state != "completed":
        return f"its state is {state}"
    ours, theirs = _records(run), _records(whole)
    for our, their in zip(ours, theirs, strict=False):
        if our != their:
            keys = [key for key in their if our.get(key) != their[key]]
            return f"metrics.jsonl differs at step {their.get('step')} in {', '.join(keys)}"
    if len(ours) != len(theirs):
        return f"metrics.jsonl has {len(ours)} records, not {len(theirs)}"
    our_state, their_state = _state(run), _state(whole)
    if our_state.keys() != their_state.keys():
        return "the last checkpoint has other contents"
    for name, value in their_state.items():
        if not _equal(our_state[name], value):
            return f"{name} of the last checkpoint differs"
    return None


def _records(run: Tiny) -> list[dict[str, Any]]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k not in _NOT_COMPARED} for r in records]


def _state(run: Tiny) -> dict[str, Any]:
    """The weights and the optimizer's state in the checkpoint of the last step."""
    folder = run.checkpoints / f"{PREFIX}{STEPS}"
    contents = pickle.loads((folder / METADATA).read_bytes()).state_dict_metadata
    state = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in contents.items()
        if hasattr(item, "size")
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this process is not one of several
        dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8) if a.dim() else a, b.view(torch.uint8) if b.dim() else b)


@contextmanager
def disk(path: Path) -> Iterator[bool]:
    """A folder on a disk of its own; False where mounting is not allowed, and on the usual disk."""
    path.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256m", "tmpfs", str(path)]
    own = shutil.which("mount") is not None and os.geteuid() == 0
    own = own and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield own
    finally:
        if own:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
