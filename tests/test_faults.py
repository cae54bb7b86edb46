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
    return ["-m", "train", *tiny(folder, "maxP", *flags, *more)]


def start(rank: int, port: int, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    """One of two processes, as a launcher that looks after none of them would start it."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            **{name: str(value) for name, value in ranks.items()},
        },
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )


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
    processes: list[subprocess.Popen[bytes]],
) -> None:
    folder, port = tmp_path / "run", free_port()
    logs = [tmp_path / f"log{rank}" for rank in (0, 1)]
    processes += [start(rank, port, endless(folder, *LIMITS), logs[rank]) for rank in (0, 1)]
    wait_until("step 5", lambda: steps_made(folder) >= 5, ended(processes))
    processes[victim].send_signal(fault)
    survivor = 1 - victim
    assert processes[survivor].wait() == 1
    last = logs[survivor].read_text().splitlines()[-1]
    assert last.startswith(f"error: rank {survivor}: {said}")
    status = Run(folder).record.status
    assert status["state"] == "failed"
    assert status["reason"].startswith(f"rank {survivor}: {said}")


@pytest.mark.slow
def test_a_port_in_use_ends_every_rank_with_a_line_from_the_first(
    corpus_cache: Path, tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    folder = tmp_path / "run"
    logs = [tmp_path / f"log{rank}" for rank in (0, 1)]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        arguments = endless(folder, "--comm.init_timeout_seconds", str(MEET))
        processes += [start(rank, port, arguments, logs[rank]) for rank in (0, 1)]
        assert processes[0].wait() == 2
        assert processes[1].wait() == 1
    line = f"MASTER_PORT {port} is in use on this machine: set another"
    assert f"error: {line}" in logs[0].read_text().splitlines()[-1]
    assert "Traceback" not in logs[0].read_text()
    said = f"error: rank 1: another process did not connect to 127.0.0.1:{port} within {MEET} s"
    assert logs[1].read_text().splitlines()[-1].startswith(said)
    status = Run(folder).record.status
    assert status["state"] == "failed"
    assert line in status["reason"]


# Under torchrun


def torchrun(port: str, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", port]
    return subprocess.Popen(
        [*command, *arguments],
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
