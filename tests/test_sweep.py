"""Sweep files: what they expand to, and what of them is refused."""

import itertools
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from torchtitan.models.common import compute_ffn_hidden_dim

from slurm.cluster import Cluster
from slurm.config_file import ConfigError
from slurm.estimate import estimate, measured_speeds
from slurm.resources import Resources, parse_time
from slurm.sweep import Overrides, Sweep, expand, load_sweep
from train.cli import Flags, parse
from train.model import costs
from train.model.scales import SCALES, compute_steps
from train.run.folder import RunFolder

ROOT = Path(__file__).parents[1]
SHIPPED = sorted((ROOT / "configs" / "sweeps").glob("*.toml"))
BASIC = """
scales = ["debug", "cpu128"]
methods = ["maxP", "mup-no"]
lrs = [1e-2, 0.025]
seeds = [1, 2]
"""


def sweep(tmp_path: Path, text: str, *overrides: str) -> Sweep:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    return load_sweep(file, overrides)


def value_of(arguments: tuple[str, ...], flag: str) -> str:
    return arguments[arguments.index(flag) + 1]


def test_a_sweep_is_every_combination_once(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC))
    expected = itertools.product(["debug", "cpu128"], ["maxP", "mup-no"], [0.01, 0.025], [1, 2])
    loaded = [(run.scale, run.method, run.lr, run.seed) for run in runs]
    assert sorted(loaded) == sorted(expected)
    assert len({run.name for run in runs}) == len({run.identity for run in runs}) == 16


def test_a_run_has_a_readable_name(tmp_path: Path) -> None:
    names = {run.name for run in expand(sweep(tmp_path, BASIC))}
    assert {"debug_maxP_lr1e-02_seed1", "cpu128_mup-no_lr0.025_seed2"} <= names


def test_the_command_line_is_one_that_the_trainer_reads(tmp_path: Path, corpus_cache: Path) -> None:
    text = f"""{BASIC}
    [flags]
    training.local_batch_size = 2
    checkpoint.enable = true
    "maxp.warm-start" = false
    checkpoint.exclude_from_loading = ["dataloader", "lr_scheduler"]
    """
    run = expand(sweep(tmp_path, text, "--steps", "7"))[0]
    config = parse([*run.arguments, "--output-dir", str(tmp_path / "run")])
    assert (config.scale, config.maxp.method, config.maxp.lr) == (run.scale, run.method, run.lr)
    assert (config.debug.seed, config.training.steps) == (run.seed, 7)
    assert config.training.local_batch_size == 2
    assert (config.checkpoint.enable, config.maxp.warm_start) == (True, False)
    assert config.checkpoint.exclude_from_loading == ["dataloader", "lr_scheduler"]


def test_steps_left_out_are_those_of_the_scale(tmp_path: Path) -> None:
    runs = expand(sweep(tmp_path, BASIC))
    assert {run.scale: run.steps for run in runs} == {
        scale: compute_steps(SCALES[scale]) for scale in ("debug", "cpu128")
    }


def test_a_scale_has_its_own_steps_flags_and_resources(tmp_path: Path) -> None:
    text = f"""{BASIC}
    steps = 100
    [flags]
    training.seq_len = 64
    training.local_batch_size = 4
    [resources]
    nodes = 2
    time = "01:00:00"
    [scale.cpu128]
    steps = 50
    gpus_per_node = 3
    [scale.cpu128.flags]
    training.local_batch_size = 2
    """
    loaded = sweep(tmp_path, text)
    assert loaded.steps == {"debug": 100, "cpu128": 50}
    assert loaded.flags["debug"]["training.local_batch_size"] == 4
    assert loaded.flags["cpu128"] == {"training.seq_len": 64, "training.local_batch_size": 2}
    assert loaded.resources == {
        "debug": Resources(2, None, "01:00:00"),
        "cpu128": Resources(2, 3, "01:00:00"),
    }


def test_identity_is_the_configuration_and_not_its_spelling(tmp_path: Path) -> None:
    nested = expand(sweep(tmp_path, BASIC + "[flags.training]\nseq_len = 64\n[flags]\nx = 1"))
    dotted = expand(
        sweep(tmp_path, 'name = "other"\n' + BASIC + '[flags]\nx = 1\n"training.seq-len" = 64')
    )
    assert [run.identity for run in nested] == [run.identity for run in dotted]


@pytest.mark.parametrize("change", [["--steps", "9"], ["--set", "training.seq_len=32"]])
def test_another_configuration_is_another_identity(tmp_path: Path, change: list[str]) -> None:
    here = {run.identity for run in expand(sweep(tmp_path, BASIC))}
    there = {run.identity for run in expand(sweep(tmp_path, BASIC, *change))}
    assert not here & there


@pytest.mark.parametrize(
    "flag",
    [
        "training.local_batch_size=2",
        "compile.enable=true",
        "metrics.log_freq=3",
        "checkpoint.interval=7",
        "parallelism.data_parallel_shard_degree=1",
    ],
)
def test_what_is_no_part_of_the_trainers_identity_is_none_of_a_sweeps(
    tmp_path: Path, flag: str
) -> None:
    here, there = expand(sweep(tmp_path, BASIC)), expand(sweep(tmp_path, BASIC, "--set", flag))
    assert [run.identity for run in here] == [run.identity for run in there]


def test_a_batch_of_one_microbatch_per_process_is_part_of_the_identity(tmp_path: Path) -> None:
    batch = ["--set", "training.global_batch_size=-1", "--set", "training.local_batch_size="]
    here, there = (
        {run.identity for run in expand(sweep(tmp_path, BASIC, *batch[:-1], batch[-1] + size))}
        for size in ("2", "4")
    )
    assert not here & there


def test_the_resources_are_no_part_of_the_identity(tmp_path: Path) -> None:
    here = expand(sweep(tmp_path, BASIC))
    there = expand(sweep(tmp_path, BASIC + "[resources]\nnodes = 3"))
    assert [run.identity for run in here] == [run.identity for run in there]


def test_overrides_replace_what_the_file_says(tmp_path: Path) -> None:
    words = "--lrs 1e-3 --methods sp --scales cpu128 --seeds 7 8 --steps 5 --set a.b=text"
    loaded = sweep(tmp_path, BASIC + "[scale.debug]\nsteps = 3", *words.split(), "--set", "c=2")
    assert (loaded.scales, loaded.methods, loaded.lrs) == (("cpu128",), ("sp",), (1e-3,))
    assert (loaded.seeds, loaded.steps) == ((7, 8), {"cpu128": 5})
    assert loaded.flags == {"cpu128": {"a.b": "text", "c": 2}}


def test_overrides_can_be_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(BASIC)
    assert load_sweep(tmp_path / "a.toml", Overrides(seeds=(5,))).seeds == (5,)


def test_only_a_method_that_needs_it_is_given_the_table(tmp_path: Path) -> None:
    text = BASIC.replace('"mup-no"', '"maxP-frozen"') + '[flags]\nalignment_table = "t.json"'
    having = {run.method for run in expand(sweep(tmp_path, text)) if "t.json" in run.arguments}
    assert having == {"maxP-frozen"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds", "seds", "seds: unknown key: did you mean seeds?"),
        ('"debug"', '"other"', "scales: 'other' is unknown: choose from debug, s1, s2"),
        ('"debug"', '"dbug"', "scales: 'dbug' is unknown: did you mean debug?"),
        ('"maxP"', '"maxp"', "methods: 'maxp' is unknown: did you mean maxP?"),
        ("[1, 2]", "[]", "seeds: empty: give at least one"),
        ("[1, 2]", "[1, -2]", "seeds: -2: must not be negative"),
        ("[1, 2]", "[1, 1]", "seeds: 1 is there twice"),
        ("[1, 2]", "[true]", "seeds.0: should be a valid integer, not true"),
        ("[1, 2]", "1", "seeds: should be a valid"),
        ("0.025", "1e-2", "lrs: 0.01 is there twice: remove one"),
        ("0.025", "0", "lrs: 0.0: must be positive"),
        ("0.025", "nan", "lrs"),
        ("0.025", '"0.025"', 'lrs.1: should be a valid number, not "0.025"'),
        ("seeds = [1, 2]", "", "seeds: missing: add it"),
        ("seeds = [1, 2]", "seeds = [1, 2", "not valid TOML"),
        ("\nscales", "\nsteps = 0\nscales", "steps: 0: must be at least 1"),
        ("\nscales", '\nname = "a/b"\nscales', "name: 'a/b': use only letters"),
        ("[1, 2]", "[1]\n[resources]\ntime = '90'", "resources.time: '90' is no time"),
        ("[1, 2]", "[1]\n[resources]\nnodes = 0", "resources.nodes: 0: must be at least 1"),
        (
            "[1, 2]",
            "[1]\n[resources]\nnode = 1",
            "resources.node: unknown key: did you mean nodes?",
        ),
        ("[1, 2]", "[1]\n[scale.s1]\nnodes = 1", "scale.s1: not one of scales"),
        ("[1, 2]", "[1]\n[scale.debug]\ntime = 'x'", "scale.debug.time: 'x' is no time"),
        ("[1, 2]", "[1]\n[flags]\nlr = 1", "flags.lr: is set by the sweep: use lrs"),
        ("[1, 2]", "[1]\n[flags]\ntraining.steps = 1", "flags.training.steps: is set by the sweep"),
        (
            "[1, 2]",
            "[1]\n[flags]\noutput-dir = 'x'",
            "flags.output-dir: each run has its own folder",
        ),
        ("[1, 2]", "[1]\n[flags]\na-b = 1\na_b = 2", "flags.a_b: is there twice"),
        ("[1, 2]", "[1]\n[flags]\n'' = 1", "flags.: is no name of a flag"),
        ("[1, 2]", "[1]\n[flags]\n'a b' = 1", "flags.a b: is no name of a flag"),
        ("[1, 2]", "[1]\n[flags]\nx = '--lr'", "flags.x: '--lr' would be read as a flag"),
        ("[1, 2]", "[1]\n[flags]\nx = [1, '--lr']", "flags.x: '--lr' would be read as a flag"),
        ("[1, 2]", "[1]\n[flags]\nx = ['a,b']", "flags.x: 'a,b': write two texts in the list"),
        ("\nscales", f"\nname = '{'a' * 256}'\nscales", "use only letters, digits and . _ -, 200"),
        ("[1, 2]", "[9223372036854775808]", "seeds: holds a number of more than 64 bits"),
        ('"maxP"', '"maxP-frozen"', "methods: maxP-frozen needs a table"),
        ("[1, 2]", "[1]\n[flags]\nalignment_table = 'x'", "flags.alignment_table: no method here"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in BASIC
    with pytest.raises(ConfigError) as refused:
        sweep(tmp_path, BASIC.replace(old, new, 1))
    line = str(refused.value)
    assert message in line
    assert line.startswith(f"{tmp_path / 'mine.toml'}: ")
    assert "\n" not in line


@pytest.mark.parametrize("name", ["s3", "s3.toml", "sweeps/s3.toml"])
def test_a_shipped_sweep_is_suggested_for_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "configs/sweeps/s3.toml"
    shipped.parent.mkdir(parents=True)
    shipped.write_text(BASIC)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        load_sweep(name)
    assert str(refused.value) == f"{name}: no such file: did you mean configs/sweeps/s3.toml?"


def test_no_sweep_is_suggested_where_none_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="s3: cannot be read"):
        load_sweep("s3")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--lrs", "-1"], "overridden by flags: lrs: -1.0: must be positive"),
        (["--scales", "s99"], "overridden by flags: scales: 's99' is unknown"),
        (["--scales", "DEBUG"], "scales: 'DEBUG' is unknown: did you mean debug?"),
        (["--scales", "S3"], "scales: 'S3' is unknown: did you mean s3?"),
        (["--steps", "0"], "overridden by flags: steps: 0"),
        (["--set", "training.seq_len"], "--set training.seq_len: write FLAG=VALUE"),
        (["--set", "seed=3"], "--set.seed: is set by the sweep: use seeds"),
    ],
)
def test_a_mistaken_override_is_named(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        sweep(tmp_path, BASIC, *overrides)
    assert message in str(refused.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: cannot be read \(No such file"):
        load_sweep(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "seconds"), [("00:30:00", 1800), ("2-00:00:01", 172801), ("100:00:00", 360000)]
)
def test_a_time_is_read_in_slurms_form(text: str, seconds: int) -> None:
    assert parse_time(text, "time") == seconds


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_sweep_expands(path: Path) -> None:
    assert load_sweep(path).name == path.stem
    assert expand(load_sweep(path))


@pytest.mark.parametrize(("scale", "jobs"), [("s1", 14), *((f"s{n}", 42) for n in (2, 3, 4, 5))])
def test_a_shipped_scale_is_42_jobs_and_a_third_where_it_is_its_own_base(
    scale: str, jobs: int
) -> None:
    assert len(expand(load_sweep(ROOT / f"configs/sweeps/{scale}.toml"))) == jobs


def test_planning_ten_thousand_runs_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(BASIC)
    code = (
        "import sys; from slurm import cluster, estimate; from slurm.sweep import *; "
        f"s = load_sweep({str(tmp_path / 'a.toml')!r}, Overrides(seeds=tuple(range(1250)))); "
        "print(len(expand(s)), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["10000", "False"], done.stderr


def test_a_sweep_on_this_machine_imports_neither_submitit_nor_torch() -> None:
    code = "import sys, slurm.__main__, slurm.local; print({'submitit', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["set()"], done.stderr


def test_the_feed_forward_of_the_scales_is_torchtitans() -> None:
    for name in ("s1", "s2", "s3", "s4", "s5"):
        size = SCALES[name]
        expected = compute_ffn_hidden_dim(size.dim, multiple_of=1024, ffn_dim_multiplier=1.3)
        assert size.ffn_dim == expected


def test_the_sweep_sets_every_flag_that_could_contradict_it() -> None:
    """A new coordinate among the run's own flags must be refused in [flags], or be free."""
    free = {"dataset", "dataset_path", "tokenizer", "alignment_table", "sites_from"}
    free |= {"optimizer", "fuse_qkv"}
    taken = {"scale", "method", "lr", "seed", "steps", "output_dir", "check"}
    assert {field.name for field in fields(Flags)} == free | taken


GPUS = Cluster(name="big", kind="slurm", gpus_per_node=8, peak_flops=1e15, mfu=0.5)


def test_the_prediction_is_the_flops_over_what_the_gpus_do(tmp_path: Path) -> None:
    text = BASIC.replace('"debug", "cpu128"', '"s1"').replace('"maxP", ', "")
    loaded = sweep(tmp_path, text, "--steps", "10")
    [only] = estimate(loaded, expand(loaded), GPUS, {})
    hours = costs.training_flops(SCALES["s1"], 10) / (8 * 1e15 * 0.5) / 3600
    assert (only.source, only.devices, only.runs) == ("predicted", 8, 4)
    assert only.hours == pytest.approx(hours)
    assert only.device_hours == pytest.approx(hours * 8 * 4)


def test_a_measured_speed_goes_before_the_prediction(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, BASIC.replace('"debug", "cpu128"', '"s1"'), "--steps", "10")
    [only] = estimate(loaded, expand(loaded), GPUS, {"s1": 1000.0})
    assert only.source == "measured"
    assert only.hours == pytest.approx(10 * 256 * 2048 / (8 * 1000) / 3600)


def test_flags_that_change_the_batch_change_the_estimate(tmp_path: Path) -> None:
    text = BASIC.replace('"debug", "cpu128"', '"s1"')
    loaded = sweep(tmp_path, text, "--steps", "10", "--set", "training.global_batch_size=64")
    [only] = estimate(loaded, expand(loaded), GPUS, {"s1": 1000.0})
    assert only.hours == pytest.approx(10 * 64 * 2048 / (8 * 1000) / 3600)


def test_on_a_cpu_cluster_nothing_is_known_until_it_is_measured(tmp_path: Path) -> None:
    loaded = sweep(tmp_path, BASIC)
    cpu = Cluster(name="cpu", kind="slurm", processes_per_node=2)
    assert {one.source for one in estimate(loaded, expand(loaded), cpu, {})} == {"unknown"}


def test_a_run_longer_than_its_wall_time_is_warned_of(tmp_path: Path) -> None:
    text = BASIC.replace('"debug", "cpu128"', '"s1"') + "[resources]\ntime = '01:00:00'"
    loaded = sweep(tmp_path, text, "--steps", "1000")
    just = 1000 * 256 * 2048 / 8 / 3600
    [slow] = estimate(loaded, expand(loaded), GPUS, {"s1": just * 0.99})
    [fast] = estimate(loaded, expand(loaded), GPUS, {"s1": just * 1.01})
    assert fast.warning is None
    assert "scale.s1.time: a run takes about 1.0 h" in str(slow.warning)


def test_speeds_are_read_from_the_runs_in_the_folder(tmp_path: Path) -> None:
    for seed, speed in enumerate([100.0, 300.0, 200.0]):
        folder = RunFolder(tmp_path / f"run{seed}")
        folder.claim({"scale": "s1", "method": "sp", "lr": 0.1, "seed": seed, "steps": 1})
        folder.metrics().append({"step": 1, "loss": 1.0, "tokens_per_second": speed})
        folder.set_status("completed", step=1)
    assert measured_speeds(tmp_path) == {"s1": 200.0}
    assert measured_speeds(tmp_path / "none") == {}
