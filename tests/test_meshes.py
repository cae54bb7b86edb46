"""However processes share a model, it is the same experiment as on one."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import Run, run, tiny

from scripts.torture.ranks import run_ranks
from train.alignment_table import ALIGNMENTS

pytestmark = pytest.mark.slow

TENSOR = "--parallelism.tensor_parallel_degree"
REPLICATE = "--parallelism.data_parallel_replicate_degree"
# (processes, sequences of the four of a step that each takes, flags)
MESHES = {
    "fsdp2": (2, "2", ()),
    "fsdp4": (4, "1", ()),
    "hsdp2x2": (4, "1", (REPLICATE, "2")),
    "tp2": (2, "4", (TENSOR, "2")),
    "fsdp2xtp2": (4, "2", (TENSOR, "2")),
}
STEPS = ("--steps", "12")  # of warm-up, at full lr and of decay


@pytest.fixture(scope="module")
def alone(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    done = run(tiny(tmp_path_factory.mktemp("alone") / "run", "maxP", *STEPS))
    assert done.code == 0
    return done


@pytest.fixture(scope="module", params=MESHES)
def shared(
    request: pytest.FixtureRequest, corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    processes, sequences, flags = MESHES[request.param]
    folder = tmp_path_factory.mktemp("mesh") / "run"
    flags = (*STEPS, "--training.local_batch_size", sequences, *flags)
    done = run_ranks("train.__main__", *tiny(folder, "maxP", *flags), processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(folder)


def test_losses_are_those_of_one_process(shared: Run, alone: Run) -> None:
    assert shared.losses == pytest.approx(alone.losses, rel=1e-5)


def test_every_measured_exponent_is_that_of_one_process(shared: Run, alone: Run) -> None:
    compared, steps = 0, alone.steps
    for step, record in shared.steps.items():
        for site, values in record["sites"].items():
            expected = steps[step]["sites"][site]
            for name in ALIGNMENTS:
                if name in values or name in expected:
                    assert values[name] == pytest.approx(expected[name], abs=1e-4)
                    compared += 1
    assert compared > 100


def test_every_lr_and_c_are_those_of_one_process(shared: Run, alone: Run) -> None:
    steps = alone.steps
    for step, record in shared.steps.items():
        for site, values in record["sites"].items():
            expected = steps[step]["sites"][site]
            for name in {"lr", "c"} & values.keys():
                assert values[name] == pytest.approx(expected[name], rel=1e-4)
