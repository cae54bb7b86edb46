"""What cannot be done is reported in one line, and leaves nothing behind that is half written."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm_cases import command as program
from slurm_cases import spec
from slurm_commands import NAMES, Case, begin, patched
from waiting import ended, wait_until

from slurm import __main__ as cli
from slurm import preflight, snapshot
from slurm.cluster import Cluster, Container
from slurm.config_file import ConfigError
from slurm.states import RESULTS, State, survey

Command = Callable[[list[str]], int]
PAGE = 4096


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path).write()


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    return patched(monkeypatch)


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """The one line that a command has just printed on stderr."""

    def read() -> str:
        lines = capsys.readouterr().err.splitlines()
        reported = [line for line in lines if line.startswith("error: ")]
        assert len(reported) == 1
        return reported[0]

    return read


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that takes every job, and whose queue holds none."""
    programs = tmp_path / "bin"
    for name, text in (
        ("squeue", "true"),
        ("sacct", "exit 1"),
        ("srun", "true"),
        ("scontrol", "echo 'MaxArraySize = 1001'"),
        ("sbatch", "echo 'Submitted batch job 77'"),
    ):
        program(programs, name, text, monkeypatch)
    return programs


def on_slurm(case: Case) -> None:
    case.cluster.write_text('kind = "slurm"\npartition = "p"\nprocesses_per_node = 1\n')


def half_written(case: Case) -> list[Path]:
    """Files of the sweep that are not whole."""
    files = []
    for file in case.folder.path.rglob("*"):
        if re.search(r"\.json\.[0-9a-f]{32}$", file.name):
            files.append(file)
        elif file.suffix == ".json":
            try:
                json.loads(file.read_text())
            except ValueError:
                files.append(file)
    return files


def states(case: Case) -> list[State]:
    return [standing.state for standing in survey(case.folder, case.folder.runs())]


# Files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scales = [", "s.toml: not valid TOML"),
        ('scales = ["s9"]', "s.toml: scales: 's9' is unknown: choose from debug, s1"),
        ('methods = ["mup"]', "s.toml: methods: 'mup' is unknown: choose from maxP"),
        ("lr = [0.1]", "s.toml: lr: unknown key: did you mean lrs?"),
        ("steps = 0", "s.toml: steps: 0: must be at least 1"),
    ],
)
def test_a_mistake_in_the_sweep_file_is_named_and_nothing_is_made(
    case: Case, command: Command, error: Callable[[], str], text: str, message: str
) -> None:
    key = text.partition(" ")[0]
    lines = case.sweep.read_text().splitlines()
    case.sweep.write_text("\n".join([*(x for x in lines if not x.startswith(f"{key} =")), text]))
    assert command(case.submission()) == 2
    assert message in error()
    assert not case.runs.exists()


def test_an_unknown_cluster_is_named(
    case: Case, command: Command, error: Callable[[], str]
) -> None:
    assert command([*case.submission()[:2], "--cluster", "nowhere"]) == 2
    assert "--cluster nowhere: unknown: choose from" in error()


@pytest.mark.slow
def test_flags_that_the_trainer_refuses_are_told_before_anything_is_submitted(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(case.submission("--set", "training.seq_lenn=32")) == 2
    errors = capsys.readouterr().err
    assert "training.seq_lenn" in errors
    assert f"error: {NAMES[0]}: python -m train does not take its flags" in errors
    assert not case.runs.exists()


CONTAINER = '[container]\nkind = "pyxis"\nimage = "i"\nmounts = ["/host:/data"]\n'


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
@pytest.mark.parametrize("container", ["", CONTAINER])
def test_the_trainer_is_asked_about_the_flags_of_every_submission(
    case: Case,
    command: Command,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], str],
    more: list[str],
    container: str,
) -> None:
    def refuse(*_: object) -> None:
        raise ConfigError("no such flag")

    monkeypatch.setattr(preflight, "check", refuse)
    on_slurm(case)
    case.cluster.write_text(case.cluster.read_text() + container)
    assert command(case.submission(*more)) == 2
    assert error() == "error: no such flag"
    assert not case.runs.exists()


def test_a_path_in_the_container_is_checked_where_it_is_mounted_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("train.cli.parse", asked.append)
    words = ("--tokenizer", "/data/tokenizer", "--dataset", "/database")
    container = Container("pyxis", "image", ("/host:/data",))
    where = Cluster(name="c", kind="slurm", gpus_per_node=1, container=container)
    preflight.check([spec("a", arguments=words)], where)
    assert asked == [["--tokenizer", "/host/tokenizer", "--dataset", "/database"]]


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_runs_folder_that_is_a_file_is_named(
    case: Case, command: Command, error: Callable[[], str], more: list[str]
) -> None:
    case.runs.write_text("something else")
    assert command(case.submission(*more)) == 2
    assert f"--runs-dir {case.runs} cannot be written" in error()
    assert case.runs.read_text() == "something else"


def test_a_sweep_that_was_never_submitted_has_no_status(
    case: Case, command: Command, error: Callable[[], str]
) -> None:
    assert command(["status", str(case.sweep), "--runs-dir", str(case.runs)]) == 2
    assert f"{case.folder.path} holds no sweep: submit one" in error()


def test_a_sweep_file_that_is_gone_is_told_with_what_to_name_instead(
    case: Case, command: Command, error: Callable[[], str]
) -> None:
    command(case.submission())
    case.sweep.unlink()
    assert command(["status", str(case.sweep), "--runs-dir", str(case.runs)]) == 2
    assert f"no such file: name the sweep's folder instead, as {case.folder.path}" in error()
    assert command(["status", str(case.folder.path)]) == 0


def test_a_run_that_is_not_in_the_sweep_is_named(
    case: Case, command: Command, error: Callable[[], str]
) -> None:
    command(case.submission())
    assert command(["retry", str(case.folder.path), "--runs", "s9_x"]) == 2
    assert "--runs s9_x: not a run of" in error()


# Folders


def test_two_sweeps_in_one_folder_are_refused(
    case: Case, command: Command, error: Callable[[], str]
) -> None:
    command(case.submission())
    before = (case.folder.path / "sweep.json").read_text()
    other = json.loads(before)
    other["name"] = "other"
    (case.folder.path / "sweep.json").write_text(json.dumps(other))
    assert command(case.submission()) == 2
    assert "holds the sweep 'other', not 's': give one of them another name" in error()
    assert json.loads((case.folder.path / "sweep.json").read_text()) == other


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_other_flags_under_the_same_name_are_refused_and_leave_the_runs(
    case: Case, command: Command, error: Callable[[], str], more: list[str]
) -> None:
    command(case.submission())
    assert command(case.submission("--set", "training.seq_len=64", *more)) == 2
    assert re.search(r"with other settings \(.*64 here\): give the sweep another name", error())
    assert states(case) == [State.COMPLETED] * 4
    assert case.all_starts() == dict.fromkeys(NAMES, 1)


def test_a_flag_that_the_trainer_would_continue_with_is_not_refused(
    case: Case, command: Command
) -> None:
    command(case.submission())
    assert command(case.submission("--set", "training.local_batch_size=2")) == 0
    assert case.all_starts() == dict.fromkeys(NAMES, 1)


def test_flags_of_runs_that_never_began_can_be_corrected(
    case: Case, command: Command, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_slurm(case)
    program(slurm, "sbatch", "echo 'sbatch: error: no' >&2; exit 1", monkeypatch)
    assert command(case.submission()) == 1
    program(slurm, "sbatch", "echo 'Submitted batch job 77'", monkeypatch)
    assert command(case.submission("--set", "training.seq_len=64")) == 0
    assert all("64" in run.arguments for run in case.folder.runs())


def test_a_run_folder_that_was_deleted_is_missing_and_is_run_again(
    case: Case, command: Command
) -> None:
    command(case.submission())
    shutil.rmtree(case.folder.run(NAMES[0]))
    assert states(case).count(State.MISSING) == 1
    assert command(case.submission()) == 0
    assert states(case) == [State.COMPLETED] * 4
    assert case.all_starts() == dict.fromkeys(NAMES, 1)


def test_a_sweep_that_was_moved_is_read_gone_on_with_and_tells_its_errors(
    case: Case,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STUB_FAIL", "2")
    command(case.submission())
    moved = case.root / "elsewhere"
    case.runs.rename(moved)
    capsys.readouterr()
    assert command(["status", str(moved / "s")]) == 0
    assert "RuntimeError: out of memory, says the stub" in capsys.readouterr().out
    monkeypatch.delenv("STUB_FAIL")
    assert command(["retry", str(moved / "s"), "--cluster", str(case.cluster)]) == 0
    assert not case.runs.exists()


def test_a_corrupt_line_of_metrics_is_told_by_status_and_table(
    case: Case, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(case.submission())
    with (case.folder.run(NAMES[1]) / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo\n')
    capsys.readouterr()
    assert command(["status", str(case.folder.path)]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "corrupt line" in x]
    assert line.startswith(NAMES[1])
    assert "1 corrupt line in metrics.jsonl" in line
    assert command(["table", str(case.folder.path)]) == 0
    message = capsys.readouterr().out
    assert "4.0100" in message
    assert "corrupt" in message


def test_a_corrupt_status_is_one_unreadable_run(
    case: Case, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    command(case.submission())
    (case.folder.run(NAMES[1]) / "status.json").write_text("{")
    capsys.readouterr()
    assert command(["status", str(case.folder.path)]) == 0
    message = capsys.readouterr().out
    assert "4 runs: 3 completed, 1 unreadable" in message
    assert f"{NAMES[1]}/status.json is corrupt" in message


# Slurm


def test_when_sbatch_refuses_its_words_are_told_and_the_runs_are_missing(
    case: Case,
    command: Command,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Callable[[], str],
) -> None:
    on_slurm(case)
    text = "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2; exit 1"
    program(slurm, "sbatch", text, monkeypatch)
    assert command(case.submission()) == 1
    assert "sbatch refused the jobs" in (message := error())
    assert "Invalid account" in message
    assert states(case) == [State.MISSING] * 4
    assert half_written(case) == []


def test_a_machine_without_slurm_is_told(
    case: Case, command: Command, monkeypatch: pytest.MonkeyPatch, error: Callable[[], str]
) -> None:
    on_slurm(case)
    monkeypatch.setenv("PATH", str(case.root))
    assert command(case.submission()) == 1
    assert "scontrol is not on this machine: use --cluster local" in error()


# A full disk


@pytest.fixture
def disk(case: Case) -> Iterator[Callable[[int], None]]:
    """The runs lie on a disk of 32 MiB; called, it leaves so many bytes free."""
    if shutil.which("mount") is None:
        pytest.skip("needs mount")
    case.runs.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(case.runs)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    ballast = case.runs / "ballast"

    def leave(free: int) -> None:
        ballast.unlink(missing_ok=True)
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while (much := shutil.disk_usage(case.runs).free - free) > 0:
                file.write(b"\0" * much)

    yield leave
    subprocess.run(["umount", "--lazy", str(case.runs)], check=True)


def test_wherever_a_submission_meets_a_full_disk_it_says_so_and_can_be_repeated(
    case: Case,
    command: Command,
    slurm: Path,
    disk: Callable[[int], None],
    error: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_slurm(case)
    asked = case.root / "asked"  # a line each time that sbatch takes jobs
    asked.touch()
    text = f"grep -o 'comment=.*' $1 | cut -d= -f2 >> {asked}; echo 'Submitted batch job 77'"
    program(slurm, "sbatch", text, monkeypatch)
    text = f"for t in $(cat {asked}); do for i in 0 1 2 3; do "
    program(slurm, "squeue", text + 'echo "77_$i|PENDING|None|1:00||$t"; done; done', monkeypatch)
    with case.folder.lock():
        taken = snapshot.take(case.folder.code, None)
    monkeypatch.setattr(snapshot, "take", lambda *_: taken)
    refused = 0
    for pages in range(80):
        disk(pages * PAGE)
        if command(case.submission()) == 0:
            break
        refused += 1
        message = error()
        assert str(case.runs) in message
        assert "No space left on device" in message
        assert half_written(case) == []
        expected = State.QUEUED if asked.read_text() else State.MISSING
        assert states(case) in ([], [expected] * 4)
    assert refused > 5
    assert states(case) == [State.QUEUED] * 4
    assert len(asked.read_text().splitlines()) == 1


def test_a_full_disk_while_the_code_is_copied_is_told(
    case: Case, command: Command, disk: Callable[[int], None], error: Callable[[], str]
) -> None:
    disk(20 * PAGE)
    assert command(case.submission()) == 2
    assert f"{case.folder.code} cannot be written (No space left on device)" in error()
    assert list(case.folder.code.iterdir()) == []
    disk(16 << 20)
    assert command(case.submission()) == 0


def test_runs_that_a_full_disk_ends_are_whole_and_go_on_when_there_is_room(
    case: Case, command: Command, disk: Callable[[int], None]
) -> None:
    case.write(steps=20)
    gate = case.root / "gate"
    sweep = begin(case.submission(), STUB_GATE=str(gate))
    wait_until("two runs", lambda: states(case).count(State.RUNNING) == 2, ended([sweep]))
    wait_until("begun", lambda: all(case.starts(name) for name in NAMES[:2]), ended([sweep]))
    disk(0)
    gate.touch()
    output, _ = sweep.communicate()
    assert sweep.returncode == 1
    assert f"the disk of {case.folder.path} is full" in output
    assert half_written(case) == []
    assert "Traceback" not in output
    assert not RESULTS & set(states(case))
    assert output.count(": not started: ") == states(case).count(State.MISSING)
    disk(16 << 20)
    assert command(case.submission()) == 0
    assert states(case) == [State.COMPLETED] * 4
    assert all(len(case.losses(name)) == 20 for name in NAMES)
