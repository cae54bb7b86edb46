"""What Slurm is asked for, and that nothing is lost when it refuses."""

from __future__ import annotations

import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from slurm_cases import command, job, spec

from slurm.cluster import Cluster, Container
from slurm.executor import SubmissionError
from slurm.job import TrainingJob, master_port, rank_environment
from slurm.job import command as job_command
from slurm.ledger import SweepFolder
from slurm.resources import Resources
from slurm.sbatch import Batch, parameters, script
from slurm.snapshot import Snapshot
from slurm.states import State, survey
from slurm.submit import SlurmExecutor, batches
from slurm.task import Task, task

GPUS = Cluster(
    name="big", kind="slurm", account="me", partition="gpu", gpus_per_node=8, cpus_per_gpu=12,
    mem_per_gpu="100G", max_parallel=4, signal_lead_seconds=240, sbatch={"exclusive": True},
)  # fmt: skip
CPUS = Cluster(name="c", kind="slurm", partition="main", processes_per_node=2, cpus_per_process=3)


def options(cluster: Cluster, *runs: Any) -> dict[str, str]:
    """The #SBATCH lines of the script for some runs."""
    batch = Batch(runs or (spec("a"),), "t1")
    text = script(cluster, batch, SweepFolder(Path("runs/s")), Path("code"))
    lines = [x.removeprefix("#SBATCH --") for x in text.splitlines() if x.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_a_gpu_node_is_asked_for_as_the_cluster_file_says() -> None:
    asked = options(GPUS, spec("a", resources=Resources(nodes=2, time="03:00:00")))
    wanted = {
        "account": "me", "partition": "gpu", "nodes": "2", "ntasks-per-node": "1",
        "gpus-per-node": "8", "cpus-per-task": "96", "mem-per-gpu": "100G", "time": "180",
        "signal": "USR2@240", "comment": "t1", "exclusive": "", "requeue": "", "job-name": "s",
    }  # fmt: skip
    assert wanted.items() <= asked.items()
    assert "array" not in asked
    assert "wckey" not in asked


def test_with_srun_there_is_one_task_a_gpu() -> None:
    cluster = Cluster(name="c", kind="slurm", gpus_per_node=8, cpus_per_gpu=12, launcher="srun")
    assert {"ntasks-per-node": "8", "cpus-per-task": "12"}.items() <= options(cluster).items()


def test_gpus_may_be_asked_for_as_gres_and_by_type() -> None:
    cluster = Cluster(name="c", kind="slurm", gpus_per_node=4, gpu_request="gres", gpu_type="h100")
    asked = options(cluster)
    assert asked["gres"] == "gpu:h100:4"
    assert "gpus-per-node" not in asked


def test_without_gpus_the_processes_get_their_cores() -> None:
    asked = options(CPUS)
    assert asked["cpus-per-task"] == "6"
    assert not {"gres", "gpus-per-node", "mem-per-gpu"} & asked.keys()


def test_several_runs_are_one_array_with_the_limit_on_parallel_jobs() -> None:
    assert options(GPUS, *(spec(f"r{i}") for i in range(10)))["array"] == "0-9%4"


def test_the_step_gets_the_cores_that_srun_does_not_take_over() -> None:
    text = script(GPUS, Batch((spec("a"),), "t"), SweepFolder(Path("r")), Path("c"))
    (line,) = [x for x in text.splitlines() if x.startswith("srun")]
    assert "--cpus-per-task=96" in line
    assert "--kill-on-bad-exit=1" in line


def test_set_up_lines_come_before_python_is_pointed_at_the_snapshot() -> None:
    cluster = Cluster(name="c", kind="slurm", gpus_per_node=1, setup=("module load x",))
    folder = SweepFolder(Path("runs/s"))
    setup = parameters(cluster, Batch((spec("a"),), "t"), folder, Path("code"))["setup"]
    assert setup[0] == "module load x"
    assert any(line.startswith("export PYTHONPATH=code") for line in setup[1:])


def test_a_path_with_signs_of_the_shell_in_it_is_exported_as_it_is() -> None:
    code = Path("/it's a $HOME")
    batch = Batch((spec("a"),), "t")
    setup = parameters(CPUS, batch, SweepFolder(Path("runs/s")), code)["setup"]
    shell = "\n".join([*setup, 'printf %s "$PYTHONPATH"'])
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.split(":")[0] == str(code)


@pytest.mark.parametrize("runs", [1, 2])
def test_a_dry_run_shows_the_script_that_submitit_submits(
    runs: int, folder: SweepFolder, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also fails where submitit has lost the private function that makes the script."""
    keep = f"cp $1 {folder.path}/submitted; echo 'Submitted batch job 77'"
    command(slurm, "sbatch", keep, monkeypatch)
    give(folder, *(spec(f"r{i}") for i in range(runs)))
    submitted = (folder.path / "submitted").read_text()
    token = re.search("comment=(.*)", submitted)
    assert token
    batch = Batch(tuple(spec(f"r{i}") for i in range(runs)), token[1])
    assert script(CPUS, batch, folder, folder.path / "code") == submitted


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("pyxis", ("--container-image=img", "--container-mounts=/a:/a,", "python3 -u -m submitit")),
        ("apptainer", ("apptainer exec --nv --bind /a:/a --bind ", " img python3 -u -m submitit")),
    ],
)
def test_a_container_is_started_by_its_own_tool(kind: Any, words: tuple[str, ...]) -> None:
    container = Container(kind=kind, image="img", mounts=("/a:/a",))
    cluster = Cluster(name="c", kind="slurm", gpus_per_node=1, container=container)
    text = script(cluster, Batch((spec("a"),), "t"), SweepFolder(Path("r")), Path("c"))
    assert all(word in text for word in words)


@pytest.mark.parametrize(
    ("mounts", "added"),
    [
        ((), ["/code:/code", "/runs/s:/runs/s"]),
        (("/:/host",), ["/code:/code", "/runs/s:/runs/s"]),
        (("/runs:/runs",), ["/code:/code"]),
        (("/disk/code:/code", "/disk/runs:/runs"), []),
    ],
)
def test_a_container_has_the_working_folder_and_the_sweeps(
    mounts: tuple[str, ...], added: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "cwd", lambda: Path("/code"))
    container = Container(kind="pyxis", image="img", mounts=mounts)
    cluster = Cluster(name="c", kind="slurm", gpus_per_node=1, container=container)
    batch = Batch((spec("a"),), "t")
    words = parameters(cluster, batch, SweepFolder(Path("/runs/s")), Path("c"))["srun_args"]
    (given,) = [word for word in words if word.startswith("--container-mounts=")]
    assert given.removeprefix("--container-mounts=").split(",") == [*mounts, *added]


def test_runs_that_ask_for_other_nodes_are_another_array_and_none_is_too_long() -> None:
    small = [spec(f"a{i}") for i in range(5)]
    large = [spec(f"b{i}", scale="s1", resources=Resources(nodes=2)) for i in range(2)]
    names = [[run.name for run in batch.runs] for batch in batches([*small, *large], 3)]
    assert names == [["a0", "a1", "a2"], ["a3", "a4"], ["b0", "b1"]]


def test_a_job_saves_checkpoints_unless_the_sweep_says_otherwise() -> None:
    folder = SweepFolder(Path("runs/s"))
    plain = task(spec("a"), CPUS, folder, Path("code"), Path("."))
    assert "--checkpoint.enable" in plain.arguments
    without = spec("a", arguments=("--checkpoint.no_enable",))
    arguments = task(without, CPUS, folder, Path("code"), Path(".")).arguments
    assert "--checkpoint.enable" not in arguments
    assert arguments[-1] == str(Path.cwd() / "runs/s/a")


# What a task of the job starts


class Here:
    """As much of `submitit.JobEnvironment` as a job asks."""

    raw_job_id, hostnames = "123", ["localhost", "other"]
    num_nodes, node, num_tasks, global_rank, local_rank = 2, 1, 16, 11, 3


def a_task(launcher: Any) -> Task:
    return Task("a", ("--scale", "s1"), "code", ".", 8, launcher)


def test_torchrun_is_told_the_nodes_and_a_port_of_the_job() -> None:
    words = job_command(a_task("torchrun"), Here())  # type: ignore[arg-type]
    port = f"--master-port={master_port('123')}"
    assert {"--nnodes=2", "--node-rank=1", "--nproc-per-node=8", port} < {*words}


def test_under_srun_each_task_is_a_rank() -> None:
    ranks = rank_environment(a_task("srun"), Here())  # type: ignore[arg-type]
    assert (ranks["RANK"], ranks["LOCAL_RANK"], ranks["WORLD_SIZE"]) == ("11", "3", "16")
    assert ranks["MASTER_ADDR"] == "localhost"


def test_jobs_of_neighbouring_numbers_have_different_ports() -> None:
    assert len({master_port(str(number)) for number in range(500)}) == 500


def test_a_job_can_be_pickled_while_it_trains() -> None:
    running = TrainingJob(a_task("srun"))
    running._child = open("/dev/null")  # type: ignore[assignment] # noqa: SIM115
    assert pickle.loads(pickle.dumps(running)).task == running.task


# Refusals


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    sweep = SweepFolder(tmp_path / "runs" / "s")
    sweep.path.mkdir(parents=True)
    return sweep


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Slurm whose sbatch refuses and whose queue is empty."""
    programs = tmp_path / "bin"
    for name, text in (
        ("squeue", "true"),
        ("srun", "true"),
        ("scontrol", "echo 'MaxArraySize = 1001'"),
        ("sbatch", "echo 'sbatch: error: invalid partition specified: x' >&2; exit 1"),
    ):
        command(programs, name, text, monkeypatch)
    return programs


def give(folder: SweepFolder, *runs: Any) -> None:
    code = Snapshot(folder.path / "code", None)
    SlurmExecutor(folder, CPUS).start(runs, code, frozenset(State))


def test_when_sbatch_refuses_its_words_are_told_and_nothing_is_left(
    folder: SweepFolder, slurm: Path
) -> None:
    with pytest.raises(SubmissionError, match=r"refused .*invalid partition specified: x"):
        give(folder, spec("a"), spec("b"))
    assert not folder.run("a").exists()
    assert [s.state for s in survey(folder, [spec("a"), spec("b")])] == [State.MISSING] * 2


def test_a_run_that_had_a_job_before_keeps_its_record_when_sbatch_refuses(
    folder: SweepFolder, slurm: Path
) -> None:
    folder.give("a", job(cancelled=True))
    (folder.run("a") / "status.json").write_text('{"state": "preempted", "step": 3}')
    with pytest.raises(SubmissionError):
        give(folder, spec("a"))
    assert folder.job("a") == job(cancelled=True)
    assert survey(folder, [spec("a")])[0].status["state"] == "preempted"


def test_jobs_that_slurm_took_although_sbatch_failed_stay_submitted(
    folder: SweepFolder, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The answer was lost on the way: the queue shows every token that was ever asked for.
    text = 'for f in $(grep -ho \'"token": "[^"]*\' RUNS/*/job.json | cut -d\'"\' -f4); do'
    text += ' echo "5|PENDING|None|1:00||$f"; done'
    command(slurm, "squeue", text.replace("RUNS", str(folder.path)), monkeypatch)
    with pytest.raises(SubmissionError):
        give(folder, spec("a"))
    assert [s.state for s in survey(folder, [spec("a")])] == [State.QUEUED]


def test_accepted_runs_know_their_jobs_and_say_that_they_are_queued(
    folder: SweepFolder, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(slurm, "sbatch", "echo 'Submitted batch job 77'", monkeypatch)
    give(folder, spec("a"), spec("b"))
    records = [folder.job(name) for name in ("a", "b")]
    assert [record.job_id for record in records if record] == ["77_0", "77_1"]
    assert '"queued"' in (folder.run("a") / "status.json").read_text()
