"""Flags of ``python -m train`` in a sweep: read from TOML, checked, written as arguments."""

import contextlib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from slurm.config_file import ConfigError

Scalar = str | int | float | bool
Flag = Scalar | list[Scalar]
Flags = dict[str, Flag]

# Flags of a run that the sweep itself sets, and the sweep's key for each.
_SET_BY_SWEEP = {
    **{name: name + "s" for name in ("scale", "method", "lr", "seed")},
    "steps": "steps",
    "training.steps": "steps",
    "check": "--dry-run",
    "maxp.method": "methods",
    "maxp.lr": "lrs",
    "debug.seed": "seeds",
    "dataloader.seed": "seeds",
}
_SET_BY_SUBMISSION = ("output_dir", "dump_folder")
_FLAG = re.compile(r"\w+(\.\w+)*", re.ASCII)


def read_flags(table: Mapping[str, Any], where: str) -> Flags:
    """Nested tables as dotted names with underscores, as torchtitan writes them.

    Args:
        where: the file and table, with which messages begin.

    Raises:
        ConfigError: the name is none of a flag, the sweep itself sets the flag, it appears twice,
            or its value is no scalar or list of scalars.
    """
    flags: Flags = {}
    for written, value in leaves(table):
        name = written.removeprefix("--").replace("-", "_")
        if not _FLAG.fullmatch(name):
            raise ConfigError(
                f"{where}.{written}: is no name of a flag: write it as training.local_batch_size"
            )
        if name in _SET_BY_SWEEP:
            raise ConfigError(f"{where}.{written}: is set by the sweep: use {_SET_BY_SWEEP[name]}")
        if name in _SET_BY_SUBMISSION:
            raise ConfigError(f"{where}.{written}: each run has its own folder: remove it")
        if name in flags:
            raise ConfigError(f"{where}.{written}: is there twice: remove one")
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, Scalar) for item in items):
            raise ConfigError(
                f"{where}.{written}: {value}: must be text, a number, true, or a list"
            )
        for item in items:
            if isinstance(item, str) and item.startswith("--"):
                raise ConfigError(f"{where}.{written}: {item!r} would be read as a flag: change it")
            if isinstance(value, list) and isinstance(item, str) and "," in item:
                raise ConfigError(f"{where}.{written}: {item!r}: write two texts in the list")
        flags[name] = value
    return flags


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything in nested tables."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def parse_setting(text: str) -> tuple[str, Any]:
    """Name and value of ``FLAG=VALUE``; a value that is not TOML is text.

    Raises:
        ConfigError: the name or ``=`` is missing.
    """
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ConfigError(f"--set {text}: write FLAG=VALUE, as training.local_batch_size=8")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def settings(words: Sequence[str]) -> dict[str, Any]:
    """The flags of a command line that `arguments` wrote, for `train.run.identity`.

    It is read from the command line, not from the sweep, because that is what the files of earlier
    versions hold as well.
    """
    flags: dict[str, Any] = {}
    for word in words:
        if word.startswith("--"):
            flags[word[2:]] = values = []
        else:
            values.append(_number(word))
    flags = {
        name: values[0] if len(values) == 1 else values or True for name, values in flags.items()
    }
    if str(flags.get("training.global_batch_size", "")).startswith("-"):
        # One microbatch per process: its size then says which experiment it is.
        flags["microbatch"] = flags.get("training.local_batch_size")
    return flags


def _number(word: str) -> str | float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(word)):
            return number
    return word


def arguments(flags: Mapping[str, Flag]) -> Iterator[str]:
    """The command line of flags; a switch that is off becomes ``--section.no_name``."""
    for name, value in flags.items():
        if isinstance(value, bool):
            section, dot, last = name.rpartition(".")
            yield f"--{name}" if value else f"--{section}{dot}no_{last}"
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield from (f"--{name}", ",".join(map(str, value)))  # torchtitan's form
        elif isinstance(value, list):
            yield from (f"--{name}", *map(str, value))
        else:
            yield from (f"--{name}", str(value))
