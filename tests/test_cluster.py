"""Cluster files: found by name, checked, and what a job takes of them."""

from dataclasses import fields
from pathlib import Path

import pytest

from slurm import cluster
from slurm.cluster import Cluster, known_clusters, load_cluster
from slurm.config_file import ConfigError
from slurm.resources import Resources
from slurm.sweep import expand, load_sweep

ROOT = Path(__file__).parents[1]
GPU = Cluster(name="gpu", kind="slurm", gpus_per_node=4, max_time="1-00:00:00")


@pytest.fixture(autouse=True)
def users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = tmp_path / "config" / "maxp" / "clusters"
    folder.mkdir(parents=True)
    return folder


def load(tmp_path: Path, text: str) -> Cluster:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return load_cluster(file)


@pytest.mark.parametrize("name", ["local", "local_slurm", "example_h100"])
def test_a_shipped_cluster_is_found_by_name(name: str) -> None:
    assert load_cluster(name).name == name


def test_the_example_has_every_key_in_it() -> None:
    text = (ROOT / "configs/clusters/example_h100.toml").read_text()
    keys = {field.name for field in fields(Cluster)} - {"name"}
    missing = [key for key in keys if key not in text]
    assert missing == []


def test_the_example_does_not_forbid_the_network_that_its_scales_stream_from() -> None:
    assert not any("OFFLINE" in line for line in load_cluster("example_h100").setup)


def test_the_image_is_built_from_files_of_the_repository_with_its_constraints() -> None:
    lines = (ROOT / "configs/clusters/Dockerfile").read_text().splitlines()
    (copied,) = [line.split()[1:-1] for line in lines if line.startswith("COPY")]
    assert [name for name in copied if not (ROOT / name).is_file()] == []
    assert (
        sum("pip install" in line and "--constraint constraints.txt" in line for line in lines) == 2
    )


def test_a_users_cluster_is_found_by_name(users_folder: Path) -> None:
    (users_folder / "ours.toml").write_text('kind = "slurm"\ngpus_per_node = 2')
    assert load_cluster("ours").gpus_per_node == 2


def test_an_unknown_name_lists_the_known_ones(users_folder: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        load_cluster("nowhere")
    assert str(refused.value) == (
        "--cluster nowhere: unknown: choose from example_h100, local, local_slurm, or put "
        f"nowhere.toml into {users_folder}"
    )


def test_a_name_in_both_folders_is_not_chosen_for_the_user(users_folder: Path) -> None:
    (users_folder / "local.toml").write_text('kind = "local"')
    assert len(known_clusters()["local"]) == 2
    with pytest.raises(ConfigError, match=r"--cluster local: both .* pass the path"):
        load_cluster("local")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus_per_node = 8", "kind: missing: add it"),
        ('kind = "pbs"', "kind: should be 'slurm' or 'local', not \"pbs\""),
        ('kind = "slurm"', "gpus_per_node: missing: add it, or processes_per_node"),
        ('kind = "local"\npartitoin = "a"', "partitoin: unknown key: did you mean partition?"),
        ('kind = "local"\ngpus_per_node = "8"', "gpus_per_node: should be a valid integer"),
        ('kind = "local"\ngpus_per_node = -1', "gpus_per_node: -1: must not be negative"),
        ('kind = "local"\nmax_parallel = 0', "max_parallel: 0: must be at least 1"),
        ('kind = "local"\nmem_per_node = "lots"', "mem_per_node: 'lots': write a number"),
        ('kind = "local"\nmax_time = "1h"', "max_time: '1h' is no time"),
        ('kind = "local"\nmfu = 1.5', "mfu: 1.5: must be in (0, 1]"),
        ('kind = "local"\ncpus_per_gpu = 4', "cpus_per_gpu: there are no GPUs"),
        (
            'kind = "local"\ngpus_per_node = 1\nprocesses_per_node = 4',
            "processes_per_node: there is one process per GPU: remove it",
        ),
        (
            'kind = "local"\ngpus_per_node = 1\nmem_per_gpu = "1G"\nmem_per_node = "1G"',
            "mem_per_node: excludes mem_per_gpu",
        ),
        (
            'kind = "local"\n[sbatch]\npartition = "a"',
            "sbatch.partition: has its own key: use partition",
        ),
        ('kind = "local"\n[sbatch]\n"--array" = "1-2"', "sbatch.--array: is set for each job"),
        ('kind = "local"\nstr = 1', "str: unknown key: remove it"),
        ('kind = "local"\n"a\\nb" = 1', "a b: unknown key: remove it"),
        ('kind = "local"\naccount = "a\\nb"', "account: 'a\\nb': holds a line break"),
        ('kind = "local"\nmem_per_node = "٣G"', "mem_per_node: '٣G': write a number"),
        ('kind = "local"\nmax_time = "٠١:00:00"', "max_time: '٠١:00:00' is no time"),
        ('kind = "local"\nmax_parallel = 9223372036854775808', "max_parallel: holds a number of"),
        ('kind = "local"\nsetup = ["\\u0000"]', "setup: holds a null character"),
        ('kind = "local"\nx = 0x' + "f" * 5000, "x: holds a number of more than 64 bits"),
        ('kind = "local"\nx = ' + "9" * 5000, "not valid TOML (Exceeds the limit"),
        ('kind = "local"\nx = ' + "[" * 5000, "not valid TOML (maximum recursion depth"),
        ('kind = "local"\nx' + ".y" * 5000 + " = 1", "x: has more than 20 levels"),
        ('kind = "local"\n[sbatch]\n"" = 1', "sbatch.: is no option of sbatch"),
        (
            'kind = "local"\n[sbatch]\nmem-bind = "a"\nmem_bind = "b"',
            "sbatch.mem_bind: is there twice",
        ),
        ('kind = "local"\n[sbatch]\nx = [1]', "sbatch.x: should be a valid string"),
        (
            'kind = "local"\n[container]\nkind = "docker"\nimage = "a"',
            "container.kind: should be 'pyxis' or 'apptainer'",
        ),
        (
            'kind = "local"\n[container]\nkind = "pyxis"\nimage = "a"\nmounts = ["/a"]',
            "container.mounts: '/a': write \"HOST:CONTAINER\"",
        ),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    line = str(refused.value)
    assert message in line
    assert line.startswith(f"{tmp_path / 'mine.toml'}: ")
    assert "\n" not in line


def test_a_job_takes_all_gpus_of_a_node_unless_it_says_how_many() -> None:
    assert (GPU.gpus(Resources()), GPU.processes(Resources())) == (4, 4)
    assert (GPU.gpus(Resources(gpus_per_node=2)), GPU.processes(Resources(gpus_per_node=2))) == (
        2,
        2,
    )


def test_without_gpus_the_cluster_says_how_many_processes() -> None:
    cpu = Cluster(name="cpu", kind="slurm", processes_per_node=3)
    asked = Resources(gpus_per_node=8)  # what a sweep for GPUs says
    assert (cpu.gpus(asked), cpu.processes(asked)) == (0, 3)


@pytest.mark.parametrize(
    ("where", "asked", "message"),
    [
        (GPU, Resources(gpus_per_node=8), "gpus_per_node 8: cluster gpu has 4"),
        (GPU, Resources(time="1-00:00:01"), "time 1-00:00:01: over max_time 1-00:00:00"),
        (GPU, Resources(time="00:05:00"), "time 00:05:00: not over signal_lead_seconds 300"),
        (Cluster("here", "local"), Resources(nodes=2), "nodes 2: cluster here is a single machine"),
        (
            Cluster("here", "local"),
            Resources(gpus_per_node=1),
            "gpus_per_node 1: cluster here has",
        ),
    ],
)
def test_a_job_that_can_never_start_is_refused(
    where: Cluster, asked: Resources, message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        where.check(asked, "s3")
    assert str(refused.value).startswith(f"scale.s3: {message}")


def test_a_job_at_the_limit_is_allowed() -> None:
    GPU.check(Resources(nodes=9, gpus_per_node=4, time="24:00:00"), "s3")


@pytest.mark.parametrize("name", ["s1", "s2", "s3", "s4", "s5", "ladder", "width"])
def test_the_shipped_sweeps_fit_the_example_cluster(name: str) -> None:
    sweep = load_sweep(ROOT / f"configs/sweeps/{name}.toml")
    example = cluster.load_cluster("example_h100")
    for scale in sweep.scales:
        example.check(sweep.resources[scale], scale)


@pytest.mark.parametrize("scale", ["s1", "s2", "s3"])
def test_the_ladder_gives_a_scale_what_its_own_sweep_gives_it(scale: str) -> None:
    ladder, own = (load_sweep(ROOT / f"configs/sweeps/{name}.toml") for name in ("ladder", scale))
    assert ladder.resources[scale] == own.resources[scale]
    runs = [run for run in expand(ladder) if run.scale == scale]
    assert [run.identity for run in runs] == [run.identity for run in expand(own)]
