"""The probe's size on the command line: one larger than a step's batch is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import tiny
from test_cli_bad_input import refused

from train.cli import parse
from train.config import Flags, make_config
from train.model.scales import SCALES

pytestmark = pytest.mark.usefixtures("corpus_cache")

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
