"""TensorBoard's own readers, on what a finished run leaves for its HParams tab."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fake_runs import write_run
from harness import run, tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from train import __main__ as command
from train.run.hparams import write_hparams
from train.run.summary import write_summary

RECORDS = [{"step": 400, "loss": 3.5}]


def finish(folder: Path) -> Path:
    return write_hparams(folder, write_summary(folder))


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def hyperparameters(events: EventAccumulator) -> dict[str, float | str]:
    plugin = events.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(plugin[metadata.SESSION_START_INFO_TAG])
    return {name: v.number_value or v.string_value for name, v in start.hparams.items()}


def test_a_run_shows_its_coordinates_and_final_losses(tmp_path: Path) -> None:
    folder = write_run(tmp_path, lr=0.25, seed=3, validation=3.25, records=RECORDS)
    events = read(finish(folder))
    coordinates = {"scale": "s1", "method": "maxP", "optimizer": "adamw", "lr": 0.25, "seed": 3}
    assert hyperparameters(events) == {**coordinates, "state": "completed"}
    losses = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: (e.step, e.value) for tag, (e,) in losses.items()} == {
        "final/validation_loss": (400, 3.25),
        "final/train_loss": (400, 3.5),
    }


def test_a_run_with_muon_shows_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.25, settings={"maxp": {"optimizer": "muon"}})
    assert hyperparameters(read(finish(folder)))["optimizer"] == "muon"


def test_writing_again_replaces_the_entry(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.25)
    finish(folder)
    events = read(finish(folder))
    assert len(events.Scalars("final/validation_loss")) == 1


def test_a_run_that_cannot_leave_its_entry_is_completed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(command, "write_hparams", refuse)
    done = run(tiny(tmp_path / "run", "mup-no", "--steps", "1"))
    assert done.code == 0
    assert done.record.status["state"] == "completed"
    assert "no summary or no HParams entry (disk full)" in caplog.text


def test_the_plugin_lists_each_run_of_a_sweep_once_by_its_folder(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    finish(write_run(tmp_path, method="a", state="diverged", records=RECORDS, name="a"))
    for method, loss in (("maxP", 3.0), ("mup-no", 3.5)):
        finish(write_run(tmp_path, method=method, validation=loss, records=RECORDS, name=method))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), []
    )
    columns = {"scale", "method", "optimizer", "lr", "seed", "state"}
    assert {info.name for info in experiment.hparam_infos} == columns
    groups = list_session_groups.Handler(
        request,
        context,
        "",
        api_pb2.ListSessionGroupsRequest(
            start_index=0,
            slice_size=10,
            allowed_statuses=list(range(4)),
            col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        ),
    ).run()
    entries = {
        group.name: {metric.name.tag: metric.value for metric in group.metric_values}
        for group in groups.session_groups
    }
    assert set(entries) == {"a/tb/hparams", "maxP/tb/hparams", "mup-no/tb/hparams"}
    assert all(math.isnan(loss) for loss in entries["a/tb/hparams"].values())
    assert entries["maxP/tb/hparams"] == {
        "final/validation_loss": 3.0,
        "final/train_loss": 3.5,
    }
