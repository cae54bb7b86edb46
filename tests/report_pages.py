"""What the tests of the HTML report read from a page, and what they write into its runs."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

H100 = {"type": "cuda", "device": "NVIDIA H100 80GB HBM3", "world_size": 8, "host": "node7"}
SPEED = [{"step": 400, "loss": 3.0, "tokens": 7_200_000, "tokens_per_second": 500.0}]


class Rows(HTMLParser):
    """The cells of the body of the table with one id, as text, and whether each row is hidden."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.hidden: list[bool] = []
        self._table, self._inside, self._cell = table, False, False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        if tag == "table":
            self._inside = given.get("id") == self._table
        elif tag == "tr" and self._inside:
            self.rows.append([])
            self.hidden.append("hidden" in given)
        elif tag == "td" and self._inside:
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data


def rows(page: str, table: str) -> list[list[str]]:
    parser = Rows(table)
    parser.feed(page)
    return [row for row in parser.rows if row]


def data(page: str) -> dict[str, Any]:
    """What the page's scripts read."""
    (text,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    read: dict[str, Any] = json.loads(text)
    return read


def named(page: str) -> list[dict[str, str]]:
    """The rows of the table of runs, by head."""
    heads = re.findall(r"<button>([^<]*)</button>", page[page.index('id="runs"') :])
    return [dict(zip(heads, row, strict=False)) for row in rows(page, "runs")]
