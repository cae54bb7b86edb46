"""Bad input on the command line: one line, exit status 2, nothing written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from harness import STEPS, run, tiny

from train import __main__ as program
from train.checks import check
from train.cli import parse
from train.config import Flags, make_config

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("corpus_cache")


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
        ("--steps 9 --training.steps 8", "--steps 9: --training.steps 8 says otherwise: remove"),
        ("--training.local_batch_size 3", "--training.global_batch_size 4: must be a multiple of"),
        ("--training.local_batch_size 0", "--training.local_batch_size 0: must be at least 1"),
        ("--method maxP-frozen", "--method maxP-frozen needs --maxp.alignment-table FILE"),
        ("--alignment-table t.json", "method mup-no takes no table; leave the flag out"),
        ("--method maxP-frozen --alignment-table t.json", "t.json: no such file; make one with"),
        (
            "--dataloader.dataset local --dataloader.dataset_path text",
            "--dataloader.dataset local: validation would stay on embedded; pass --dataset local",
        ),
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
        ("--scale debug --training.steps 0", "--training.steps 0: must be at least 1"),
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
