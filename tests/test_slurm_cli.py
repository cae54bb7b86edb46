"""``python -m slurm``: dry runs, submission to a Slurm, and what status shows."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from fake_runs import write_run
from slurm_cases import command as program
from slurm_cases import job, spec
from slurm_commands import NAMES, TESTS, Case, patched

from slurm import __main__ as cli
from slurm import show
from slurm.ledger import SweepFolder
from slurm.states import State, survey
from slurm.sweep import RunSpec
from train.run.folder import RunFolder

Command = Callable[[list[str]], int]


@pytest.fixture
def case(tmp_path: Path) -> Case:
    written = Case(tmp_path).write()
    text = 'kind = "slurm"\npartition = "p"\nprocesses_per_node = 1\nmax_parallel = 3\n'
    written.cluster.write_text(text)
    return written


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    return patched(monkeypatch)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm that queues every job until scancel; it notes in ``asked`` what it is asked for."""
    asked = tmp_path / "asked"
    asked.touch()
    sbatch = f"grep -o 'comment=.*' $1 | cut -d= -f2 > {tmp_path}/token; echo sbatch >> {asked}"
    queue = f'[ -e {tmp_path}/token ] && for i in 0 1 2 3; do echo "77_$i|PENDING|Priority|'
    programs = tmp_path / "bin"
    for name, text in (
        ("sbatch", sbatch + "; echo 'Submitted batch job 77'"),
        ("squeue", queue + f'1:00||$(cat {tmp_path}/token)"; done; true'),
        ("scancel", f"echo scancel $* >> {asked}; rm {tmp_path}/token"),
        ("sacct", "exit 1"),
        ("srun", "true"),
        ("scontrol", "echo 'MaxArraySize = 1001'"),
    ):
        program(programs, name, text, monkeypatch)
    return asked


def states(case: Case) -> list[State]:
    return [standing.state for standing in survey(case.folder, case.folder.runs())]


# Dry runs


def test_a_dry_run_prints_the_script_and_the_totals_and_touches_nothing(
    case: Case, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(case.submission("--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "#SBATCH --array=0-3%3" in printed
    assert all(f"--output-dir {case.folder.run(name)}" in printed for name in NAMES)
    assert printed.splitlines()[-1] == "in all: 4 jobs"
    assert not case.runs.exists()


def test_one_run_is_one_job(
    case: Case, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(case.submission("--dry-run", "--methods", "maxP", "--seeds", "1")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "debug: 1 job of 1 process, time unknown until a run has been measured" in lines
    assert lines[-1] == "in all: 1 job"


def test_a_dry_run_beside_finished_runs_knows_their_speed_and_still_touches_nothing(
    case: Case, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    # 3 steps of 8 sequences of 128 tokens, at one token per second
    records = [{"step": 3, "loss": 1.0, "tokens_per_second": 1.0}]
    write_run(case.folder.path, scale="debug", validation=5.0, records=records, name="r")
    before = {path: path.stat().st_mtime_ns for path in case.runs.rglob("*")}
    assert command(case.submission("--dry-run", "--set", "training.global_batch_size=8")) == 0
    hours = re.search(r"in all: 4 jobs, (\S+) process-hours", capsys.readouterr().out)
    assert hours
    assert float(hours[1]) == pytest.approx(4 * 3 * 8 * 128 / 3600, rel=0.01)
    assert {path: path.stat().st_mtime_ns for path in case.runs.rglob("*")} == before


def test_the_printed_local_commands_are_complete(
    case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.cluster.write_text('kind = "local"\nprocesses_per_node = 2\n')
    cli.main(case.submission("--dry-run"))
    first = capsys.readouterr().out.splitlines()[0]
    assert "--nproc-per-node=2" in first
    assert first.endswith(f"--checkpoint.enable --output-dir {case.folder.run(NAMES[0])}")


# Submission, cancelling, resuming


def test_a_submission_is_one_array_and_again_is_none(
    case: Case, command: Command, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(case.submission()) == 0
    assert command(case.submission()) == 0
    assert slurm.read_text().split() == ["sbatch"]
    printed = capsys.readouterr().out
    assert "4 of 4 runs to submit" in printed
    assert "0 of 4 runs to submit; the others: 4 queued" in printed


def test_cancelled_jobs_stay_so_until_they_are_resumed(
    case: Case, command: Command, slurm: Path
) -> None:
    command(case.submission())
    assert command(["cancel", str(case.folder.path)]) == 0
    assert slurm.read_text().splitlines()[-1] == "scancel 77_0 77_1 77_2 77_3"
    assert states(case) == [State.CANCELLED] * 4
    command(case.submission())
    assert states(case) == [State.CANCELLED] * 4
    assert command(["resume", str(case.folder.path), "--cluster", str(case.cluster)]) == 0
    assert states(case) == [State.QUEUED] * 4


def test_one_run_is_cancelled_by_name(case: Case, command: Command, slurm: Path) -> None:
    command(case.submission())
    command(["cancel", str(case.folder.path), "--runs", NAMES[2]])
    assert slurm.read_text().splitlines()[-1] == "scancel 77_2"


def test_jobs_that_are_gone_have_vanished_and_are_resumed_not_submitted(
    case: Case, command: Command, slurm: Path
) -> None:
    command(case.submission())
    (case.root / "token").unlink()
    assert states(case) == [State.VANISHED] * 4
    command(case.submission())
    assert slurm.read_text().split() == ["sbatch"]
    command(["resume", str(case.folder.path), "--cluster", str(case.cluster)])
    assert slurm.read_text().split() == ["sbatch", "sbatch"]


# Status


def test_status_for_scripts_has_a_line_a_run(
    case: Case, command: Command, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(case.submission())
    capsys.readouterr()
    assert command(["status", str(case.folder.path), "--format", "json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["run"] for record in records] == list(NAMES)
    known = {"state": "queued", "detail": "Priority", "job_id": "77_0", "steps": 3, "seed": 1}
    assert known.items() <= records[0].items()


def test_a_run_that_runs_shows_how_far_it_is(tmp_path: Path) -> None:
    folder = sweep(tmp_path, spec("a", steps=1000))
    running(folder, "a", {"step": 400, "loss": 3.25, "tokens_per_second": 2e5, "step_seconds": 6})
    (line,) = [x for x in show.lines(folder, survey(folder, folder.runs())) if x.startswith("a")]
    assert line.split() == ["a", "running", "400/1000", "3.250", "200,000", "1:00:00", "here"]


def test_corrupt_lines_of_a_run_that_runs_are_told(tmp_path: Path) -> None:
    folder = sweep(tmp_path, spec("a"))
    running(folder, "a", {"step": 4, "loss": 3.0}, '{"step": 5, "lo\n', {"step": 6, "loss": 2.0})
    with (folder.run("a") / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7,')  # is being written: not corrupt
    (line,) = [x for x in show.lines(folder, survey(folder, folder.runs())) if x.startswith("a")]
    assert line.endswith("here | 1 corrupt line in metrics.jsonl")
    assert "6/24" in line


def test_a_finished_run_shows_its_result(tmp_path: Path) -> None:
    folder = sweep(tmp_path, spec("a"))
    write_run(tmp_path / "s", name="a", validation=3.5, records=[{"step": 24, "loss": 3.6}])
    (line,) = [x for x in show.lines(folder, survey(folder, folder.runs())) if x.startswith("a")]
    assert line.endswith("3.600  validation loss 3.5000")


def test_lines_are_cut_to_the_terminal(tmp_path: Path) -> None:
    folder = sweep(tmp_path, spec("a"))
    folder.give("a", job(kind="local", pid=None))
    RunFolder(folder.run("a")).set_status("failed", step=1, reason="far too long " * 20)
    (_, line) = show.lines(folder, survey(folder, folder.runs()), width=60)
    assert len(line) == 60
    assert line.endswith("…")


def test_of_many_runs_those_that_need_somebody_are_listed_and_the_rest_counted(
    tmp_path: Path,
) -> None:
    runs = [spec(f"r{number}") for number in range(show.LISTED + 50)]
    folder = sweep(tmp_path, *runs)
    for run in runs[10:13]:
        folder.give(run.name, job(kind="local", pid=None))
        RunFolder(folder.run(run.name)).set_status("failed", step=1, reason="no memory")
    standings = survey(folder, runs)
    printed = show.lines(folder, standings)
    assert [line.split()[0] for line in printed] == ["run", "r10", "r11", "r12", "not"]
    assert printed[-1] == f"not listed: {show.LISTED + 47} missing; --all lists them"
    assert len(show.lines(folder, standings, everything=True)) == len(runs) + 1


def test_status_says_what_to_do_next(
    case: Case, command: Command, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(case.submission())
    (case.root / "token").unlink()
    RunFolder(case.folder.run(NAMES[0])).set_status("failed", step=1, reason="no memory")
    capsys.readouterr()
    command(["status", str(case.folder.path)])
    printed = capsys.readouterr().out
    assert "4 runs: 3 vanished, 1 failed" in printed
    assert f"python -m slurm resume {case.folder.path}" in printed
    assert f"python -m slurm retry {case.folder.path}" in printed


def test_advised_commands_can_be_pasted_where_a_folder_has_a_space(tmp_path: Path) -> None:
    runs = [spec(name) for name in ("missing", "failed", "completed")]
    folder = sweep(tmp_path / "my runs", *runs)
    for run in runs[1:]:
        folder.give(run.name, job(kind="local", pid=None))
        RunFolder(folder.run(run.name)).set_status(run.name, step=1)  # type: ignore[arg-type]
    commands = [line.partition(": ")[2] for line in show.advice(folder, survey(folder, runs))]
    assert len(commands) == 3
    for command in commands:
        assert shlex.split(command)[4:] == [str(folder.path)]


def test_watching_ends_when_nothing_is_left_that_goes_on(
    case: Case, command: Command, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(case.submission())
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            (case.root / "token").unlink()

    monkeypatch.setattr(cli, "time", SimpleNamespace(sleep=sleep))
    assert command(["status", str(case.folder.path), "--watch", "7"]) == 0
    assert looks == [7.0] * 3


def test_watching_outlives_a_slurm_that_is_restarted(
    case: Case,
    command: Command,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command(case.submission())
    program(case.root / "bin", "squeue", "echo 'slurm_load_jobs error' >&2; exit 1", monkeypatch)
    monkeypatch.setattr(
        cli,
        "time",
        SimpleNamespace(sleep=lambda _: program(case.root / "bin", "squeue", "true", monkeypatch)),
    )
    assert command(["status", str(case.folder.path), "--watch", "1"]) == 0
    assert "squeue failed: slurm_load_jobs error; asking again" in capsys.readouterr().err


def test_a_sweep_file_is_found_in_the_clusters_runs_dir(
    case: Case, command: Command, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(case.root))
    monkeypatch.chdir(case.root)
    clusters = case.root / "maxp" / "clusters"
    clusters.mkdir(parents=True)
    text = f'{case.cluster.read_text()}runs_dir = "{case.root / "scratch"}"\n'
    (clusters / "ours.toml").write_text(text)
    assert command(["submit", str(case.sweep), "--cluster", "ours"]) == 0
    for asked in ("status", "cancel", "resume", "retry"):
        assert command([asked, str(case.sweep)]) == 0
    assert SweepFolder(case.root / "scratch" / "s").runs()


def test_a_sweep_file_of_two_sweeps_is_not_chosen_for_the_user(
    case: Case,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = [case.root / "one", case.root / "two"]
    monkeypatch.setattr(cli, "runs_dirs", lambda: places)
    for place in places:
        sweep(place, spec("a"))
    assert command(["status", str(case.sweep)]) == 2
    error = capsys.readouterr().err
    assert f"{places[0] / 's'} and {places[1] / 's'} both hold this sweep: pass --runs-dir" in error


# scripts/run_sweep.sh and run_debug.sh


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A copy of the scripts beside the configurations, in which env.sh makes no environment."""
    (tmp_path / "scripts").mkdir()
    file = tmp_path / "scripts" / "run_sweep.sh"
    file.write_text((TESTS.parent / "scripts" / "run_sweep.sh").read_text())
    (tmp_path / "scripts" / "env.sh").write_text(f"set -eu\ncd {TESTS.parent}\n")
    return file


def echo_python(script: Path, *, skip: int) -> None:
    """Give the scripts a python that prints its arguments without the first ones."""
    program = script.parent / "python"
    program.write_text(f'#!/bin/sh\nshift {skip}\necho "$@"\n')
    program.chmod(0o755)
    with script.with_name("env.sh").open("a") as file:
        file.write(f"PATH={script.parent}:$PATH\n")


def test_the_debug_script_prints_the_table_of_its_own_runs_dir(script: Path) -> None:
    debug = script.with_name("run_debug.sh")
    debug.write_text((TESTS.parent / "scripts" / "run_debug.sh").read_text())
    echo_python(script, skip=2)
    for words in (["--runs-dir", "a b"], ["--runs-dir=a b"]):
        submitted, shown = shell(debug, "--seeds", "2", *words).stdout.splitlines()
        assert submitted == f"submit configs/sweeps/quick.toml --seeds 2 {' '.join(words)}"
        assert shown == f"table configs/sweeps/quick.toml {' '.join(words)}"
    assert shell(debug).stdout.splitlines()[1] == "table configs/sweeps/quick.toml"


def test_the_alignment_script_measures_and_then_writes_the_table(script: Path) -> None:
    freeze = script.with_name("freeze_alignment.sh")
    freeze.write_text((TESTS.parent / "scripts" / "freeze_alignment.sh").read_text())
    echo_python(script, skip=1)
    to = script.parent / "a b.json"
    assert shell(freeze, str(to), "--statistic", "mean").stdout.splitlines() == [
        "slurm submit configs/sweeps/alignment.toml",
        f"train.alignment_table runs/alignment --to {to} --statistic mean",
    ]
    assert "usage: scripts/freeze_alignment.sh FILE" in shell(freeze).stderr


def test_a_sweep_for_gpus_is_refused_on_a_machine_that_has_none(script: Path) -> None:
    done = shell(script, "s3")
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: scale.s3: gpus_per_node 8: cluster local has no GPUs: pass --cluster NAME"
    )


def test_the_script_submits_42_jobs_for_s3(script: Path) -> None:
    done = shell(script, "s3", "--cluster", "example_h100", "--dry-run")
    assert "#SBATCH --array=0-41%" in done.stdout
    assert re.search(r"in all: 42 jobs, \d+ GPU-hours$", done.stdout.strip())


def test_the_script_without_arguments_names_the_sweeps_in_one_line(script: Path) -> None:
    (line,) = shell(script).stdout.splitlines()
    files = (TESTS.parent / "configs" / "sweeps").glob("*.toml")
    assert {file.stem for file in files} <= set(line.split())


def test_the_script_refuses_an_unknown_sweep(script: Path) -> None:
    done = shell(script, "s9")
    assert done.returncode == 2
    assert "error: s9: no such sweep in configs/sweeps: choose from" in done.stderr


def shell(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True)


def sweep(tmp_path: Path, *runs: RunSpec) -> SweepFolder:
    folder = SweepFolder(tmp_path / "s")
    with folder.lock():
        folder.enter("s", runs)
    return folder


def running(folder: SweepFolder, name: str, *records: dict[str, object] | str) -> None:
    """A run that this process says it runs, with these lines of metrics."""
    folder.give(name, job(kind="local", job_id=None).owned_by(psutil.Process()))
    run = RunFolder(folder.run(name))
    run.set_status("running", step=1)
    lines = [x if isinstance(x, str) else json.dumps(x) + "\n" for x in records]
    (run.path / "metrics.jsonl").write_text("".join(lines))
