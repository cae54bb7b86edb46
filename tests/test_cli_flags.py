"""The command line: its own flags, torchtitan's way, and which of them make a run another."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from harness import Run, run, tiny

from configs import llama3
from train.cli import parse, record
from train.config import Flags, make_config
from train.data.corpus import prepare_embedded
from train.method.methods import METHODS
from train.model.scales import SCALES
from train.prepare import Options, prepare
from train.run.identity import DATA_DIGEST, TABLE_DIGEST, differences, identity, run_name
from train.trainer import MaxPTrainer

pytestmark = pytest.mark.usefixtures("corpus_cache")


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


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("--method sp", "--maxp.method maxP"),
        ("--lr 1e-3", "--maxp.lr 1e-2"),
        ("--optimizer muon", "--maxp.optimizer adamw"),
        ("--seed 1", "--debug.seed 2"),
        ("--seed=1", "--dataloader.seed 2"),
        ("--steps 7", "--training.steps 8"),
        ("--output-dir here", "--dump_folder there"),
        ("--output_dir here", "--dump_folder there"),
        ("--dataset embedded", "--dataloader.dataset c4"),
        ("--tokenizer {tokenizer}", "--hf_assets_path elsewhere"),
        ("--dataset-path text", "--dataloader.dataset_path elsewhere"),
        ("--alignment-table a.json --method maxP-frozen", "--maxp.alignment_table b.json"),
    ],
)
def test_flags_that_contradict_each_other_are_refused(ours: str, theirs: str) -> None:
    ours = ours.format(tokenizer=prepare_embedded().tokenizer)
    flag, setting = ours.replace("=", " ").replace("_", "-").split()[0], theirs.split()[0]
    with pytest.raises(ValueError, match=rf"^{flag} .+: {setting} .+ says otherwise: remove one"):
        parse(["--scale", "debug", *theirs.split(), *ours.split()])


def test_a_flag_may_be_given_twice_if_both_agree() -> None:
    flags = "--scale debug --lr 1e-3 --maxp.lr 0.001 --steps 7 --training.steps 7"
    config = parse(flags.split())
    assert (config.maxp.lr, config.training.steps) == (1e-3, 7)


@pytest.mark.parametrize(("module", "scale"), [("llama3", "debug"), ("decoders", "qwen3-debug")])
def test_torchtitans_own_way_gives_the_same_run_as_the_commands_flags(
    module: str, scale: str, tmp_path: Path
) -> None:
    way = f"--module configs.{module} --config {scale}_mup_no --training.steps 2000 --dump_folder"
    own = f"--scale {scale} --method mup-no --training.steps 2000 --output-dir"
    theirs, ours = (parse([*flags.split(), str(tmp_path)]) for flags in (way, own))
    assert isinstance(theirs, MaxPTrainer.Config)
    assert theirs.to_dict() == ours.to_dict()


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


# Which flags make a run another


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


def test_an_alignment_table_that_was_written_again_makes_it_another(tmp_path: Path) -> None:
    """Else seeds that ran with one table would be averaged with seeds of the next."""
    table = tmp_path / "table.json"
    command = ["--scale", "debug", "--steps", "7", "--method", "maxP-frozen"]
    command += ["--alignment-table", str(table)]
    configs = []
    for value in (0.5, 0.6):
        table.write_text(f'{{"alignment": {{"lm_head": [{value}, 0.5, 0.5]}}}}')
        configs.append(record(parse(command)))
    first, second = configs
    assert identity(first) != identity(second)
    (difference,) = differences(first, second)
    assert difference.startswith(f"{TABLE_DIGEST}: ")
    del first[TABLE_DIGEST]  # as in an earlier version: the run can be resumed
    assert differences(first, second) == []


@pytest.mark.parametrize("prepared", [False, True])
def test_text_that_was_written_again_makes_it_another(tmp_path: Path, prepared: bool) -> None:
    """Else seeds on one text would be averaged with seeds on the next, under the same path."""
    text, folder = tmp_path / "text.jsonl", tmp_path / "prepared"
    command = ["--scale", "debug", "--steps", "7", "--dataset", "local"]
    command += ["--dataset-path", str(folder if prepared else text)]
    configs = []
    for word in ("one", "one", "three"):
        text.write_text("".join(f'{{"text": "{word} {line}"}}\n' for line in range(100)))
        os.utime(text, (len(configs), len(configs)))  # as a copy of it
        if prepared:
            shutil.rmtree(folder, ignore_errors=True)
            tokenizer = prepare_embedded().tokenizer
            prepare(Options(folder, "local", dataset_path=text, tokenizer=tokenizer))
        configs.append(record(parse(command)))
    first, copy, other = configs
    assert identity(first) == identity(copy)
    training, validation = differences(first, other)
    assert training.startswith(f"dataloader.{DATA_DIGEST}: ")
    assert validation.startswith(f"validator.dataloader.{DATA_DIGEST}: ")
    del first["dataloader"][DATA_DIGEST], first["validator"]["dataloader"][DATA_DIGEST]
    assert differences(first, other) == []  # as in an earlier version: the run can be resumed


def test_other_held_out_sequences_make_it_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """--validator.steps counts batches, --validator.sequences does not."""
    command = ["--scale", "debug", "--steps", "7"]
    small = ["--training.local_batch_size", "1"]
    by_steps = [*command, "--validator.steps", "2"]
    assert identity(record(parse([*command, *small]))) == identity(record(parse(command)))
    four, one = record(parse(by_steps)), record(parse([*by_steps, *small]))
    assert identity(four) != identity(one)
    expected = "validator.held_out_sequences: 8 there, 2 here"
    assert differences(four, one) == [expected]
    del four["validator"]["held_out_sequences"]  # as in an earlier version
    assert differences(four, one) == []
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert identity(record(parse([*by_steps, *small]))) != identity(one)


def test_without_a_global_batch_the_number_of_processes_makes_it_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["--scale", "debug", "--steps", "7", "--training.global_batch_size", "-1"]
    alone = identity(record(parse(command)))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert identity(record(parse(command))) != alone


@pytest.mark.parametrize(
    ("lr", "name"),
    [(1e-2, "s1_sp_lr1e-02_seed4"), (3e-4, "s1_sp_lr3e-04_seed4"), (0.025, "s1_sp_lr0.025_seed4")],
)
def test_a_runs_default_folder_names_what_it_is(lr: float, name: str) -> None:
    assert run_name("s1", "sp", lr, 4) == name
    assert make_config(Flags("s1", "sp", lr=lr, seed=4)).dump_folder == f"runs/{name}"


# Help


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
