"""Runs that are forked from a warm process, with a trainer that executes its first argument."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import run, tiny
from waiting import wait_until

from slurm import processes, warm
from train.run.folder import load_run

ROOT = Path(__file__).parents[1]

EXECUTES = """
import sys
import numpy
if __name__ == '__main__':
    exec(sys.argv[1])
"""
# Tells its process id, and waits until it is killed.
WAITS = "import os, time; print(os.getpid(), 'waits', flush=True); time.sleep(600)"


def code(folder: Path, trainer: str, *, accelerator: bool = False) -> dict[str, str]:
    """The environment of runs with another trainer, whose code is put into a folder."""
    package = folder / "train"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "cpu.py").write_text(f"def has_accelerator(): return {accelerator}\n")
    (package / "__main__.py").write_text(trainer)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", "COLOUR": "blue"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of runs whose trainer is ``exec(sys.argv[1])``."""
    return code(tmp_path_factory.mktemp("code"), EXECUTES)


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[warm.Starter]:
    with warm.Starter() as one:
        yield one


class Runs:
    """Starts runs of the trainer, and reads what they print."""

    def __init__(
        self, starter: warm.Starter, environment: dict[str, str], folder: Path, command: list[str]
    ) -> None:
        self.starter, self.environment, self.folder = starter, environment, folder
        self.command = command

    def start(self, *arguments: str, output: str = "out") -> processes.Child:
        with (self.folder / output).open("ab") as file:
            return self.starter.start(
                [*self.command, *arguments],
                environment=self.environment,
                cwd=str(self.folder),
                output=file,
            )

    def output(self, name: str = "out") -> str:
        return (self.folder / name).read_text()

    def run(self, *arguments: str) -> str:
        assert self.start(*arguments).wait() == 0, self.output()
        return self.output()


@pytest.fixture
def runs(starter: warm.Starter, environment: dict[str, str], tmp_path: Path) -> Runs:
    """Runs that are forked."""
    return Runs(starter, environment, tmp_path, [*warm.TRAIN])


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def warm_process(child: processes.Child) -> psutil.Process:
    parent = child.process.parent()
    assert parent is not None
    return parent


# A forked run is in the state of a process of its own


def test_runs_of_one_environment_have_one_warm_process(runs: Runs) -> None:
    children = [runs.start(WAITS) for _ in range(2)]
    assert len({warm_process(child).pid for child in children}) == 1
    assert warm_process(children[0]).parent() == psutil.Process()
    for child in children:
        child.stop(limit=0)


def test_another_environment_has_another_warm_process(runs: Runs) -> None:
    blue = runs.start(WAITS)
    runs.environment = runs.environment | {"COLOUR": "red"}
    red = runs.start(WAITS)
    assert warm_process(red) != warm_process(blue)
    for child in (blue, red):
        child.stop(limit=0)


def test_a_run_has_the_arguments_environment_and_working_folder(runs: Runs) -> None:
    code = "import os; print(sys.argv[1:], os.environ['COLOUR'], os.getcwd(), __name__)"
    assert runs.run(code, "--x") == f"{[code, '--x']} blue {runs.folder} __main__\n"


def test_its_module_file_is_the_first_word(runs: Runs) -> None:
    assert runs.run("print(sys.argv[0] == __file__, __spec__.name)") == "True train.__main__\n"


STATE = """
import gc, multiprocessing, os, signal, threading
print("leads its session", os.getsid(0) == os.getpid())
print("input is null", os.fstat(0) == os.stat(os.devnull))
print("signals", [signal.getsignal(s) for s in signal.valid_signals()])
print("mask", signal.pthread_sigmask(signal.SIG_BLOCK, []))
print("threads", threading.active_count(), threading.current_thread() is threading.main_thread())
print("descriptors", sorted(os.listdir("/proc/self/fd")))
print("words", sys.orig_argv[1:])
print("output", sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.encoding)
print("collector", gc.isenabled())
print("children", multiprocessing.active_children(), multiprocessing.parent_process())
"""


def test_a_run_is_in_the_state_of_a_process_of_its_own(runs: Runs, tmp_path: Path) -> None:
    forked = runs.run(STATE)
    with (tmp_path / "own").open("wb") as file:
        own = processes.Child(
            [*warm.TRAIN, STATE], environment=runs.environment, cwd=str(tmp_path), output=file
        )
    assert own.wait() == 0
    assert forked == runs.output("own")


def test_runs_draw_different_random_numbers(runs: Runs) -> None:
    drawn = "import random, numpy, uuid; print(random.random(), numpy.random.rand(), uuid.uuid4())"
    first = runs.run(drawn).split()
    second = runs.run(drawn).splitlines()[1].split()
    assert all(a != b for a, b in zip(first, second, strict=True))


def test_runs_are_parallel(runs: Runs) -> None:
    """Each waits for the file that the other one writes."""
    meets = (
        "import pathlib, time\nmine, other = map(pathlib.Path, sys.argv[2:])\nmine.touch()\n"
        "while not other.exists(): time.sleep(0.01)"
    )
    children = [runs.start(meets, *names) for names in (("a", "b"), ("b", "a"))]
    assert [child.wait() for child in children] == [0, 0]


def test_a_run_may_fork_workers(runs: Runs) -> None:
    code = (
        "import multiprocessing as m\n"
        "pool = m.get_context('fork').Pool(2)\nprint(pool.map(abs, [-1, 2]))\npool.close()\n"
        "pool.join()"  # at exit a pool would send SIGTERM, which a run ignores until it can save
    )
    assert runs.run(code) == "[1, 2]\n"


# How a run ends


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("pass", 0),
        ("sys.exit(75)", 75),
        ("sys.exit('refused')", 1),
        ("raise ValueError('wrong')", 1),
        ("import os; os._exit(3)", 3),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_its_exit_status_is_that_of_a_process_of_its_own(
    runs: Runs, code: str, status: int
) -> None:
    assert runs.start(code).wait() == status


def test_an_uncaught_error_is_in_its_output(runs: Runs) -> None:
    runs.start("raise ValueError('wrong')").wait()
    assert "Traceback" in runs.output()
    assert runs.output().endswith("ValueError: wrong\n")


def test_functions_registered_for_its_exit_are_called(runs: Runs) -> None:
    assert runs.run("import atexit; atexit.register(print, 'bye'); print('work')") == "work\nbye\n"


def test_what_does_not_stop_is_killed_with_its_family(runs: Runs) -> None:
    child = runs.start(
        "import subprocess, time\n"
        "one = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(one.pid, flush=True); time.sleep(600)"
    )
    wait_until("its child", lambda: runs.output().endswith("\n"))
    server = warm_process(child)
    assert child.stop(limit=0.5) == -signal.SIGKILL
    wait_until("the end of its child", lambda: gone(int(runs.output())))
    assert server.is_running()


def test_a_run_can_be_waited_for_again(runs: Runs) -> None:
    child = runs.start("sys.exit(2)")
    assert [child.wait(), child.wait(), child.stop()] == [2, 2, 2]


# How the warm process ends


def test_the_warm_process_ends_with_its_starter(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with warm.Starter() as starter:
        child = Runs(starter, environment, tmp_path, [*warm.TRAIN]).start(WAITS)
        server = warm_process(child)
        child.stop(limit=0)
    assert gone(server.pid)


COMMAND = """
import os, sys, time
from slurm import warm
with warm.Starter() as starter:
    child = starter.start(
        [*warm.TRAIN, sys.argv[1]], environment=os.environ, cwd=".", output=open("out", "wb")
    )
    print(child.process.ppid(), child.process.pid, flush=True)
    time.sleep(600)
"""


def test_a_run_outlives_a_command_that_is_killed_and_the_warm_process_does_not(
    environment: dict[str, str], tmp_path: Path
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, WAITS],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    server, run = map(int, command.stdout.readline().split())
    command.kill()
    command.communicate()
    wait_until("the end of the warm process", lambda: gone(server))
    assert not gone(run)
    os.kill(run, signal.SIGKILL)


def test_without_its_warm_process_a_run_goes_on_and_the_next_starts_by_itself(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with warm.Starter() as starter:
        runs = Runs(starter, environment, tmp_path, [*warm.TRAIN])
        child = runs.start(
            "import time, pathlib\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)"
        )
        server = warm_process(child)
        server.kill()
        wait_until("its end", lambda: gone(server.pid))
        assert child.process.is_running()
        assert runs.start("print('done')", output="next").wait() == 0
        (tmp_path / "go").touch()
        assert child.wait() == processes.UNKNOWN
    reason, printed = runs.output("next").splitlines()
    assert reason.endswith("ended by SIGKILL; this run starts without it")
    assert printed == "done"


def test_a_warm_process_that_cannot_start_is_reported_and_the_run_starts_by_itself(
    tmp_path: Path,
) -> None:
    with warm.Starter() as starter:
        runs = Runs(starter, code(tmp_path, "import absent"), tmp_path, [*warm.TRAIN])
        assert runs.start().wait() == 1
    lines = runs.output().splitlines()
    assert "No module named 'absent'; this run starts without it" in lines[0]
    assert lines[-1] == "ModuleNotFoundError: No module named 'absent'"


def test_where_an_accelerator_is_seen_runs_start_by_themselves(tmp_path: Path) -> None:
    with warm.Starter() as starter:
        seen = code(tmp_path, EXECUTES, accelerator=True)
        runs = Runs(starter, seen, tmp_path, [*warm.TRAIN])
        reason, parent = runs.run("import os; print(os.getppid())").splitlines()
    assert "sees an accelerator" in reason
    assert int(parent) == os.getpid()


def test_other_commands_are_started_as_they_are(runs: Runs) -> None:
    runs.command = [sys.executable, "-c", "import os; print(os.getppid())"]
    assert int(runs.run()) == os.getpid()


# With the trainer itself

CASES = {
    "completed": ((), 0, "completed"),
    "diverged": (("--lr", "1e30"), 0, "diverged"),
    "with workers": (("--dataloader.num_workers", "2"), 0, "completed"),
    "refused": (("--training.seq_len", "0"), 2, None),
}


@pytest.fixture(scope="module")
def real(
    starter: warm.Starter, corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Runs:
    paths = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    folder = tmp_path_factory.mktemp("real")
    return Runs(starter, paths | {"MAXP_CACHE": str(corpus_cache)}, folder, [*warm.TRAIN])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_forked_training_is_the_training_of_a_process_that_was_not_forked(
    real: Runs, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more, expected, state = CASES[case]
    words = {
        name: tiny(real.folder / f"{case} {name}", "maxP", *more) for name in ("own", "forked")
    }
    forked = real.start(*words["forked"])
    assert warm_process(forked) != psutil.Process()
    assert (run(words["own"]).code, forked.wait()) == (expected, expected), real.output()
    if state is None:
        assert real.output().splitlines()[-1] == capsys.readouterr().err.splitlines()[-1]
        return
    results = [what_a_run_left(real.folder / f"{case} {name}") for name in words]
    assert results[0] == results[1]
    assert results[1]["state"] == state


# What a clock or a process decides.
MEASURED = {"tokens_per_second", "step_seconds", "memory_gib", "time", "data_seconds"}


def what_a_run_left(folder: Path) -> dict[str, Any]:
    """The state, metrics and configuration of a run, less times, memory and its own path."""
    run = load_run(folder)
    config = json.loads((folder / "config.json").read_text().replace(str(folder), "FOLDER"))
    del config["id"]  # which is random
    metrics = [{k: v for k, v in record.items() if k not in MEASURED} for record in run.metrics]
    return {"state": run.status["state"], "config": config, "metrics": metrics}


@pytest.mark.slow
def test_a_forked_training_saves_and_stops_when_asked(real: Runs) -> None:
    folder = real.folder / "stopped"
    child = real.start(*tiny(folder, "maxP", "--steps", "2000", "--checkpoint.enable"))
    metrics = folder / "metrics.jsonl"
    wait_until("a step", metrics.exists, lambda: None if not gone(child.process.pid) else "ended")
    assert child.stop() == 75
    status = load_run(folder).status
    assert status["state"] == "preempted"
    assert (folder / "checkpoint" / f"step-{status['step']}").exists()
