"""A run's metrics.jsonl: appended to, rewound and archived."""

from __future__ import annotations

import os

import numpy as np
import pytest
from run_cases import contents
from run_cases import folder as folder  # a fixture

from train.run.folder import RunFolder, load_run

# Appending


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
    import torch  # not above: seconds, and no other test here needs it

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


# Rewinding and archiving


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
