"""Stopping a run's processes, which may lie in sessions of their own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from waiting import wait_until

from slurm import processes
from slurm.task import training

# Ends with 75 once it is signalled, and ignores the signal from then on, as the trainer does; says
# that it listens.
LISTENER = """
import signal, sys, time
def stop(*_):
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.exit(75)
signal.signal(signal.SIGUSR2, stop)
print("listening", flush=True)
time.sleep(600)
"""
# Starts the listener in a session of its own, as torchrun does, and ends as it ends.
AGENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {LISTENER!r}], start_new_session=True)
sys.exit(child.wait())
"""


def begin(code: str, output: Path) -> processes.Child:
    with output.open("wb") as file:
        return processes.Child(
            [sys.executable, "-c", code], environment=os.environ, cwd=".", output=file
        )


def wait_for(text: str, output: Path) -> None:
    wait_until(text, lambda: text in output.read_text())


def test_a_rank_below_an_agent_is_told_and_the_agent_lives_until_it_ends(tmp_path: Path) -> None:
    agent = begin(AGENT, tmp_path / "out")
    wait_for("listening", tmp_path / "out")
    assert agent.stop() == 75


def test_a_rank_that_does_not_listen_yet_is_told_again(tmp_path: Path) -> None:
    late = begin("import time; time.sleep(1.5)\n" + LISTENER, tmp_path / "out")
    before = processes._AGAIN_SECONDS
    processes._AGAIN_SECONDS = 0.3
    try:
        assert late.stop() == 75
    finally:
        processes._AGAIN_SECONDS = before


def test_what_does_not_stop_is_killed_after_the_limit(tmp_path: Path) -> None:
    deaf = begin("import time; time.sleep(600)", tmp_path / "out")
    assert deaf.stop(limit=0.5) == -9


def test_the_family_of_a_process_is_it_and_what_is_below(tmp_path: Path) -> None:
    agent = begin(AGENT, tmp_path / "out")
    try:
        wait_for("listening", tmp_path / "out")
        assert len(processes.family(agent.process)) == 2
    finally:
        agent.stop(limit=5)


def test_one_process_is_started_without_torchrun() -> None:
    assert training(["--x"], processes=1)[1:] == ["-m", "train", "--x"]


def test_several_on_one_node_need_no_address() -> None:
    assert "--standalone" in training([], processes=2)


def test_several_nodes_are_told_who_is_first() -> None:
    command = training([], processes=8, nodes=2, node=1, address="n1", port=20_001)
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=n1", "--master-port=20001"} < {*command}
