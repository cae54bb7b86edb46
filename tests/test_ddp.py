"""Data parallelism: ranks with other seeds and batches keep the same weights and exponents."""

import json
from functools import cache
from typing import Any

import pytest

from scripts.torture.ranks import run_ranks


@cache
def rows(wrapped: str, seed: str = "none") -> list[dict[str, Any]]:
    done = run_ranks("ddp_worker", wrapped, seed)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("wrapped", ["before", "after"])
def test_ranks_have_the_same_weights_and_exponents(wrapped: str) -> None:
    first, second = rows(wrapped)
    assert first == second
    assert first["start"] != first["end"]
    assert first["c"]["blocks.0.qkv"] not in (0.5, 1.0)  # measured


def test_the_initial_weights_do_not_depend_on_when_the_model_is_wrapped() -> None:
    before, after = rows("before", "0")[0], rows("after", "0")[0]
    assert before == after
    assert before["names"][0] == "position"
