"""Who may use a run's folder: claims of new, known and foreign folders, also at once."""

from __future__ import annotations

import json
import multiprocessing
import os
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest
from run_cases import CONFIG, contents
from run_cases import folder as folder  # a fixture

from train.run import folder as run_folder
from train.run.folder import RunFolder, RunFolderError, load_run
from train.run.identity import identity
from train.run.provenance import git_commit, hardware, versions


def test_claim_of_a_missing_folder_is_new_and_records_the_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "a" / "b")
    assert run.claim(CONFIG) == "new"
    stored = json.loads((run.path / "config.json").read_text())
    assert len(stored["id"]) == 8
    assert stored == {
        "identity": identity(CONFIG),
        "id": stored["id"],
        "config": CONFIG,
        "versions": versions(),
        "git_commit": git_commit(),
        "hardware": hardware(),
    }
    assert os.listdir(run.path) == ["config.json"]


def test_claim_of_an_empty_folder_is_new(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).claim(CONFIG) == "new"


def test_config_json_is_readable_by_whom_the_umask_lets_read(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        RunFolder(tmp_path).claim(CONFIG)
    finally:
        os.umask(before)
    assert (tmp_path / "config.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("state", "answer"),
    [
        (None, "resumable"),
        ("queued", "resumable"),
        ("running", "resumable"),
        ("preempted", "resumable"),
        ("failed", "resumable"),
        ("completed", "completed"),
        ("diverged", "completed"),
    ],
)
def test_claim_of_the_same_run_tells_by_its_status_whether_it_has_a_result(
    folder: RunFolder, state: run_folder.State | None, answer: str
) -> None:
    if state is not None:
        folder.set_status(state)
    before = contents(folder.path)
    assert folder.claim({**CONFIG, "output_dir": "elsewhere"}) == answer
    assert contents(folder.path) == before


def test_claim_of_another_runs_folder_says_what_differs_and_leaves_it(folder: RunFolder) -> None:
    before = contents(folder.path)
    other = {"scale": "s2", "method": "sp", "lr": 0.01, "seed": 0, "model": {"dim": 64}}
    with pytest.raises(RunFolderError) as caught:
        folder.claim(other)
    message = str(caught.value)
    assert "\n" not in message
    assert f"--output-dir {folder.path}" in message
    assert "lr: 0.003 there, 0.01 here" in message
    assert 'method: "maxP" there, "sp" here' in message
    assert "model.dim: absent there, 64 here" in message
    assert "seed" not in message
    assert "and 2 more" in message  # scale and steps
    assert "choose another --output-dir" in message
    assert contents(folder.path) == before


def test_claim_never_takes_a_folder_with_somebody_elses_files(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(RunFolderError, match=r"--output-dir .*thesis\.tex.*choose another"):
        RunFolder(tmp_path).claim(CONFIG)
    assert contents(tmp_path) == {"thesis.tex": b"words"}


def test_claim_of_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    with pytest.raises(RunFolderError, match=r"--output-dir .*file cannot be used"):
        RunFolder(tmp_path / "file").claim(CONFIG)


@pytest.mark.parametrize("text", ['{"identity": "12', "[]", "{}", '{"config": 1}', "\xff"])
def test_claim_refuses_a_config_json_that_is_no_runs(folder: RunFolder, text: str) -> None:
    (folder.path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunFolderError, match=r"config\.json .*choose another --output-dir"):
        folder.claim(CONFIG)


@pytest.mark.parametrize("text", ['{"state": "comp', "{}", '{"state": "finished"}'])
def test_claim_refuses_a_corrupt_status_json(folder: RunFolder, text: str) -> None:
    (folder.path / "status.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"status\.json is corrupt .*remove that file"):
        folder.claim(CONFIG)


def test_the_remains_of_a_claim_that_was_killed_do_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.json.0123").write_text('{"identity"')
    assert RunFolder(tmp_path).claim(CONFIG) == "new"


# At once


def test_a_rival_that_comes_between_look_and_write_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def rival_first(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        assert RunFolder(tmp_path).claim({**CONFIG, "seed": 1}) == "new"
        link(source, target)

    monkeypatch.setattr(os, "link", rival_first)
    with pytest.raises(RunFolderError, match="seed: 1 there, 0 here"):
        RunFolder(tmp_path).claim(CONFIG)
    assert load_run(tmp_path).config["seed"] == 1
    assert os.listdir(tmp_path) == ["config.json"]


ROUNDS = 40


def claim_all(
    root: Path, config: dict[str, Any], start: Barrier, answers: Queue[list[str]]
) -> None:
    mine: list[str] = []
    for number in range(ROUNDS):
        start.wait()
        try:
            mine.append(RunFolder(root / str(number)).claim(config))
        except RunFolderError as error:
            mine.append("refused" if "another configuration" in str(error) else str(error))
    answers.put(mine)


@pytest.mark.parametrize(("second_seed", "loser"), [(1, "refused"), (0, "resumable")])
def test_of_two_processes_claiming_at_once_exactly_one_gets_a_new_run(
    tmp_path: Path, second_seed: int, loser: str
) -> None:
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(2), context.Queue()
    processes = [
        context.Process(target=claim_all, args=(tmp_path, {**CONFIG, "seed": seed}, start, answers))
        for seed in (0, second_seed)
    ]
    for process in processes:
        process.start()
    both = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    assert [sorted(pair) for pair in zip(*both, strict=True)] == [sorted(["new", loser])] * ROUNDS
    assert all(os.listdir(path) == ["config.json"] for path in tmp_path.iterdir())
