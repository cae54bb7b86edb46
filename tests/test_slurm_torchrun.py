"""torchrun whose exit status is that of its ranks."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from slurm.task import training
from slurm.torchrun import status

ROOT = Path(__file__).parents[1]

# torchrun ends the other rank when one has ended; as the trainer, a rank then ends with its status.
RANK = """
import os, pathlib, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit({code}))
here = pathlib.Path(__file__).parent
(here / ("rank" + os.environ["RANK"])).touch()
while len(list(here.glob("rank?"))) < 2:
    time.sleep(0.01)
os._exit({code})
"""


@pytest.mark.parametrize(
    ("codes", "ends_with"), [([75, 75], 75), ([75, 1], 1), ([-9], 1), ([2], 2), ([], 1)]
)
def test_ranks_that_agree_speak_for_all(codes: list[int], ends_with: int) -> None:
    assert status(codes) == ends_with


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 75])
def test_it_ends_as_its_ranks_do(code: int, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(RANK.format(code=code))
    command = training([], processes=2)
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PYTHONSAFEPATH": "1"},
        stderr=subprocess.DEVNULL,
    )
    assert done.returncode == code
