"""A small sweep, and a Slurm that says what a test wants it to say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slurm.ledger import JobRecord
from slurm.resources import Resources
from slurm.sweep import RunSpec


def spec(name: str, **changes: Any) -> RunSpec:
    fields: dict[str, Any] = {
        "identity": f"identity of {name}",
        "scale": "debug",
        "method": "maxP",
        "lr": 0.01,
        "seed": 1,
        "steps": 24,
        "arguments": ("--scale", "debug", "--lr", "0.01"),
        "resources": Resources(time="01:00:00"),
    }
    return RunSpec(name=name, **{**fields, **changes})


def job(**changes: Any) -> JobRecord:
    fields: dict[str, Any] = {
        "identity": "i",
        "kind": "slurm",
        "token": "t1",
        "cluster": "c",
        "submitted": "2026-01-01T00:00:00+00:00",
        "commit": None,
        "code": "somewhere",
        "job_id": "7_0",
    }
    return JobRecord(**{**fields, **changes})


def command(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a shell script of this name first on the PATH."""
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
