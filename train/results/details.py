"""What the report says about each run beside its numbers: configuration, commit, hardware, log."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from train.results.collect import UNREADABLE
from train.results.names import value_text
from train.run.folder import JOB, read_config_file

_NOT_SETTINGS = ("versions", "git_commit")


@dataclass(frozen=True)
class Details:
    """One run.

    Attributes:
        settings: dotted name -> value, as text, of its whole configuration.
        versions: of Python and the packages.
        commit: of the code; "" if it is not known.
        hardware: as from `train.run.provenance.hardware`, of the run's first start; empty for
            runs of earlier versions.
        hours: device-hours of the steps so far; NaN if they are not known. See `device_hours`.
        log: the output of its job, if there is such a file.
    """

    settings: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    commit: str = ""
    hardware: dict[str, Any] = field(default_factory=dict)
    hours: float = float("nan")
    log: Path | None = None

    @property
    def device(self) -> str:
        """E.g. "8 x NVIDIA H100 80GB HBM3"; "" if it is not known."""
        name = str(self.hardware.get("device") or "")
        count = self.hardware.get("world_size") or 1
        return f"{count} x {name}" if name and count != 1 else name


def details(runs: pd.DataFrame) -> list[Details]:
    """The details of each run, a row of `collect.collect`; those of an unreadable run are empty."""
    return [
        Details() if row["state"] == UNREADABLE else _read(Path(row["path"]), device_hours(row))
        for row in runs.to_dict("records")
    ]


def device_hours(run: Mapping[Any, Any]) -> float:
    """Hours of all devices together: tokens, or images, over those per second and device.

    The speed is the median over the last 10% of the steps. Start-up, compilation, validation and
    steps that were repeated after a stop do not count.
    """
    return float(run["tokens"]) / float(run["tokens_per_second"] or "nan") / 3600


def hours_name(several: list[Details]) -> str:
    """What the hours of these runs are called."""
    kinds = {str(one.hardware.get("type", "")) for one in several if one.settings}
    if kinds == {"cpu"}:
        return "CPU-hours"
    return "device-hours" if kinds & {"cpu", ""} or not kinds else "GPU-hours"


def differences(several: list[Details]) -> tuple[dict[str, str], list[dict[str, str]]]:
    """The settings that all runs share, and for each run those that it does not share."""
    known = [one.settings for one in several if one.settings]
    first = known[0] if known else {}
    shared = {
        name: value
        for name, value in first.items()
        if all(settings.get(name) == value for settings in known)
    }
    return shared, [
        {name: value for name, value in one.settings.items() if name not in shared}
        for one in several
    ]


def _read(folder: Path, hours: float) -> Details:
    content = read_config_file(folder)
    config = content["config"]
    hardware, versions = content.get("hardware"), content.get("versions", config.get("versions"))
    return Details(
        settings=dict(_leaves({k: v for k, v in config.items() if k not in _NOT_SETTINGS})),
        versions=versions if isinstance(versions, dict) else {},
        commit=str(content.get("git_commit") or config.get("git_commit") or ""),
        hardware=hardware if isinstance(hardware, dict) else {},
        hours=hours,
        log=_log(folder, config),
    )


def _log(folder: Path, config: Mapping[str, Any]) -> Path | None:
    """The log that job.json names, also where the sweep was moved with its logs."""
    named = None
    with suppress(OSError, ValueError, TypeError, AttributeError):
        named = Path(json.loads((folder / JOB).read_bytes()).get("log"))
    if named is None:
        return None
    former = config.get("dump_folder")
    places = [named]
    if former and Path(former).is_absolute() == named.is_absolute():
        places.insert(0, Path(os.path.normpath(folder / os.path.relpath(named, former))))
    return next((place for place in places if place.is_file()), None)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Dotted name and value, as text, of every setting."""
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        value = dict(enumerate(value))
    if not isinstance(value, Mapping) or not value:
        yield name, "{}" if value == {} else value_text(value)
        return
    for key, item in value.items():
        yield from _leaves(item, f"{name}.{key}" if name else str(key))
