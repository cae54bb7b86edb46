"""Meshes on the command line: degrees that do not divide are refused by one line from one rank."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness import tiny

from train import __main__ as program
from train.cli import parse

pytestmark = pytest.mark.usefixtures("corpus_cache")


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (3, "data_parallel_replicate_degree 2", "--parallelism.data_parallel_replicate_degree 2, "),
        (4, "data_parallel_shard_degree 3", "--parallelism.data_parallel_shard_degree 3, "),
        (
            4,
            "data_parallel_shard_degree 2",
            "and their product the number of processes of this run, 4;",
        ),
        (
            2,
            "tensor_parallel_degree 4",
            "--parallelism.tensor_parallel_degree 4: each must be at least 1",
        ),
        (
            2,
            "tensor_parallel_degree 0",
            "--parallelism.tensor_parallel_degree 0: each must be at least 1",
        ),
        (
            4,
            "tensor_parallel_degree 4",
            "--scale debug with these flags: tensor_parallel_degree (4) must divide n_kv_heads (2)",
        ),
        (
            8,
            "tensor_parallel_degree 8",
            "--scale debug with these flags: tensor_parallel_degree (8) must divide n_heads (4)",
        ),
        (2, "expert_parallel_degree 2", "--parallelism.expert_parallel_degree 2: not supported"),
    ],
)
def test_a_mesh_that_does_not_divide_ends_every_rank_with_a_line_from_the_first(
    processes: int,
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--training.local_batch_size", "1", *f"--parallelism.{flags}".split())
    monkeypatch.setattr(sys, "argv", ["train", *tiny(tmp_path / "run", "maxP", *more)])
    monkeypatch.setattr(program, "init_logger", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    capsys.readouterr()
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        assert program.main() == 2
        printed = capsys.readouterr().err
        if rank:
            assert printed == ""
        else:
            assert message in printed
            assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("degree", ["1", "2"])
def test_a_mesh_that_divides_is_taken(degree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    flags = f"data_parallel_replicate_degree=2 --parallelism.tensor_parallel_degree={degree}"
    mesh = f"--training.local_batch_size=1 --parallelism.{flags}".split()
    config = parse(["--scale", "debug", *mesh])
    assert config.parallelism.data_parallel_replicate_degree == 2
