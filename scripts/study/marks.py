"""Marked places in a Markdown file that hold a number or a table of the study.

``<!-- study: single.lr .3g -->0.001<!-- / -->`` holds the number at that path of ``summary.json``,
in that format; ``<!-- study: table slopes -->...<!-- / -->`` holds a table of `tables.TABLES`.
"""

import re
from typing import Any

from scripts.study.tables import TABLES

_MARK = re.compile(r"(<!-- study: (\S+) (\S+) -->)(.*?)(<!-- / -->)", re.DOTALL)


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


def fill(text: str, numbers: dict[str, Any]) -> str:
    """The text with every marked place rewritten from the numbers.

    Raises:
        KeyError: a mark names a number or a table that does not exist.
    """

    def rewrite(match: re.Match[str]) -> str:
        opening, path, how, _, closing = match.groups()
        if path == "table":
            if how not in TABLES:
                raise KeyError(f"table {how}: choose one of {', '.join(TABLES)}")
            return f"{opening}\n\n{TABLES[how](numbers)}\n\n{closing}"
        return f"{opening}{format(look_up(numbers, path), how)}{closing}"

    return _MARK.sub(rewrite, text)


def places(text: str) -> int:
    """How many marked places a text has."""
    return len(_MARK.findall(text))
