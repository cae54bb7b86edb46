"""`--check` prints what would run, or why it would not, and writes nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from harness import STEPS, WARMUP, Run, run, tiny
from test_cli_bad_input import refused

pytestmark = pytest.mark.usefixtures("corpus_cache")


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
