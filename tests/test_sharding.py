"""How a step is computed, on how many processes and with which shards, changes no measurement."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from harness import Run, run, tiny
from rank_worker import UNEVEN

from scripts.torture.ranks import run_ranks
from train.alignment_table import ALIGNMENTS
from train.model.scales import SCALES

pytestmark = pytest.mark.slow

PROBE_TOKENS = 32  # of a tiny run
LIMITS = ("--comm.init_timeout_seconds", "120", "--comm.train_timeout_seconds", "90")
COMPILED = ("--compile.enable",)
# (processes, flags); two processes take half of the batch each.
WAYS: dict[str, tuple[int, tuple[str, ...]]] = {
    "gradient accumulation": (1, ("--training.local_batch_size", "1")),
    "gradient accumulation on shards": (2, ("--training.local_batch_size", "1")),
    "full activation checkpointing": (1, ("activation-checkpoint:full",)),
    "selective activation checkpointing": (1, ("activation-checkpoint:selective",)),
    "full activation checkpointing on shards": (2, ("activation-checkpoint:full",)),
    "compiled blocks on shards": (2, COMPILED),
    "compiled, checkpointed blocks": (1, (*COMPILED, "activation-checkpoint:selective")),
}


def ranks(folder: Path, processes: int) -> list[dict[str, Any]]:
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(way, marks=pytest.mark.exhaustive if COMPILED[0] in flags else ())
        for way, (_, flags) in WAYS.items()
    ],
)
def other(
    request: pytest.FixtureRequest, corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    processes, flags = WAYS[request.param]
    if "--compile.enable" in flags and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler on a CPU")
    folder = tmp_path_factory.mktemp("way") / "run"
    if processes == 2:
        flags = ("--training.local_batch_size", "2", *flags)
    done = run_ranks("train.__main__", *tiny(folder, "maxP", *flags), processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    return Run(folder)


@pytest.fixture(scope="module")
def uneven(
    corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run, list[dict[str, Any]]]:
    """A run on three processes, the same on one, and what each of the three saw."""
    folder = tmp_path_factory.mktemp("uneven")
    three = ("--training.global_batch_size", "3", "--maxp.probe_sequences", "3")
    flags = (*three, "--training.local_batch_size")
    shared = tiny(folder / "three", "maxP", *flags, "1", scale=UNEVEN.name)
    done = run_ranks("rank_worker", str(folder), *shared, processes=3)
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SCALES, UNEVEN.name, UNEVEN)
        alone = run(tiny(folder / "one", "maxP", *flags, "3", scale=UNEVEN.name))
    return Run(folder / "three"), alone, ranks(folder, 3)


@pytest.fixture(scope="module")
def seen(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes saw of a short run."""
    folder = tmp_path_factory.mktemp("seen")
    flags = ("--training.local_batch_size", "2", "--steps", "4", *LIMITS)
    done = run_ranks("rank_worker", str(folder), *tiny(folder / "run", "maxP", *flags))
    assert done.returncode == 0, done.stderr[-2000:]
    return ranks(folder, 2)


def assert_same_experiment(actual: Run, expected: Run) -> None:
    """Losses to 1e-5 relative, every exponent to 1e-4, every c and lr."""
    assert actual.losses == pytest.approx(expected.losses, rel=1e-5)
    compared, steps = 0, expected.steps
    for step, record in actual.steps.items():
        theirs = steps[step]["sites"]
        assert record["sites"].keys() == theirs.keys()
        for site, values in record["sites"].items():
            assert values.keys() == theirs[site].keys()
            for name, value in values.items():
                tolerance = {"abs": 1e-4} if name in ALIGNMENTS else {"rel": 1e-4}
                assert value == pytest.approx(theirs[site][name], **tolerance)
                compared += name in ALIGNMENTS
    assert compared > 100


def test_the_way_to_compute_a_step_changes_no_measurement(other: Run, maxp_run: Run) -> None:
    assert_same_experiment(other, maxp_run)


def test_uneven_and_empty_shards_measure_what_whole_weights_do(
    uneven: tuple[Run, Run, list[dict[str, Any]]],
) -> None:
    shared, alone, _ = uneven
    assert_same_experiment(shared, alone)


def test_the_uneven_run_has_uneven_and_empty_shards(
    uneven: tuple[Run, Run, list[dict[str, Any]]],
) -> None:
    rows = [rank["rows"] for rank in uneven[2]]
    assert [r["layers.0.attention.wo"] for r in rows] == [7, 7, 6]
    assert [r["layers.0.attention.qkv_linear.wk"] for r in rows] == [2, 2, 0]


def test_a_measurement_is_one_small_collective_beside_its_forward_pass(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        forward, sent = rank["sent_by_forward"], rank["sent"]
        assert {name for name, _ in forward} == {"_allgather_base_"}  # FSDP's, as in training
        assert sent[: len(forward)] == forward
        # For each site: three sums per token, and the squares of dW and W0, in float64.
        sites = len(rank["rows"]) - 1  # all but the embedding contract something
        assert sent[len(forward) :] == [["allreduce_", sites * (3 * PROBE_TOKENS + 2) * 8]]


def test_every_process_group_has_the_time_limit_that_was_asked_for(
    seen: list[dict[str, Any]],
) -> None:
    for rank in seen:
        assert len(rank["limits"]) == 2  # that of the model, and that of the signals
        assert set(rank["limits"]) == {90.0}
