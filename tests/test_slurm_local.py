"""A sweep on this machine: shared out, interrupted, gone on with."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from harness import run
from slurm_commands import NAMES, Case, begin, patched
from waiting import ended, wait_until

from slurm import __main__ as cli
from slurm import preflight, processes, snapshot
from slurm.states import State, survey
from slurm.sweep import Overrides, expand, load_sweep

ROOT = Path(__file__).parents[1]

Command = Callable[[list[str]], int]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path).write()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    return patched(monkeypatch)


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    """Commands that are killed at the end, with what they started."""
    commands: list[subprocess.Popen[str]] = []
    yield commands
    for one in commands:
        with contextlib.suppress(psutil.NoSuchProcess):
            processes.send(psutil.Process(one.pid), signal.SIGKILL)
        one.wait()


def states(case: Case) -> dict[str, State]:
    return {s.run.name: s.state for s in survey(case.folder, case.folder.runs())}


def running(case: Case) -> list[str]:
    """Runs whose stub has begun its first step."""
    names = [name for name, state in states(case).items() if state is State.RUNNING]
    return [name for name in names if (case.folder.run(name) / "metrics.jsonl").exists()]


def test_a_sweep_runs_to_its_end(case: Case, command: Command) -> None:
    assert command(case.submission()) == 0
    assert states(case) == dict.fromkeys(NAMES, State.COMPLETED)


def test_submitting_again_starts_nothing(case: Case, command: Command) -> None:
    command(case.submission())
    assert command(case.submission()) == 0
    assert case.all_starts() == dict.fromkeys(NAMES, 1)


def test_a_sweep_that_grew_starts_only_what_is_new(case: Case, command: Command) -> None:
    command(case.submission())
    assert command(case.submission("--seeds", "2", "3")) == 0
    new = {f"debug_{method}_lr1e-02_seed3": 1 for method in ("maxP", "mup-no")}
    assert case.all_starts() == dict.fromkeys(NAMES, 1) | new


def test_as_many_run_at_once_as_the_cluster_file_says(
    case: Case, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_MEET", "2")
    command(case.submission())

    def at_once(name: str) -> int:
        """Runs that were under way when this one began."""
        began = case.starts(name)[0]["began"]
        ends = {n: (case.folder.run(n) / "status.json").stat().st_mtime for n in NAMES}
        return sum(case.starts(n)[0]["began"] <= began < ends[n] for n in NAMES)

    assert max(map(at_once, NAMES)) == 2


def test_runs_share_the_cores(
    case: Case, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    command(case.submission())
    assert {case.starts(name)[0]["OMP_NUM_THREADS"] for name in NAMES} == {"4"}


def test_runs_at_the_same_time_have_gpus_of_their_own(
    case: Case, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    case.write(parallel=4, cluster="gpus_per_node = 4\n")
    with case.sweep.open("a") as file:
        file.write("[resources]\ngpus_per_node = 2\n")
    monkeypatch.setenv("STUB_MEET", "2")
    command(case.submission())
    begun = sorted((case.starts(name)[0] for name in NAMES), key=lambda start: start["began"])
    given = [start["CUDA_VISIBLE_DEVICES"] for start in begun]
    assert sorted(given[:2]) == ["0,1", "2,3"]
    assert {tuple(sorted(one.split(","))) for one in given} <= {("0", "1"), ("2", "3")}


def test_one_that_fails_leaves_the_others_alone_and_can_be_retried(
    case: Case,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STUB_FAIL", "2")
    assert command(case.submission()) == 1
    failed = {name for name, state in states(case).items() if state is State.FAILED}
    assert failed == {name for name in NAMES if name.endswith("seed2")}
    capsys.readouterr()
    command(["status", str(case.folder.path)])
    assert "out of memory | RuntimeError: out of memory, says the stub" in capsys.readouterr().out

    monkeypatch.delenv("STUB_FAIL")
    assert command(["resume", str(case.folder.path), "--cluster", str(case.cluster)]) == 1
    assert command(["retry", str(case.folder.path), "--cluster", str(case.cluster)]) == 0
    assert case.all_starts() == {name: 1 + (name in failed) for name in NAMES}


def test_interrupted_it_stops_its_runs_and_the_same_command_goes_on(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    case.write(steps=30)
    started.append(begin(case.submission(), STUB_GATE=str(case.root / "closed")))
    wait_until("two runs", lambda: len(running(case)) == 2, ended(started))
    first = running(case)
    started[0].send_signal(signal.SIGINT)
    output, _ = started[0].communicate()
    assert started[0].returncode == 130
    assert "the same command continues them" in output
    assert {states(case)[name] for name in first} == {State.CANCELLED}

    assert command(case.submission()) == 0
    assert states(case) == dict.fromkeys(NAMES, State.COMPLETED)
    assert case.losses(first[0]) == case.losses(NAMES[-1])  # which was never interrupted
    assert len(case.starts(first[0])) == 2


def test_two_commands_share_the_runs(case: Case, started: list[subprocess.Popen[str]]) -> None:
    case.write(parallel=1)
    for _ in range(2):
        started.append(begin(case.submission(), STUB_SECONDS="0.2"))
    for one in started:
        one.communicate()
    assert case.all_starts() == dict.fromkeys(NAMES, 1)
    assert states(case) == dict.fromkeys(NAMES, State.COMPLETED)


def test_a_run_that_was_killed_has_vanished_and_resume_continues_it(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    case.write(steps=8, parallel=1)
    asked = case.submission("--seeds", "1")
    gate = case.root / "gate"
    started.append(begin(asked, STUB_GATE=str(gate)))
    wait_until("a run", lambda: running(case), ended(started))
    (victim,) = running(case)
    os.kill(case.starts(victim)[0]["pid"], signal.SIGKILL)
    wait_until("its end is seen", lambda: states(case)[victim] is State.VANISHED)
    gate.touch()
    output, _ = started[0].communicate()
    assert f"{victim}: vanished ended by SIGKILL" in output
    assert started[0].returncode == 1

    assert command(["resume", str(case.folder.path), "--cluster", str(case.cluster)]) == 0
    assert states(case) == dict.fromkeys(NAMES[:2], State.COMPLETED)
    assert case.all_starts() == {name: 1 + (name == victim) for name in NAMES[:2]}


def test_a_command_that_was_killed_leaves_its_run_running_and_unshared(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    case.write(steps=8, parallel=1)
    gate = case.root / "gate"
    started.append(begin(case.submission(), STUB_GATE=str(gate)))
    wait_until("a run", lambda: running(case), ended(started))
    (orphan,) = running(case)
    started[0].kill()
    started[0].wait()
    assert command(case.submission()) == 0
    assert states(case)[orphan] is State.RUNNING
    gate.touch()
    wait_until("its end", lambda: states(case)[orphan] is State.COMPLETED)
    assert case.all_starts() == dict.fromkeys(NAMES, 1)


def test_watching_goes_on_from_run_to_run_and_ends_with_the_sweep(
    case: Case, started: list[subprocess.Popen[str]]
) -> None:
    case.write(parallel=1)
    gate = case.root / "gate"
    started.append(begin(case.submission(), STUB_GATE=str(gate)))
    wait_until("the command", lambda: case.folder.commands(), ended(started))
    started.append(begin(["status", str(case.folder.path), "--watch", "0.1"]))
    assert started[1].stdout is not None
    seen = []
    for line in started[1].stdout:
        seen.append(line)
        if "waits for its turn here" in line:
            gate.touch()
    assert started[1].wait() == 0
    assert gate.exists()
    assert seen[-2] == "4 runs: 4 completed\n"


def test_cancel_ends_the_command_and_its_runs(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    started.append(begin(case.submission(), STUB_GATE=str(case.root / "closed")))
    wait_until("two runs", lambda: len(running(case)) == 2, ended(started))
    assert command(["cancel", str(case.folder.path)]) == 0
    started[0].communicate()
    assert sorted(states(case).values()) == [State.CANCELLED] * 2 + [State.MISSING] * 2


def test_cancel_of_one_run_leaves_the_others(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    gate = case.root / "gate"
    started.append(begin(case.submission(), STUB_GATE=str(gate)))
    wait_until("the run", lambda: NAMES[0] in running(case), ended(started))
    assert command(["cancel", str(case.folder.path), "--runs", NAMES[0]]) == 0
    gate.touch()
    started[0].communicate()
    rest = dict.fromkeys(NAMES[1:], State.COMPLETED)
    assert states(case) == rest | {NAMES[0]: State.CANCELLED}


def test_cancel_signals_no_process_that_was_given_a_reused_id(
    case: Case, command: Command, started: list[subprocess.Popen[str]]
) -> None:
    command(case.submission())
    started.append(subprocess.Popen(["sleep", "60"], text=True))
    stranger = psutil.Process(started[0].pid)
    here = {"host": socket.gethostname(), "pid": stranger.pid, "started": 1e9}
    job, status = (case.folder.run(NAMES[0]) / file for file in ("job.json", "status.json"))
    job.write_text(json.dumps(json.loads(job.read_text()) | here))
    status.write_text(json.dumps({"state": "running", "step": 1}))
    mark = case.folder.path / ".sweep" / "commands" / f"{here['host']}.{stranger.pid}"
    mark.write_text("1e9")
    assert command(["cancel", str(case.folder.path)]) == 0
    assert states(case)[NAMES[0]] is State.VANISHED
    assert started[0].poll() is None


def test_runs_without_a_gpu_are_forked_from_one_process_that_ends_with_the_command(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep_with_stub_as_trainer(case, monkeypatch)
    (parent,) = {case.starts(name)[0]["parent"] for name in NAMES}
    assert parent != os.getpid()
    assert not psutil.pid_exists(parent)
    for name in NAMES:
        assert case.folder.job(name).pid == case.starts(name)[0]["pid"]  # type: ignore[union-attr]


def test_runs_with_gpus_are_not_forked(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.write(cluster="gpus_per_node = 2\n")
    with case.sweep.open("a") as file:
        file.write("[resources]\ngpus_per_node = 1\n")
    run_sweep_with_stub_as_trainer(case, monkeypatch)
    assert {case.starts(name)[0]["parent"] for name in NAMES} == {os.getpid()}


def run_sweep_with_stub_as_trainer(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the sweep with code in which ``python -m train`` is the stub."""
    trainer = case.root / "code" / "train"
    trainer.mkdir(parents=True)
    (trainer / "__init__.py").write_text(f"__path__.append({str(ROOT / 'train')!r})\n")
    (trainer / "__main__.py").write_text(
        "import runpy\nif __name__ == '__main__':\n"
        f"    runpy.run_path({str(ROOT / 'tests' / 'slurm_stub.py')!r})\n"
    )
    monkeypatch.setattr(preflight, "check", lambda *_: None)
    monkeypatch.setattr(snapshot, "take", lambda *_: snapshot.Snapshot(trainer.parent, None))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert cli.main(case.submission()) == 0
    assert states(case) == dict.fromkeys(NAMES, State.COMPLETED)


# With the trainer itself

TINY = """
[flags]
training.seq_len = 32
training.local_batch_size = 4
training.global_batch_size = 4
lr_scheduler.warmup_steps = 5
validator.sequences = 8
metrics.log_freq = 1
maxp.measure_from = 1
maxp.solve_interval = 3
maxp.probe_tokens = 32
"""


@pytest.mark.slow
def test_an_interrupted_training_has_the_loss_curve_of_one_that_was_not(
    tmp_path: Path, corpus_cache: Path, started: list[subprocess.Popen[str]]
) -> None:
    steps, name = 60, NAMES[0]
    broken = Case(tmp_path).write(steps=steps, parallel=1)
    only = ("--seeds", "1", "--methods", "maxP")
    with broken.sweep.open("a") as file:
        file.write(TINY)
    variables = {"MAXP_CACHE": str(corpus_cache), "OMP_NUM_THREADS": "1"}
    (planned,) = expand(load_sweep(broken.sweep, Overrides(seeds=(1,), methods=("maxP",))))
    whole = run([*planned.arguments, "--output-dir", str(tmp_path / "whole")])

    started.append(begin(broken.submission(*only), stub=False, **variables))
    metrics = broken.folder.run(name) / "metrics.jsonl"
    wait_until(
        "step 6",
        lambda: metrics.exists() and len(metrics.read_text().splitlines()) > 5,
        ended(started),
    )
    started[0].send_signal(signal.SIGINT)
    started[0].communicate()
    status = json.loads((broken.folder.run(name) / "status.json").read_text())
    assert status["state"] == "preempted"
    assert 5 < status["step"] < steps
    assert cli.main(broken.submission(*only)) == 0
    assert len(whole.losses) == steps
    assert broken.losses(name) == list(enumerate(whole.losses, 1))


@pytest.mark.exhaustive  # two sweeps of six trainings; test_checkpoint_owner.py has the small form
def test_a_sweep_over_one_shared_checkpoint_folder_has_the_table_that_it_has_without(
    tmp_path: Path, corpus_cache: Path
) -> None:
    tables = {}
    for part in ("own", "shared"):
        case = Case(tmp_path / part)
        case.root.mkdir()
        case.write(steps=8)
        with case.sweep.open("a") as file:
            file.write(f"{TINY}checkpoint.enable = true\ncheckpoint.interval = 4\n")
            if part == "shared":
                file.write(f'checkpoint.folder = "{tmp_path / "scratch"}"\n')
        variables = {"MAXP_CACHE": str(corpus_cache), "OMP_NUM_THREADS": "1"}
        methods = ("--methods", "maxP", "mup-full", "mup-no")
        sweep = begin(case.submission(*methods), stub=False, **variables)
        output, _ = sweep.communicate()
        assert sweep.returncode == 0, output
        table = subprocess.run(
            [sys.executable, "-m", "train.table", "."],
            cwd=case.folder.path, capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        tables[part] = table.stdout
        assert len(case.folder.runs()) == 6
    assert "mup-no" in tables["own"]
    assert tables["shared"] == tables["own"]
    assert len(list((tmp_path / "scratch").iterdir())) == 6
