"""Marked places in a Markdown file that hold a number or a table of the study.

``<!-- study: single.lr .3g -->0.001<!-- / -->`` holds the number at that path of ``summary.json``,
in that format; ``<!-- study: table slopes -->...<!-- / -->`` holds a table of `tables.TABLES`.
"""

import re
from typing import Any

from scripts import marked
from scripts.study.tables import TABLES


def look_up(numbers: dict[str, Any], path: str) -> Any:
    """The value at a dotted path; digits index lists.

    Raises:
        KeyError: the path does not exist.
    """
    value: Any = numbers
    for part in path.split("."):
        try:
            value = value[int(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise KeyError(f"{path}: summary.json has no such number") from error
    return value


def fill(page: str, numbers: dict[str, Any]) -> str:
    """The page with every marked place rewritten from the numbers.

    Raises:
        KeyError: a mark names a number or a table that does not exist.
    """
    names = re.findall("<!-- study: ([^>]+) -->", page)
    return marked.fill(page, "study", {name: _text(name, numbers) for name in names})


def _text(name: str, numbers: dict[str, Any]) -> str:
    """The number or the table that a mark names."""
    path, _, how = name.partition(" ")
    if path != "table":
        return format(look_up(numbers, path), how)
    if how not in TABLES:
        raise KeyError(f"table {how}: choose one of {', '.join(TABLES)}")
    return TABLES[how](numbers)
