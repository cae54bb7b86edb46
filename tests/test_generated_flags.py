"""Generated command lines: each is a run that can be printed, or refused and the flag named."""

from __future__ import annotations

import contextlib
import io
import math
import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from generated import many
from hypothesis import given
from hypothesis import strategies as st

from train.checks import global_batch_size
from train.cli import parse
from train.method.methods import METHODS
from train.preview import preview


def among(*words: str) -> st.SearchStrategy[str]:
    return st.sampled_from(words)


WHOLE = st.sampled_from([-3, -1, 0, 1, 2, 5, 64, 10**6, 2**63, 10**30]).map(str)
NUMBER = among(
    *("-1", "-0.0", "0", "1e-300", "0.01", "0.5", "1", "2", "1e300", "1e400", "nan", "inf", "-inf")
)
WORDS = among(*("", " ", "x", "None", "é", "١", "1_0", "a b", "a\nb", "\udcff", "-", "=", "#"))
TEXT = WORDS | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
ODD = WHOLE | NUMBER | WORDS


DEGREES = ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel")
OTHER_DEGREES = ("pipeline_parallel", "context_parallel", "expert_parallel")
FLAGS: dict[str, st.SearchStrategy[str] | None] = {
    "scale": among("debug", "cpu64", "s1", "s9"),
    "method": among(*METHODS, "mup"),
    "lr": NUMBER,
    "seed": WHOLE,
    "steps": WHOLE,
    "output-dir": TEXT,
    "dataset": among("embedded", "local", "c4", "wikitext"),
    "dataset-path": among("/nope", "tests") | TEXT,
    "tokenizer": among("/nope", "tests") | TEXT,
    "alignment-table": among("/nope", "tests") | TEXT,
    **{
        f"training.{name}": WHOLE
        for name in ("seq_len", "local_batch_size", "global_batch_size", "steps", "gc_freq")
    },
    "training.max_norm": NUMBER,
    "training.mixed_precision_param": among("bfloat16", "float32", "float16"),
    "validator.freq": WHOLE,
    "validator.steps": WHOLE,
    "validator.sequences": WHOLE,
    "validator.dataloader.split": among("train", "validation", "test"),
    "validator.no-enable": None,
    "dataloader.split": among("train", "validation", "test"),
    "dataloader.seed": WHOLE,
    "dataloader.num_workers": WHOLE,
    "dataloader.shuffle_buffer": WHOLE,
    "dataloader.no-infinite": None,
    "metrics.log_freq": WHOLE,
    "metrics.save_tb_folder": TEXT,
    "metrics.all-sites": None,
    "lr_scheduler.warmup_steps": WHOLE,
    "lr_scheduler.total_steps": WHOLE | st.just("None"),
    "lr_scheduler.decay_ratio": NUMBER | st.just("None"),
    "lr_scheduler.min_lr_factor": NUMBER,
    "lr_scheduler.decay_type": among("linear", "sqrt", "cosine", "x"),
    "checkpoint.enable": None,
    "checkpoint.interval": WHOLE,
    "checkpoint.keep_latest_k": WHOLE,
    "checkpoint.load_step": WHOLE,
    "checkpoint.folder": TEXT,
    "checkpoint.async_mode": among("disabled", "async", "async_with_pinned_mem", "x"),
    "checkpoint.initial_load_path": TEXT,
    "checkpoint.initial_load_model_only": None,
    "checkpoint.initial_load_in_hf": None,
    "checkpoint.last_save_in_hf": None,
    "checkpoint.last_save_model_only": None,
    "compile.backend": among("inductor", "aot_eager", "nope") | TEXT,
    "comm.init_timeout_seconds": WHOLE,
    "comm.train_timeout_seconds": WHOLE,
    "debug.seed": WHOLE | st.just("None"),
    "loss.global_vocab_size": WHOLE,
    **{f"parallelism.{name}_degree": WHOLE for name in (*DEGREES, *OTHER_DEGREES)},
    **{
        f"maxp.{name}": WHOLE
        for name in ("solve_interval", "measure_from", "probe_sequences", "probe_tokens")
    },
    "maxp.lr": NUMBER,
    "maxp.c_ema": NUMBER,
    "maxp.alignment_ema": NUMBER,
    "maxp.independent_weight_decay": NUMBER,
    "maxp.measure": None,
    "maxp.resample_w0": None,
    "nope": TEXT,
    "training.nope": TEXT,
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """One to three flags, most with a value of their kind, after a small scale."""
    line = ["--scale", "debug"]
    for name in draw(st.lists(st.sampled_from([*FLAGS]), min_size=1, max_size=3)):
        values = FLAGS[name]
        if values is None:
            line.append(f"--{name}")
        else:
            value = draw(ODD if draw(st.integers(0, 9)) == 0 else values)
            line += [f"--{name}={value}"] if draw(st.booleans()) else [f"--{name}", value]
    return line


POSITIVE = (
    *("training.steps", "training.seq_len", "training.local_batch_size", "training.max_norm"),
    *("validator.freq", "validator.sequences", "metrics.log_freq", "checkpoint.interval"),
    *("maxp.lr", "maxp.solve_interval", "maxp.probe_tokens", "maxp.probe_sequences"),
    *("comm.init_timeout_seconds", "comm.train_timeout_seconds"),
)
PARTS = ("lr_scheduler.min_lr_factor", "maxp.independent_weight_decay", "maxp.c_ema")


def assert_sensible(config: Any) -> None:
    """What no run can do without."""
    for name in POSITIVE:
        assert attrgetter(name)(config) > 0, name
    for name in PARTS:
        assert 0 <= attrgetter(name)(config) <= 1, name
    assert math.isfinite(config.maxp.lr)
    assert 0 <= config.debug.seed < 2**64  # torch's generator takes no more
    assert global_batch_size(config) % config.training.local_batch_size == 0
    assert config.lr_scheduler.warmup_steps >= 0
    assert config.dump_folder.strip()
    for text in (config.dump_folder, config.metrics.save_tb_folder, config.checkpoint.folder):
        assert text.isprintable()


def check(line: list[str]) -> None:
    """Accepted and printed, or refused by one line or by tyro's box, that names a flag."""
    errors, code = io.StringIO(), 2
    try:
        with contextlib.redirect_stderr(errors):
            config = parse(line)
    except ValueError as error:
        message = str(error)
        assert message.splitlines() == [message]
        assert len(message) < 1000
    except SystemExit as stop:
        code, message = stop.code, errors.getvalue()
    else:
        assert_sensible(config)
        text = preview(config)
        text.encode()
        assert str(config.training.steps) in text
        rates = [
            float(row.split()[-1]) for row in text.partition("learning rate")[2].split("\n")[1:]
        ]
        assert all(0 <= rate < math.inf for rate in rates)
        return
    names = [word.removeprefix("--").partition("=")[0] for word in line if word.startswith("--")]
    # A scale needs a tokenizer, which is not there.
    parts = {"tokenizer"} | {part for name in names for part in re.split(r"[-_.]", name)}
    assert code == 2
    assert "--" in message
    assert "Traceback" not in message
    assert any(part in message for part in parts)


@given(command_lines())
@many(60)
def test_a_generated_command_line_is_a_run_or_refused_in_one_line(
    corpus_cache: Path, line: list[str]
) -> None:
    check(line)


@pytest.mark.exhaustive
@given(command_lines())
@many(300)
def test_300_generated_command_lines_are_runs_or_refused_in_one_line(
    corpus_cache: Path, line: list[str]
) -> None:
    check(line)
