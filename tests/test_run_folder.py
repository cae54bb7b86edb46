"""A run's folder: who may use it, what is written in it, and what is read back."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.run import folder as run_folder
from train.run import provenance
from train.run.folder import RunFolder, RunFolderError, describe_status, load_run
from train.run.identity import identity
from train.run.provenance import git_commit, hardware, versions

CONFIG = {"scale": "s1", "method": "maxP", "lr": 0.003, "seed": 0, "steps": 400}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.claim(CONFIG)
    return run


def contents(path: Path) -> dict[str, bytes]:
    return {item.name: item.read_bytes() for item in path.iterdir()}


# identity


def test_identity_is_the_hash_of_canonical_json() -> None:
    canonical = b'{"lr":0.003,"model":{"dim":64,"scale":"s1"}}'
    config = {"model": {"scale": "s1", "dim": 64}, "lr": 3e-3}
    assert identity(config) == hashlib.sha256(canonical).hexdigest()[:16]


@pytest.mark.parametrize("key", ["output_dir", "dump_folder", "versions", "git_commit", "created"])
def test_identity_ignores_where_and_when_a_run_ran(key: str) -> None:
    assert identity({**CONFIG, key: "a"}) == identity({**CONFIG, key: "b"}) == identity(CONFIG)
    assert identity({"trainer": {key: "a", "lr": 1}}) == identity({"trainer": {"lr": 1}})


@pytest.mark.parametrize("key", sorted(CONFIG))
def test_identity_changes_with_every_other_key(key: str) -> None:
    assert identity({**CONFIG, key: "other"}) != identity(CONFIG)


def test_identity_survives_the_trip_through_config_json(tmp_path: Path) -> None:
    config = {**CONFIG, "data": Path("a/b"), "betas": (0.9, 0.95), "clip": 1.0, "top": float("inf")}
    run = RunFolder(tmp_path / "run")
    run.claim(config)
    stored = json.loads((run.path / "config.json").read_text())
    assert stored["identity"] == identity(config) == identity(load_run(run.path).config)
    assert run.claim(config) == "resumable"


def test_identity_does_not_tell_an_integer_from_the_equal_float() -> None:
    assert identity({"lr": 1}) == identity({"lr": 1.0}) != identity({"lr": 1.5})


def test_identity_refuses_a_value_whose_text_may_change_from_run_to_run() -> None:
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        identity({"model": object()})


# claim


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


def test_the_remains_of_a_claim_that_was_killed_do_not_block_the_folder(tmp_path: Path) -> None:
    (tmp_path / ".config.json.0123").write_text('{"identity"')
    assert RunFolder(tmp_path).claim(CONFIG) == "new"


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


# status


def test_status_says_state_step_reason_and_time(folder: RunFolder) -> None:
    folder.set_status("failed", step=3, reason="out of memory")
    status = json.loads((folder.path / "status.json").read_text())
    updated = datetime.fromisoformat(status.pop("updated"))
    assert updated.utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - updated) < timedelta(minutes=1)
    assert status == {"state": "failed", "step": 3, "reason": "out of memory"}


def test_a_running_run_says_on_which_host_and_as_which_process(folder: RunFolder) -> None:
    folder.set_status("running")
    status = load_run(folder.path).status
    assert (status["host"], status["pid"]) == (os.uname().nodename, os.getpid())
    folder.set_status("completed", step=400)
    assert not {"host", "pid"} & load_run(folder.path).status.keys()


def test_an_unknown_state_is_refused(folder: RunFolder) -> None:
    with pytest.raises(ValueError, match="'done', expected one of queued, running"):
        folder.set_status("done")  # type: ignore[arg-type]


def test_a_crash_while_the_status_is_written_leaves_the_old_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.set_status("running", step=5)
    before = contents(folder.path)

    def disk_full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        folder.set_status("completed", step=10)
    assert contents(folder.path) == before


def test_who_reads_while_the_status_is_replaced_reads_the_old_one_whole(folder: RunFolder) -> None:
    folder.set_status("running", step=5)
    with (folder.path / "status.json").open() as reader:
        folder.set_status("completed", step=10)
        assert json.load(reader)["step"] == 5
    assert load_run(folder.path).status["step"] == 10


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({}, "no status yet"),
        ({"state": "queued", "step": None, "reason": None}, "queued"),
        ({"state": "running", "step": 0}, "running at step 0"),
        ({"state": "diverged", "step": 12}, "diverged at step 12"),
        ({"state": "failed", "reason": "out of\n  memory"}, "failed: out of memory"),
        ({"state": "failed", "step": 3, "reason": "bad"}, "failed at step 3: bad"),
    ],
)
def test_a_status_in_words(status: dict[str, Any], words: str) -> None:
    assert describe_status(status) == words


def test_a_folder_describes_its_own_status(folder: RunFolder) -> None:
    folder.set_status("diverged", step=12)
    assert folder.describe() == "diverged at step 12"


# metrics


def test_append_writes_one_json_line_a_record(folder: RunFolder) -> None:
    log = folder.metrics()
    log.append({"step": 1, "loss": 2.5, "sites": {"wq": {"lr": 0.5, "c": -1}}})
    log.append({"step": 2, "ok": True, "note": "a\nb", "none": None})
    assert (folder.path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": 2.5, "sites": {"wq": {"lr": 0.5, "c": -1}}}\n'
        '{"step": 2, "ok": true, "note": "a\\nb", "none": null}\n'
    )


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (float("nan"), "null"),
        (float("inf"), "null"),
        (np.float32("-inf"), "null"),
        (np.int64(7), "7"),
        (np.float32(0.5), "0.5"),
        ([np.float64(0.5), float("nan")], "[0.5, null]"),
    ],
)
def test_append_writes_any_number_as_strict_json(
    folder: RunFolder, value: object, written: str
) -> None:
    folder.metrics().append({"a": {"b": value}})
    assert (folder.path / "metrics.jsonl").read_text() == f'{{"a": {{"b": {written}}}}}\n'


def test_append_takes_scalars_of_torch(folder: RunFolder) -> None:
    import torch  # not above: the processes that claim import this file

    loss, norm = torch.tensor(0.25, dtype=torch.bfloat16), torch.tensor(float("nan"))
    folder.metrics().append({"step": torch.tensor(3), "loss": loss, "norm": norm})
    assert (
        folder.path / "metrics.jsonl"
    ).read_text() == '{"step": 3, "loss": 0.25, "norm": null}\n'
    with pytest.raises(TypeError, match="'loss' is not a number"):
        folder.metrics().append({"loss": torch.zeros(2)})


@pytest.mark.parametrize("value", [np.zeros(2), object()])
def test_append_names_the_metric_that_is_no_number_and_writes_nothing(
    folder: RunFolder, value: object
) -> None:
    with pytest.raises(TypeError, match="'grad_norm' is not a number"):
        folder.metrics().append({"step": 1, "grad_norm": value})
    assert load_run(folder.path).metrics == []


def test_append_after_a_writer_was_killed_mid_line_loses_that_line_only(folder: RunFolder) -> None:
    log = folder.metrics()
    log.append({"step": 1})
    with log.path.open("a") as file:
        file.write('{"step": 2, "lo')
    log.append({"step": 3})
    assert log.path.read_text() == '{"step": 1}\n{"step": 2, "lo\n{"step": 3}\n'


def test_rewind_keeps_the_records_up_to_the_step(folder: RunFolder) -> None:
    log = folder.metrics()
    for record in ({"step": 1}, {"step": 2}, {"step": 2, "validation_loss": 3.5}, {"step": 3}):
        log.append(record)
    assert log.rewind(2) == 1
    assert log.path.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 2, "validation_loss": 3.5}\n'
    log.append({"step": 3, "again": 1})
    assert [record["step"] for record in load_run(folder.path).metrics] == [1, 2, 2, 3]


def test_rewind_drops_what_is_no_record(folder: RunFolder) -> None:
    log = folder.metrics()
    log.path.write_text('{"step": 1}\n{"loss": 2}\n[1]\n{"step": null}\n{"step": 2, "lo')
    assert log.rewind(9) == 4
    assert log.path.read_text() == '{"step": 1}\n'


def test_rewind_of_a_run_without_metrics_does_nothing(folder: RunFolder) -> None:
    assert folder.metrics().rewind(5) == 0
    assert os.listdir(folder.path) == ["config.json"]


def test_archive_puts_every_attempt_aside(folder: RunFolder) -> None:
    log = folder.metrics()
    for attempt in (1, 2, 10):
        log.append({"step": attempt})
        if attempt == 10:
            (folder.path / "metrics-9.jsonl").write_text("")
        log.archive()
    files = {name: data for name, data in contents(folder.path).items() if "metrics" in name}
    assert files == {
        "metrics-1.jsonl": b'{"step": 1}\n',
        "metrics-2.jsonl": b'{"step": 2}\n',
        "metrics-9.jsonl": b"",
        "metrics-10.jsonl": b'{"step": 10}\n',
    }


def test_archive_of_a_run_without_metrics_does_nothing(folder: RunFolder) -> None:
    assert folder.metrics().archive() is None


# reading


def test_load_run_reads_what_was_written(folder: RunFolder) -> None:
    folder.set_status("completed", step=2)
    folder.metrics().append({"step": 1, "loss": 2.5})
    folder.metrics().append({"step": 2, "validation_loss": 2.25})
    run = load_run(folder.path)
    assert (run.path, run.config, run.skipped_lines) == (folder.path, CONFIG, 0)
    assert (run.status["state"], run.status["step"]) == ("completed", 2)
    assert run.metrics == [{"step": 1, "loss": 2.5}, {"step": 2, "validation_loss": 2.25}]


def test_load_run_counts_and_logs_corrupt_lines(
    folder: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [b'{"step": 1}', b"\xff\xfe", b"[2]", b'{"step": 3}', b'{"step": 4, "lo']
    (folder.path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    with caplog.at_level(logging.WARNING):
        run = load_run(folder.path)
    assert run.metrics == [{"step": 1}, {"step": 3}]
    assert run.skipped_lines == 3
    assert [" ".join(text.split()[1:3]) for text in caplog.messages] == [
        "line 2",
        "line 3",
        "line 5",
    ]
    assert all(text.startswith(str(folder.path / "metrics.jsonl")) for text in caplog.messages)


def test_load_run_of_a_run_that_has_only_begun_is_empty(folder: RunFolder) -> None:
    run = load_run(folder.path)
    assert (run.status, run.metrics, run.skipped_lines) == ({}, [], 0)


def test_load_run_leaves_the_metrics_unread_on_request(folder: RunFolder) -> None:
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\nnothing')
    run = load_run(folder.path, metrics=False)
    assert (run.metrics, run.skipped_lines) == ([], 0)


def test_load_run_of_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"config\.json cannot be read"):
        load_run(tmp_path)


# versions and commit


def test_versions_name_python_and_the_packages_that_decide_the_numbers() -> None:
    import torch

    recorded = versions()
    assert list(recorded) == ["python", "maxp", "torch", "torchtitan", "pulp", "highspy"]
    assert recorded["python"] == ".".join(map(str, sys.version_info[:3]))
    # A CUDA build on PyPI says its CUDA version to Python only.
    assert recorded["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_the_hardware_of_a_run_is_its_device_and_number_of_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from types import SimpleNamespace

    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "3")
    devices = SimpleNamespace(get_device_name=lambda index: f"GPU {index}")
    current = SimpleNamespace(current_accelerator=lambda check_available: SimpleNamespace(type="x"))
    torch = SimpleNamespace(accelerator=current, get_device_module=lambda device: devices)
    monkeypatch.setitem(sys.modules, "torch", torch)
    recorded = hardware()
    assert recorded.pop("host")
    assert recorded == {"type": "x", "device": "GPU 3", "world_size": 8}
    current.current_accelerator = lambda check_available: None
    monkeypatch.setenv("WORLD_SIZE", "x")  # refused elsewhere
    recorded = hardware()
    assert (recorded["type"], recorded["world_size"]) == ("cpu", 1)
    assert recorded["device"].endswith(" cores")


def test_a_run_resumes_on_other_hardware(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.claim(CONFIG)
    file = run.path / "config.json"
    content = json.loads(file.read_text())
    content["hardware"] |= {"device": "another", "world_size": 64}
    file.write_text(json.dumps(content))
    assert run.claim(CONFIG) == "resumable"
    del content["hardware"]  # of an earlier version
    file.write_text(json.dumps(content))
    assert run.claim(CONFIG) == "resumable"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """A checkout in tmp_path with one commit, which the module believes to lie in."""

    def run(*words: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@localhost")
        command = ["git", "-C", str(tmp_path), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    module = tmp_path / "train" / "run" / "provenance.py"
    module.parent.mkdir(parents=True)
    module.write_text("first\n")
    run("init")
    run("add", ".")
    run("commit", "-m", "first")
    monkeypatch.setattr(provenance, "__file__", str(module))
    return run


def test_git_commit_is_that_of_the_checkout(git: Callable[..., str]) -> None:
    assert git_commit() == git("rev-parse", "HEAD")


def test_git_commit_says_when_files_were_modified(tmp_path: Path, git: Callable[..., str]) -> None:
    (tmp_path / "train" / "run" / "provenance.py").write_text("second\n")
    assert git_commit() == git("rev-parse", "HEAD") + "+dirty"


def test_git_commit_is_none_for_a_copy_inside_another_repository(
    tmp_path: Path, git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = tmp_path / "site-packages" / "train" / "run" / "provenance.py"
    inner.parent.mkdir(parents=True)
    monkeypatch.setattr(provenance, "__file__", str(inner))
    assert git_commit() is None


def test_git_commit_is_none_without_git(
    git: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_commit() is None
