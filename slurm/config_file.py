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
_MISSING = frozenset({"missing", "missing_argument"})
_MOST_LEVELS = 20  # of tables and lists in each other


class ConfigError(ValueError):
    """Bad input; the message is one line that names the file or flag, the key and the remedy."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))  # a key or value may hold line breaks


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: the file cannot be read or is not TOML, or a value is out of range.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        raise ConfigError(f"{path}: not valid TOML ({error}): correct that line") from error
    for key, value in table.items():
        try:
            _check_value(key)
            _check_value(value)
        except ValueError as error:
            raise ConfigError(f"{path}: {key}: {error}") from None
    return table


def _check_value(value: Any, levels: int = 1) -> None:
    """Refuse what no command line or batch script can hold, at any depth."""
    if levels > _MOST_LEVELS:
        raise ValueError(f"has more than {_MOST_LEVELS} levels: write fewer tables in each other")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError("holds a number of more than 64 bits: write a smaller one")
    if isinstance(value, str) and "\0" in value:
        raise ValueError("holds a null character: remove it")
    if isinstance(value, dict):
        for key in value:
            _check_value(key)
    for item in value.values() if isinstance(value, dict) else ():
        _check_value(item, levels + 1)
    for item in value if isinstance(value, list) else ():
        _check_value(item, levels + 1)


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
        raise ConfigError(f"{where}: {_explain(errors[0], cls, table)}") from None


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
            remedy = did_you_mean(value, choice) or f"choose from {', '.join(choice)}"
            raise ValueError(f"{key}: {value!r} is unknown: {remedy}")


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """A question that names what ``name`` is a misspelling of, in any case; else None."""
    by_lower = {other.lower(): other for other in known}
    # Stricter than difflib's default: "mup" is no misspelling of "mup-no".
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.7)
    return f"did you mean {by_lower[close[0]]}?" if close else None


def _explain(error: ErrorDetails, cls: type, table: Mapping[str, Any]) -> str:
    missing = error["type"] in _MISSING
    parts: list[str] = []
    value: Any = table
    for part in error["loc"]:
        # Other parts are branches of a union, such as "str".
        is_key = isinstance(value, Mapping) and part in value
        if is_key or (isinstance(value, list | tuple) and isinstance(part, int)):
            parts.append(str(part))
            value = value[part]
    if missing:
        parts.append(str(error["loc"][-1]))
    key = ".".join(parts)
    match error["type"]:
        case kind if kind == _UNKNOWN:
            remedy = did_you_mean(parts[-1], _fields(cls)) or "remove it"
            return f"{key}: unknown key: {remedy}"
        case _ if missing:
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
