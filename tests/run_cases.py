"""A run's folder that was claimed, for tests of what is in one."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.run.folder import RunFolder

CONFIG = {"scale": "s1", "method": "maxP", "lr": 0.003, "seed": 0, "steps": 400}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.claim(CONFIG)
    return run


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir()}
