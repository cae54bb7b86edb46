"""A process that is gone, hangs or cannot be reached ends the others, within a time limit."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from harness import ROOT, Run, tiny
from torch.distributed import distributed_c10d
from waiting import ended, wait_until

from scripts.torture.ranks import Ranks
from train import __main__ as program
from train.faults import limit_collectives, limit_new_groups, lost_contact, port_taken
from train.run.folder import RunFolder, State, load_run

MEET = 4  # seconds that a process waits for another that does not come
# And for one that hangs: more than a collective takes on a busy machine.
LIMIT = 30
LIMITS = ("--comm.init_timeout_seconds", "600", "--comm.train_timeout_seconds", str(LIMIT))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def endless(folder: Path, *more: str) -> list[str]:
    """The command line of a run on two processes that only a fault ends."""
    flags = ("--training.local_batch_size", "2", "--steps", "100000")
    return tiny(folder, "maxP", *flags, *more)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Those that a test starts; whatever becomes of it, none outlives it."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def steps_made(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


# By hand: nobody ends the others but they themselves


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "victim", "said"),
    [
        (signal.SIGKILL, 1, "another process is gone"),
        pytest.param(signal.SIGKILL, 0, "another process is gone", marks=pytest.mark.exhaustive),
        (signal.SIGSTOP, 1, "another process hangs or is gone; the time limit of a collective"),
    ],
)
def test_a_lost_rank_ends_the_other_with_a_message_and_a_status(
    fault: signal.Signals,
    victim: int,
    said: str,
    corpus_cache: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    ranks = Ranks("train.__main__", *endless(folder, *LIMITS), port=free_port())
    wait_until("step 5", lambda: steps_made(folder) >= 5, ranks.ended)
    os.kill(ranks.processes[victim].pid or 0, fault)
    survivor = 1 - victim
    ranks.processes[survivor].join()
    assert ranks.processes[survivor].exitcode == 1
    ranks.processes[victim].kill()
    last = ranks.wait().stderr.splitlines()[-1]
    assert last.startswith(f"error: rank {survivor}: {said}")
    status = Run(folder).record.status
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"rank {survivor}: {said}")


@pytest.mark.slow
def test_a_port_in_use_ends_every_rank_with_a_line_from_the_first(
    corpus_cache: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = endless(folder, "--comm.init_timeout_seconds", str(MEET))
        ranks = Ranks("train.__main__", *arguments, port=port)
        done = ranks.wait()
    assert ranks.codes == [2, 1]
    line = f"MASTER_PORT {port} is in use on this machine: set another"
    said = f"error: rank 1: another process did not connect to 127.0.0.1:{port} within {MEET} s"
    first, second = (x for x in done.stderr.splitlines() if x.startswith("error: "))
    assert first.startswith(f"error: {line}")
    assert second.startswith(said)
    assert "Traceback" not in done.stderr
    status = Run(folder).record.status
    assert status["state"] == "failed"
    assert line in status["reason"]


# Under torchrun


def torchrun(port: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", port]
    return subprocess.Popen(
        [*command, "-m", "train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )


def ranks_of(launcher: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of its workers."""
    tasks = Path(f"/proc/{launcher.pid}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds workers through /proc")
@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_rank_ends_the_run_under_torchrun(
    fault: signal.Signals,
    corpus_cache: Path,
    tmp_path: Path,
    processes: list[subprocess.Popen[bytes]],
) -> None:
    folder, log = tmp_path / "run", tmp_path / "log"
    launcher = torchrun("--standalone", endless(folder, *LIMITS), log)
    processes.append(launcher)
    wait_until("step 5", lambda: steps_made(folder) >= 5, ended(processes))
    first = Run(folder).record.status["pid"]
    workers = ranks_of(launcher)
    victim = next(pid for pid in workers if pid != first)
    os.kill(victim, fault)
    try:
        assert launcher.wait() != 0
    finally:
        for pid in workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
    status = Run(folder).record.status
    assert status["state"] == "failed"
    assert status["reason"].startswith("rank 0: another process")
    assert "error: rank 0: another process" in log.read_text()


@pytest.mark.slow
def test_a_taken_port_of_torchrun_ends_it(
    corpus_cache: Path, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        log = tmp_path / "log"
        processes.append(torchrun(f"--master-port={port}", endless(tmp_path / "run"), log))
        assert processes[0].wait() != 0
    assert "EADDRINUSE" in log.read_text()
    assert f"port: {port}" in log.read_text()
    assert not (tmp_path / "run").exists()


# Each part by itself


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def limits() -> set[timedelta]:
    cpu = torch.device("cpu")
    return {group._get_backend(cpu).options._timeout for group in distributed_c10d._world.pg_map}


@pytest.mark.parametrize("state", ["failed", "preempted", "completed", "diverged"])
def test_a_rank_that_lost_contact_leaves_what_the_other_left(
    state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    folder = RunFolder(tmp_path / "run")
    folder.claim({"lr": 1})
    folder.set_status(state, reason="rank 0: out of memory")
    program._tell_lost(folder, "another process is gone")
    left = load_run(folder.path).status
    assert (left["state"], left["reason"]) == (state, "rank 0: out of memory")


def test_every_group_gets_the_limit_also_those_that_were_made_without_one(group: None) -> None:
    dist.new_group(backend="gloo")
    assert timedelta(minutes=30) in limits()
    limit_collectives(77)
    assert limits() == {timedelta(seconds=77)}


def test_a_group_that_is_made_without_a_limit_gets_that_of_the_start(
    group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = distributed_c10d.default_pg_timeout
    monkeypatch.setattr(distributed_c10d, "default_pg_timeout", before)  # restored afterwards
    limit_new_groups(77)
    dist.new_group(backend="gloo")
    assert timedelta(seconds=77) in limits()


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        RuntimeError("DataLoader timed out after 5 seconds"),  # a fault of this process's own
        ValueError("[gloo/transport] Connection closed by peer"),
        KeyboardInterrupt(),
    ],
)
def test_another_error_is_not_taken_for_a_lost_rank(error: BaseException) -> None:
    assert lost_contact(error) is None
    assert port_taken(error) is None
