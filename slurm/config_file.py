"""Reads TOML files into dataclasses; an error is one line that names the first mistake.

Pydantic checks types strictly, and refuses unknown keys: a string is not a number, ``true`` not 1.
"""

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

T = TypeVar("T")

NO_OTHER_KEYS = ConfigDict(extra="forbid")
"""As a dataclass's ``__pydantic_config__``, refuses keys that are not fields."""

_UNKNOWN = "unexpected_keyword_argument"  # pydantic's name for it
_BRANCHES = ("str", "int", "float", "bool")


class ConfigError(ValueError):
    """Bad input; the message is one line that names the file or flag, the key and the remedy."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML ({error}): correct that line") from error


def build(cls: type[T], table: Mapping[str, Any], where: str) -> T:
    """``cls(**table)`` for a dataclass; its fields and those of nested dataclasses are checked.

    A ``ValueError`` of a ``__post_init__`` becomes part of the message.

    Args:
        where: the file, with which messages begin.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a refused value.
    """
    # Through JSON, where strict checking takes a list for a tuple; dates and times become text.
    text = json.dumps(table, default=str)
    try:
        return TypeAdapter(cls).validate_json(text, strict=True)
    except ValidationError as error:
        # A misspelt key comes before the key that is missing because of it.
        errors = sorted(error.errors(), key=lambda one: one["type"] != _UNKNOWN)
        raise ConfigError(f"{where}: {_explain(errors[0], cls)}") from None


def check_unique(values: Iterable[object], key: str) -> None:
    """Refuse an empty list, and duplicates.

    Raises:
        ValueError: names the key and the value.
    """
    seen = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{key}: {value} is there twice: remove one")
        seen.add(value)
    if not seen:
        raise ValueError(f"{key}: empty: give at least one")


def check_known(values: Iterable[str], known: Iterable[str], key: str) -> None:
    """Refuse a name that is not one of ``known``.

    Raises:
        ValueError: names the key, the name and the choice.
    """
    choice = list(known)
    for value in values:
        if value not in choice:
            raise ValueError(f"{key}: {value!r} is unknown: choose from {', '.join(choice)}")


def _explain(error: ErrorDetails, cls: type) -> str:
    # Parts such as "str" or "list[...]" are branches of a union, not keys.
    parts = [str(p) for p in error["loc"] if p not in _BRANCHES and "[" not in str(p)]
    key = ".".join(parts)
    match error["type"]:
        case kind if kind == _UNKNOWN:
            close = difflib.get_close_matches(parts[-1], _fields(cls), n=1)
            return f"{key}: unknown key: {f'did you mean {close[0]}?' if close else 'remove it'}"
        case "missing" | "missing_argument":
            return f"{key}: missing: add it"
        case "value_error":
            reason = str(error["ctx"]["error"])
            return f"{key}.{reason}" if key else reason
        case _:
            message = error["msg"].removeprefix("Input ").lower()
            return f"{key}: {message}, not {json.dumps(error['input'])[:60]}"


def _fields(annotation: Any) -> Iterator[str]:
    """Names of the fields of a dataclass and of nested dataclasses."""
    for field in dataclasses.fields(annotation) if dataclasses.is_dataclass(annotation) else ():
        yield field.name
        yield from _fields(field.type)
    for argument in getattr(annotation, "__args__", ()):
        yield from _fields(argument)
