"""The command line: its own flags, torchtitan's way, and what bad input is answered with."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from harness import STEPS, WARMUP, Run, run, tiny

from configs import llama3
from train import __main__ as program
from train.checks import check
from train.cli import parse, record
from train.config import Flags, make_config
from train.method.methods import METHODS
from train.model.scales import SCALES
from train.run.identity import identity, run_name
from train.trainer import MaxPTrainer

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("corpus_cache")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# What is understood


def test_the_commands_own_flags_set_the_run(tmp_path: Path) -> None:
    flags = "--scale debug --method mup-no --lr 3e-2 --seed 3 --steps 7 --output-dir"
    config = parse([*flags.split(), str(tmp_path / "run")])
    assert (config.scale, config.maxp.method, config.maxp.lr) == ("debug", "mup-no", 3e-2)
    assert (config.debug.seed, config.dataloader.seed) == (3, 3)
    assert (config.training.steps, config.dump_folder) == (7, str(tmp_path / "run"))


def test_any_flag_of_torchtitan_can_follow() -> None:
    more = "--training.local_batch_size 4 --optimizer.implementation for-loop --metrics.log_freq 5"
    config = parse(["--scale", "debug", "--steps", "7", *more.split()])
    assert config.training.local_batch_size == 4
    assert config.optimizer.implementation == "for-loop"
    assert config.metrics.log_freq == 5
    assert config.training.steps == 7


@pytest.mark.parametrize(("module", "scale"), [("llama3", "debug"), ("decoders", "qwen3-debug")])
def test_torchtitans_own_way_gives_the_same_run_as_the_commands_flags(
    module: str, scale: str, tmp_path: Path
) -> None:
    way = f"--module configs.{module} --config {scale}_mup_no --training.steps 2000 --dump_folder"
    own = f"--scale {scale} --method mup-no --training.steps 2000 --output-dir"
    theirs, ours = (parse([*flags.split(), str(tmp_path)]) for flags in (way, own))
    assert isinstance(theirs, MaxPTrainer.Config)
    assert theirs.to_dict() == ours.to_dict()


@pytest.mark.parametrize(
    "flags",
    [
        "--training.local_batch_size 1",
        "--parallelism.tensor_parallel_degree 2",
        "--checkpoint.interval 7",
        "--metrics.log_freq 5",
        "--comm.train_timeout_seconds 9",
    ],
)
def test_how_a_run_is_spread_and_written_down_does_not_make_it_another(
    flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--scale", "debug", "--steps", "7"]
    plain = identity(record(parse(command)))
    monkeypatch.setenv("WORLD_SIZE", "2" if "tensor" in flags else "1")
    assert identity(record(parse([*command, *flags.split()]))) == plain


@pytest.mark.parametrize("flags", ["--training.global_batch_size 8", "--seed 2", "--lr 2e-2"])
def test_what_a_run_computes_makes_it_another(flags: str) -> None:
    command = ["--scale", "debug", "--steps", "7"]
    assert identity(record(parse([*command, *flags.split()]))) != identity(record(parse(command)))


def test_without_a_global_batch_the_number_of_processes_makes_it_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["--scale", "debug", "--steps", "7", "--training.global_batch_size", "-1"]
    alone = identity(record(parse(command)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert identity(record(parse(command))) != alone


def test_a_run_started_torchtitans_way_trains(tmp_path: Path, mup_no_run: Run) -> None:
    more = tiny(tmp_path, "mup-no")[6:]
    more[more.index("--steps")] = "--training.steps"
    way = "--module configs.llama3 --config debug_mup_no --dump_folder"
    done = run([*way.split(), str(tmp_path / "run"), *more])
    assert (done.code, done.losses) == (0, mup_no_run.losses)


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_has_a_configuration_for_every_method_without_a_table(scale: str) -> None:
    for name, method in METHODS.items():
        function = f"{scale}_{name.replace('-', '_')}"
        if method.needs_table:
            assert function not in dir(llama3)
        else:
            config = getattr(llama3, function)()
            assert (config.scale, config.maxp.method) == (scale, name)
    assert getattr(llama3, scale)().maxp.method == "maxP"


def test_adamw_decay_and_clip_are_those_that_were_asked_for() -> None:
    config = make_config(Flags("s3"))
    (group,) = config.optimizer.param_groups
    assert group.optimizer_name == "AdamW"
    assert group.optimizer_kwargs["betas"] == (0.9, 0.95)
    assert group.optimizer_kwargs["weight_decay"] == 0.1
    assert config.training.max_norm == 1.0
    assert config.lr_scheduler.decay_ratio is not None


@pytest.mark.parametrize(
    ("lr", "name"),
    [(1e-2, "s1_sp_lr1e-02_seed4"), (3e-4, "s1_sp_lr3e-04_seed4"), (0.025, "s1_sp_lr0.025_seed4")],
)
def test_a_runs_default_folder_names_what_it_is(lr: float, name: str) -> None:
    assert run_name("s1", "sp", lr, 4) == name
    assert make_config(Flags("s1", "sp", lr=lr, seed=4)).dump_folder == f"runs/{name}"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--help"], ["--scale", "--method", "--output-dir", "--alignment-table"]),
        (["--scale", "debug", "--help-all"], ["--training.local-batch-size", "--maxp.c-ema"]),
    ],
)
def test_help_lists_the_flags(
    flags: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(flags)
    assert end.value.code == 0
    printed = capsys.readouterr().out.replace("_", "-")
    assert all(flag in printed for flag in expected)


def test_help_shows_examples_before_the_flags_and_every_default_in_words(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    printed = capsys.readouterr().out
    assert 0 < printed.index("python -m train --scale debug") < printed.index("--scale STR")
    for placeholder in ("{None}", "(default: )", "default: None"):
        assert placeholder not in printed


# --check


@pytest.mark.parametrize("torchtitans_way", [False, True])
def test_check_prints_what_would_run_and_writes_nothing(
    torchtitans_way: bool, maxp_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny(tmp_path / "run", "maxP")
    if torchtitans_way:
        own = ["--dump_folder", str(tmp_path / "run"), "--training.steps", str(STEPS)]
        arguments = ["--module", "configs.llama3", "--config", "debug", *own, *arguments[8:]]
    done = run([*arguments, "--check"])
    assert (done.code, done.trainer) == (0, None)
    assert not (tmp_path / "run").exists()
    printed = capsys.readouterr().out
    assert f"folder    {tmp_path / 'run'} (new)" in printed
    assert f"steps     {STEPS}, each of 4 sequences of 32 tokens: 3,072 tokens" in printed
    assert "measures  every 3 steps after step 1, and solves again" in printed
    assert re.search(r"memory    0\.0\d GiB on the first process", printed)
    # The lr at the top of the schedule: the first step of the warm-up has one fifth of it.
    lrs = {site: float(lr) for site, lr in re.findall(r"^(\S+) +([-.e\d]+)$", printed, re.M)}
    top = {site: WARMUP * lr for site, lr in maxp_run.lrs[0].items()}
    assert lrs == pytest.approx(top, rel=1e-3)


@pytest.mark.parametrize(("probe", "kept"), [("fresh", "0.01"), ("fixed", "0.00")])
def test_check_counts_the_initial_weights_that_the_probe_needs(
    probe: str, kept: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # docs/measuring.md: 5.69 MiB on fresh text, 3.69 MiB and z0 on a fixed probe.
    arguments = tiny(tmp_path / "run", "maxP", "--maxp.probe", probe, "--check")
    assert run(arguments).code == 0
    assert f", of which {kept} GiB for measuring" in capsys.readouterr().out


def test_check_refuses_what_a_run_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(tiny(tmp_path / "run", "maxP", "--check", "--lr", "-1"), capsys)
    assert line == "--lr -1.0: must be positive"


def test_check_says_that_a_run_is_completed(
    maxp_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*tiny(maxp_run.folder, "maxP"), "--check"]).code == 0
    assert f"(completed at step {STEPS})" in capsys.readouterr().out


# Bad input: one line, exit status 2, nothing written


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command line is refused."""
    capsys.readouterr()
    assert run(arguments).code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.endswith("\n")
    assert printed.count("\n") == 1
    return printed.removeprefix("error: ").strip()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--method mup", "--method mup: unknown; choose one of maxP, mup-full"),
        ("--scale s9", "--scale s9: unknown; choose one of debug, s1"),
        ("--lr 0", "--lr 0.0: must be positive"),
        ("--lr -1", "--lr -1.0: must be positive"),
        ("--lr nan", "--lr nan: must be positive"),
        ("--seed -1", "--seed -1: must not be negative"),
        ("--steps 0", "--steps 0: must be at least 1"),
        ("--training.steps 0", "--training.steps 0: must be at least 1"),
        ("--training.local_batch_size 3", "--training.global_batch_size 4: must be a multiple of"),
        ("--training.local_batch_size 0", "--training.local_batch_size 0: must be at least 1"),
        ("--method maxP-frozen", "--method maxP-frozen needs --maxp.alignment-table FILE"),
        ("--alignment-table t.json", "method mup-no takes no table; leave the flag out"),
        ("--method maxP-frozen --alignment-table t.json", "t.json: no such file; make one with"),
        ("--dataset wikitext", "--dataloader.dataset 'wikitext' is unknown: choose one of"),
        ("--dataset local", "--dataset local needs --dataset-path, a file or folder of text"),
        ("--dataset local --dataset-path no/such", "--dataset-path no/such: no such file or"),
        ("--tokenizer no/such", "no/such: no tokenizer.json there; download LLaMA-3's"),
        ("--scale s1", "assets/hf/Llama-3.1-8B: no tokenizer.json there; download LLaMA-3's"),
        (
            "--tokenizer data/text/tokenizer",
            "there; prepare the text with `python -m train.prepare --to data/text`, download",
        ),
        (
            "--parallelism.pipeline_parallel_degree 2",
            "--parallelism.pipeline_parallel_degree 2: not supported",
        ),
    ],
)
def test_bad_input_is_answered_by_one_line_that_names_the_flag(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(tiny(tmp_path / "run", "mup-no", *flags.split()), capsys)
    assert not (tmp_path / "run").exists()


NUMBERS = [
    *((f"--training.seq_len {n}", "must be at least 1") for n in (0, -128)),
    *((f"--training.global_batch_size {n}", "must be at least 1, or -1") for n in (0, -5)),
    ("--validator.freq 0", "must be at least 1"),
    ("--validator.sequences 0", "must be at least 1"),
    *((f"--validator.steps {n}", "must be at least 1, or -1") for n in (0, -2)),
    ("--metrics.log_freq 0", "must be at least 1"),
    ("--lr_scheduler.total_steps 3", f"must be at least the {STEPS} steps of the run"),
    ("--comm.init_timeout_seconds -1", "must be at least 1"),
    *((f"--training.max_norm {n}", "must be positive; pass inf") for n in ("-1.0", "nan", "0.0")),
    *((f"--lr_scheduler.decay_ratio {n}", "must be in [0, 1]") for n in (-0.5, 2.0)),
    *((f"--lr_scheduler.min_lr_factor {n}", "must be in [0, 1]") for n in (-1.0, 2.0)),
    ("--lr_scheduler.warmup_steps -1", "must not be negative"),
    *(
        (f"--maxp.independent_weight_decay {n}", "must be in [0, 1)")
        for n in ("nan", "inf", "10.0", "1.0", "-0.1")
    ),
    *((f"--debug.seed {n}", "must be a number that is not negative") for n in ("None", -3)),
    ("--loss.global_vocab_size 100", "smaller than the model's vocabulary of 4096; leave it out"),
    ("--compile.backend nope", "unknown; choose one of"),
    ("--validator.dataloader.split train", "must be validation; leave it out"),
    ("--dataloader.split validation", "must be train; leave it out"),
    ("--dataset-path tests", "--dataset embedded reads no files; pass --dataset local, or leave"),
]


@pytest.mark.parametrize(("flag", "words"), NUMBERS)
def test_a_value_that_makes_no_sense_is_answered_by_one_line_that_names_the_flag(
    flag: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=rf"^{re.escape(f'{flag}: {words}')}[^\n]*$"):
        parse(tiny(tmp_path / "run", "mup-no", *flag.split()))


@pytest.mark.parametrize(
    "flags",
    [
        "--training.max_norm inf",
        "--lr_scheduler.decay_ratio None",
        "--validator.steps 3",
        "--compile.backend aot_eager",
        f"--lr_scheduler.total_steps {STEPS}",
    ],
)
def test_a_value_at_the_edge_is_taken(flags: str, tmp_path: Path) -> None:
    assert parse(tiny(tmp_path / "run", "mup-no", *flags.split())).maxp.method == "mup-no"


def test_an_empty_folder_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--output-dir '': must not be empty"):
        parse(["--scale", "debug", "--output-dir", ""])


def test_groups_with_learning_rates_of_their_own_are_refused() -> None:
    config = make_config(Flags("debug", lr=0.5))
    group = config.optimizer.param_groups[0]
    other = replace(group, pattern="norm", optimizer_kwargs={**group.optimizer_kwargs, "lr": 0.1})
    config.optimizer.param_groups.insert(0, other)
    with pytest.raises(ValueError, match=r"^--optimizer.param_groups with lr 0.1, 0.5: the method"):
        check(config)


def test_an_environment_that_is_not_torchruns_is_answered_by_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *tiny(tmp_path / "run", "mup-no")])
    monkeypatch.setattr(program, "init_logger", lambda: None)
    monkeypatch.setenv("RANK", "x")
    assert program.main() == 2
    assert capsys.readouterr().err == (
        "error: RANK=x in the environment: must be a number; unset it, or start the run with "
        "torchrun, which sets it\n"
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--module configs.llama3", "--config is required"),
        ("--module configs.llama3 --config s1_sgd", "Config function 's1_sgd' not found"),
        ("--module configs.mamba --config s1", "--module: Cannot import module 'configs.mamba'"),
        (
            "--module llama3 --config llama3_debugmodel",
            "--module: not a configuration of this trainer; use configs.llama3, configs.decoders",
        ),
    ],
)
def test_a_configuration_that_is_not_there_is_answered_by_one_line(
    flags: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused([*flags.split(), "--dump_folder", str(tmp_path / "run")], capsys)
    assert message in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [["--lr", "high"], ["--methd", "sp"], ["--maxp.method", "mup"]])
def test_a_flag_that_cannot_be_read_ends_with_status_2_and_names_it(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        run(tiny(tmp_path / "run", "mup-no", *flags))
    assert end.value.code == 2
    assert flags[0].removeprefix("--maxp.").strip("-") in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_scale_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse(["--method", "sp"])
    assert end.value.code == 2
    assert "--scale" in capsys.readouterr().err


def test_a_corrupt_tokenizer_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": 1')
    line = refused(tiny(tmp_path / "run", "sp", "--tokenizer", str(tmp_path)), capsys)
    assert f"{tmp_path}: tokenizer.json is corrupt" in line


def test_a_corrupt_token_cache_is_prepared_again_and_said_in_a_line(
    corpus_cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shutil.copytree(corpus_cache, tmp_path / "cache")
    (tokens,) = (tmp_path / "cache").glob("embedded-*/train/tokens*")
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-2])
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    assert run(tiny(tmp_path / "run", "mup-no", "--steps", "1")).code == 0
    lines = [text for text in caplog.messages if "is truncated" in text]
    assert len(lines) == 1
    assert re.search(r"embedded-\w+/train is truncated: it is deleted and prepared", lines[0])
    assert tokens.read_bytes() == whole


@pytest.mark.parametrize(
    ("processes", "flags", "message"),
    [
        (3, "data_parallel_replicate_degree 2", "--parallelism.data_parallel_replicate_degree 2, "),
        (4, "data_parallel_shard_degree 3", "--parallelism.data_parallel_shard_degree 3, "),
        (
            4,
            "data_parallel_shard_degree 2",
            "and their product the number of processes of this run, 4;",
        ),
        (
            2,
            "tensor_parallel_degree 4",
            "--parallelism.tensor_parallel_degree 4: each must be at least 1",
        ),
        (
            2,
            "tensor_parallel_degree 0",
            "--parallelism.tensor_parallel_degree 0: each must be at least 1",
        ),
        (
            4,
            "tensor_parallel_degree 4",
            "--scale debug with these flags: tensor_parallel_degree (4) must divide n_kv_heads (2)",
        ),
        (
            8,
            "tensor_parallel_degree 8",
            "--scale debug with these flags: tensor_parallel_degree (8) must divide n_heads (4)",
        ),
        (2, "expert_parallel_degree 2", "--parallelism.expert_parallel_degree 2: not supported"),
    ],
)
def test_a_mesh_that_does_not_divide_ends_every_rank_with_a_line_from_the_first(
    processes: int,
    flags: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--training.local_batch_size", "1", *f"--parallelism.{flags}".split())
    monkeypatch.setattr(sys, "argv", ["train", *tiny(tmp_path / "run", "maxP", *more)])
    monkeypatch.setattr(program, "init_logger", lambda: None)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    capsys.readouterr()
    for rank in range(processes):
        monkeypatch.setenv("RANK", str(rank))
        assert program.main() == 2
        printed = capsys.readouterr().err
        if rank:
            assert printed == ""
        else:
            assert message in printed
            assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("degree", ["1", "2"])
def test_a_mesh_that_divides_is_taken(degree: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    flags = f"data_parallel_replicate_degree=2 --parallelism.tensor_parallel_degree={degree}"
    mesh = f"--training.local_batch_size=1 --parallelism.{flags}".split()
    config = parse(["--scale", "debug", *mesh])
    assert config.parallelism.data_parallel_replicate_degree == 2


PROBES = [
    (
        "--maxp.probe_tokens 33 --maxp.probe_sequences 1",
        "--training.seq_len 32, has 32; pass 32 or fewer, or more sequences",
    ),
    ("--maxp.probe_tokens 65 --maxp.probe_sequences 2", "has 64; pass 64 or fewer"),
    (
        "--maxp.probe_sequences 5",
        "--maxp.probe_sequences 5: every process runs the probe, which must not be larger than a "
        "step's batch of 4 sequences; pass 4 or fewer",
    ),
]


@pytest.mark.parametrize(("flags", "message"), PROBES)
@pytest.mark.parametrize("measuring", ["--method maxP", "--maxp.measure"])
def test_a_probe_larger_than_the_batch_is_refused(
    measuring: str,
    flags: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = f"{measuring} {flags}".split()
    assert message in refused(tiny(tmp_path / "run", "mup-no", *more), capsys)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [flags for flags, _ in PROBES])
def test_a_run_that_does_not_measure_takes_any_probe(flags: str, tmp_path: Path) -> None:
    assert parse(tiny(tmp_path / "run", "mup-no", *flags.split())).maxp.method == "mup-no"


@pytest.mark.parametrize("scale", SCALES)
def test_the_probe_of_every_scale_fits_its_batch(scale: str) -> None:
    config = make_config(Flags(scale))
    assert config.maxp.probe_tokens <= config.maxp.probe_sequences * config.training.seq_len
    assert config.maxp.probe_sequences <= config.training.global_batch_size


# The folder


def test_the_same_run_again_does_nothing(
    mup_no_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(mup_no_run.folder)
    again = run(tiny(mup_no_run.folder, "mup-no"))
    assert (again.code, again.trainer) == (0, None)
    assert contents(mup_no_run.folder) == before
    said = f"{mup_no_run.folder}: already completed at step {STEPS}; nothing to do\n"
    assert capsys.readouterr().out == said


def test_another_configurations_folder_is_refused_and_left_alone(
    mup_no_run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(mup_no_run.folder)
    line = refused(tiny(mup_no_run.folder, "mup-no", "--lr", "0.02"), capsys)
    assert f"--output-dir {mup_no_run.folder} holds the run of another configuration" in line
    assert "lr: 0.01 there, 0.02 here" in line
    assert contents(mup_no_run.folder) == before


def test_a_strangers_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("all my work")
    line = refused(tiny(tmp_path, "mup-no"), capsys)
    assert f"--output-dir {tmp_path} is not empty (thesis.tex, ...)" in line
    assert contents(tmp_path) == {"thesis.tex": b"all my work"}


def test_a_folder_that_another_process_is_training_in_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = tiny(tmp_path / "run", "mup-no")

    def interrupt(trainer: Any) -> None:
        if trainer.step == 2:
            raise KeyboardInterrupt

    run(arguments, before_step=interrupt)
    with FileLock(tmp_path / "run" / ".lock"):
        before = contents(tmp_path / "run")
        line = refused(arguments, capsys)
        assert f"--output-dir {tmp_path / 'run'}: another process is running this run" in line
        assert contents(tmp_path / "run") == before


def test_the_lock_of_a_run_is_free_after_it(mup_no_run: Run) -> None:
    with FileLock(mup_no_run.folder / ".lock").acquire(timeout=0) as lock:
        assert lock.is_locked


# As a process


@pytest.mark.slow
@pytest.mark.parametrize(("flags", "status"), [("--method mup", 2), ("--method mup-no", 0)])
def test_the_process_ends_with_the_status(flags: str, status: int, tmp_path: Path) -> None:
    arguments = tiny(tmp_path / "run", "sp", "--steps", "6", *flags.split())
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "train", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert "Traceback" not in done.stdout + done.stderr
    if status:
        assert done.stderr.splitlines()[-1].startswith("error: --method mup: unknown")
