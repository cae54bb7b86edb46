"""Which package may import which: the contracts in pyproject.toml, and what a process loads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_the_import_contracts_hold() -> None:
    # In a process of its own: import-linter silences the loggers that exist.
    code = "from importlinter.cli import lint_imports as lint; exit(lint(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded(module: str) -> set[str]:
    """The names of all modules that a fresh process has loaded after importing one."""
    code = f"import {module}, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_training_loads_neither_plots_nor_results() -> None:
    assert loaded("train.__main__").isdisjoint({"matplotlib", "train.results"})


@pytest.mark.parametrize("module", ["train.table", "train.results.report", "train.run.summary"])
def test_reading_results_does_not_load_torch(module: str) -> None:
    assert loaded(module).isdisjoint({"torch", "torchtitan"})


def test_the_names_of_metrics_and_formats_load_no_pandas() -> None:
    assert "pandas" not in loaded("train.results.names")
