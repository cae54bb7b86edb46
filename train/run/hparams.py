"""A run as TensorBoard's HParams sees it: its coordinates and its final losses.

A session of its own under ``tb/hparams``, beside the curves that torchtitan writes. TensorBoard is
imported here alone; the messages are made from its protobufs: its own helpers need TensorFlow.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.api_pb2 import Status
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from train.results.collect import read_run
from train.run.folder import FINISHED, RunFolder, RunFolderError

METRICS = {"validation": "final/validation_loss", "train": "final/train_loss"}
"""Metric -> the tag of its scalar, nats a token."""


def write_hparams(folder: str | os.PathLike[str]) -> Path:
    """Write the session of a finished run, replacing an earlier one; returns its folder.

    Hyperparameters: lr, method, scale, seed, and the state. A loss that does not exist (all of a
    run that diverged) is left out, so that HParams shows its field empty.

    Raises:
        RunFolderError: the folder holds no run, or one that has no result yet.
        OSError: it cannot be written.
    """
    row = read_run(Path(folder))
    if row["state"] not in FINISHED:
        raise RunFolderError(f"{folder} has no result for HParams: {row['description']}")
    start = SessionStartInfo(group_name=os.fspath(folder))
    for key in ("scale", "method", "state"):
        start.hparams[key].string_value = str(row[key])
    for key in ("lr", "seed"):
        if isinstance(row[key], int | float):
            start.hparams[key].number_value = row[key]
    now = time.time()
    start.start_time_secs = now
    ended = "STATUS_SUCCESS" if row["state"] == "completed" else "STATUS_FAILURE"
    end = SessionEndInfo(status=Status.Value(ended), end_time_secs=now)
    losses = [
        Summary.Value(tag=tag, simple_value=row[name])
        for name, tag in METRICS.items()
        if row[name] is not None
    ]
    target = RunFolder(folder).tb / "hparams"
    target.mkdir(parents=True, exist_ok=True)
    earlier = list(target.glob("events.out.tfevents.*"))
    step = int(row["step"] or 0)
    writer = EventFileWriter(str(target), filename_suffix=f".{time.time_ns()}")
    for values in (
        [_info(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start))],
        losses,
        [_info(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end))],
    ):
        if values:
            writer.add_event(Event(wall_time=now, step=step, summary=Summary(value=values)))
    writer.close()
    for file in earlier:
        file.unlink(missing_ok=True)
    return target


def _info(tag: str, data: HParamsPluginData) -> Summary.Value:
    return Summary.Value(
        tag=tag,
        metadata=metadata.create_summary_metadata(data),
        tensor=metadata.NULL_TENSOR,
    )
