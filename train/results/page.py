"""The report's page: its template, and the styles and scripts that are written into it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from train.run.files import plain

_ASSETS = Path(__file__).parent / "assets"
_STYLES = ("uplot/uPlot.min.css", "report.css")
_SCRIPTS = ("tables.js", "runs.js", "curves.js")


def render(data: Any, **content: Any) -> str:
    """The page as one self-contained HTML file.

    Args:
        data: for the scripts, as JSON.
        content: of the template, ``assets/report.html``.
    """
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    # No text in the data may end the element that it is written into.
    data = json.dumps(plain(data), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = environment.from_string(_asset("report.html")).render(
        **content,
        css=Markup("\n".join(map(_asset, _STYLES))),
        js=Markup(_scripts()),
        data=Markup(data),
    )
    return page.strip() + "\n"


def _scripts() -> str:
    """uPlot with its licence, and our own scripts, each with names of its own."""
    own = "".join(f"{{\n{_asset(name)}}}\n" for name in _SCRIPTS)
    return f"/*\n{_asset('uplot/LICENSE')}\n*/\n{_asset('uplot/uPlot.iife.min.js')}\n{own}"


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")
