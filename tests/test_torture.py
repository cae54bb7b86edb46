"""The torture script notices what it looks for; and signals during asynchronous checkpoints."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from scripts.torture import __main__ as command
from scripts.torture.case import Case, TortureError
from scripts.torture.files import delete, flip, truncate, zero
from scripts.torture.processes import saved, stop
from scripts.torture.runs import STEPS, Tiny, difference

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(corpus_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    run = Tiny(tmp_path_factory.mktemp("whole") / "run")
    command.finish(Case(run, random.Random(), False))
    return run


@pytest.fixture
def copy(whole: Tiny, tmp_path: Path) -> Tiny:
    shutil.copytree(whole.folder, tmp_path / "run")
    return Tiny(tmp_path / "run")


def test_a_run_that_is_made_again_does_not_differ(whole: Tiny, tmp_path: Path) -> None:
    again = Tiny(tmp_path / "run", mode="async")
    command.finish(Case(again, random.Random(), False))
    assert difference(again, whole) is None


def test_a_loss_that_differs_in_its_last_bit_is_noticed(copy: Tiny, whole: Tiny) -> None:
    file = copy.folder / "metrics.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    record = next(r for r in records if r["step"] == 7)
    loss = torch.tensor(record["loss"], dtype=torch.float64)
    record["loss"] = float(torch.nextafter(loss, torch.tensor(9.0, dtype=torch.float64)))
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert difference(copy, whole) == "metrics.jsonl differs at step 7 in loss"


def test_a_record_that_is_missing_is_noticed(copy: Tiny, whole: Tiny) -> None:
    file = copy.folder / "metrics.jsonl"
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines()[:-1]))
    assert str(difference(copy, whole)).startswith("metrics.jsonl has")


def test_a_weight_that_differs_is_noticed(copy: Tiny, whole: Tiny) -> None:
    folder = copy.checkpoints / f"step-{STEPS}"
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(item.size, dtype=item.properties.dtype)
        for name, item in metadata.items()
        if hasattr(item, "size")
    }
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    state["norm.weight"][0] += 1e-6
    dcp.save(state, checkpoint_id=folder, no_dist=True)
    assert difference(copy, whole) == "norm.weight of the last checkpoint differs"


def test_a_run_that_is_not_resumed_is_noticed(copy: Tiny, whole: Tiny) -> None:
    (copy.folder / "status.json").write_text('{"state": "running"}')
    assert difference(copy, whole) == "its state is running"


@pytest.mark.parametrize("change", [flip, zero, truncate, delete])
def test_every_way_to_damage_a_file_changes_it(change: object, tmp_path: Path) -> None:
    file = tmp_path / "file"
    content = bytes(range(1, 101))
    file.write_bytes(content)
    change(file, random.Random(1))  # type: ignore[operator]
    assert not file.exists() or file.read_bytes() != content


def test_a_signal_after_which_nothing_is_saved_is_a_failure(copy: Tiny) -> None:
    (copy.folder / "status.json").write_text('{"state": "preempted", "step": 13}')
    with pytest.raises(TortureError, match="step-13 is not complete"):
        saved(Case(copy, random.Random(), False))


def test_an_episode_is_counted_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAXP_CACHE", "")  # main sets it
    to = tmp_path / "result.json"
    assert command.main(minutes=1, seed=12, episodes=1, to=to, folder=tmp_path) == 0
    content = json.loads(to.read_text())
    assert sum(content["episodes"].values()) == 1
    assert content["failures"] == []
    assert 1 <= sum(sum(results.values()) for results in content["faults"].values()) <= 4
    assert "1 of 1 episodes end as uninterrupted runs" in capsys.readouterr().out


@pytest.mark.exhaustive
@pytest.mark.parametrize("processes", [1, 2])
def test_20_of_20_signals_during_asynchronous_checkpoints_leave_a_complete_one(
    processes: int, corpus_cache: Path, tmp_path: Path
) -> None:
    """A checkpoint is saved after every step, so that every signal comes during one."""
    more = ("--steps", "400", "--checkpoint.interval", "1")
    run = Tiny(tmp_path / "run", processes, "async", more)
    case = Case(run, random.Random(processes), False)
    assert [stop(case) for _ in range(20)] == ["saved"] * 20
