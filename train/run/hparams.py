"""A finished run as TensorBoard's HParams tab shows it: its coordinates and its final losses."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from train.run.folder import read_config_file
from train.run.identity import ADAMW

TAGS = {"validation": "final/validation_loss", "train": "final/train_loss"}
"""Metric -> the tag of its scalar, in nats per token or image."""
ACCURACY_TAG = "final/validation_accuracy"


def write_hparams(folder: str | os.PathLike[str], summary: Mapping[str, Any]) -> Path:
    """Write the HParams entry of a finished run, replacing an earlier one; returns its folder.

    The hyperparameters are scale, method, optimizer, lr, seed and state. A run that diverged has
    NaN losses, not missing ones: TensorBoard takes the columns of all runs from the first run that
    it finds.

    Args:
        folder: of the run.
        summary: of the run, as from `summary.write_summary`.

    Raises:
        OSError: the entry cannot be written.
    """
    target = Path(folder) / "tb" / "hparams"
    if target.exists():
        shutil.rmtree(target)
    tags = TAGS | ({} if summary.get("accuracy") is None else {"accuracy": ACCURACY_TAG})
    losses = {
        tag: math.nan if summary["state"] != "completed" or summary[name] is None else summary[name]
        for name, tag in tags.items()
    }
    coordinates = {key: summary[key] for key in ("scale", "method", "lr", "seed", "state")}
    settings = read_config_file(Path(folder))["config"].get("maxp") or {}
    coordinates["optimizer"] = settings.get("optimizer", ADAMW)
    with SummaryWriter(os.fspath(target)) as writer:
        writer.add_hparams(coordinates, losses, run_name=".", global_step=summary["step"])
    return target
