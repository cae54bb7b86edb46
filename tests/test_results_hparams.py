"""TensorBoard's own readers, on what a finished run leaves for its HParams tab."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_runs import write_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status

from train.run.folder import RunFolderError
from train.run.hparams import write_hparams
from train.run.summary import finish

RECORDS = [{"step": 400, "loss": 3.5}]


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def test_a_run_shows_its_coordinates_and_final_losses(tmp_path: Path) -> None:
    folder = write_run(tmp_path, lr=0.25, seed=3, validation=3.25, records=RECORDS)
    finish(folder)
    events = read(folder / "tb" / "hparams")
    plugin = events.PluginTagToContent(metadata.PLUGIN_NAME)
    start = metadata.parse_session_start_info_plugin_data(plugin[metadata.SESSION_START_INFO_TAG])
    values = {name: v.number_value or v.string_value for name, v in start.hparams.items()}
    assert values == {"scale": "s1", "method": "maxP", "lr": 0.25, "seed": 3, "state": "completed"}
    losses = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    assert {tag: (e.step, e.value) for tag, (e,) in losses.items()} == {
        "final/validation_loss": (400, 3.25),
        "final/train_loss": (400, 3.5),
    }


def test_a_diverged_run_ends_in_failure_and_has_no_losses(tmp_path: Path) -> None:
    target = write_hparams(write_run(tmp_path, state="diverged", records=RECORDS))
    events = read(target)
    plugin = events.PluginTagToContent(metadata.PLUGIN_NAME)
    end = metadata.parse_session_end_info_plugin_data(plugin[metadata.SESSION_END_INFO_TAG])
    assert end.status == Status.Value("STATUS_FAILURE")
    assert events.Tags()["scalars"] == []


def test_writing_again_replaces_the_session(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.25)
    write_hparams(folder)
    events = read(write_hparams(folder))
    assert len(events.Scalars("final/validation_loss")) == 1


def test_a_run_without_a_result_has_no_session(tmp_path: Path) -> None:
    folder = write_run(tmp_path, state="running")
    with pytest.raises(RunFolderError, match="has no result for HParams: running"):
        write_hparams(folder)
    assert not (folder / "tb").exists()


def test_the_plugin_lists_the_sessions_of_a_sweep(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups

    for method, loss in (("maxP", 3.0), ("mup-no", 3.5)):
        finish(write_run(tmp_path, method=method, validation=loss))
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(tmp_path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(tmp_path))
    context = backend_context.Context(TBContext(data_provider=provider, logdir=str(tmp_path)))
    request = RequestContext()
    experiment = context.experiment_from_metadata(
        request, "", True, context.hparams_metadata(request, ""), []
    )
    groups = list_session_groups.Handler(
        request,
        context,
        "",
        api_pb2.ListSessionGroupsRequest(
            start_index=0,
            slice_size=10,
            allowed_statuses=[Status.Value("STATUS_SUCCESS")],
            col_params=[api_pb2.ColParams(metric=info.name) for info in experiment.metric_infos],
        ),
    ).run()
    found = {
        group.hparams["method"].string_value: {m.name.tag: m.value for m in group.metric_values}
        for group in groups.session_groups
    }
    assert found == {
        "maxP": {"final/validation_loss": 3.0},
        "mup-no": {"final/validation_loss": 3.5},
    }
