"""``python -m scripts.api_page``: writes docs/api.md, the library's public names, from docstrings.

With ``--check`` it writes nothing and fails if the page is not up to date.
"""

import re
import sys
from pathlib import Path

import griffe
import tyro
from griffe2md import ConfigDict, render_object_docs

import maxp
from scripts.api_topics import TOPICS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
HEAD = """# The library's public names

Written by `python -m scripts.api_page` from the docstrings. [The theory](theory.md) defines the
symbols, and [the tutorial](tutorial.md) shows how to use them. The examples continue each other.
"""
CONFIG = ConfigDict(
    docstring_section_style="list", filters=["!^_"], heading_level=3, inherited_members=True,
    line_length=96, members_order="source", separate_signature=True, show_bases=False,
    show_if_no_docstring=False, show_object_full_path=False, show_root_full_path=False,
    show_signature_annotations=True, summary=False,
)  # fmt: skip


def page() -> str:
    """The whole page."""
    options = {"returns_multiple_items": False}
    package = griffe.load("maxp", docstring_parser="google", docstring_options=options)  # type: ignore[arg-type]
    parts = [
        HEAD,
        *(f"- [{topic.title}](#{topic.title.lower()}): {_links(topic.names)}" for topic in TOPICS),
    ]
    for topic in TOPICS:
        parts += ["", f"## {topic.title}", "", topic.text, "", f"```python\n{topic.example}```"]
        parts += ["", f"```text\n{topic.output}```", ""]
        parts += [_entry(package, name) for name in topic.names]
    return "\n".join(parts)


def _links(names: tuple[str, ...]) -> str:
    return ", ".join(f"[`{name}`](#{name.lower()})" for name in names)


def _entry(package: griffe.Object | griffe.Alias, name: str) -> str:
    """The docstring of a public name."""
    home = getattr(getattr(maxp, name), "__module__", "maxp.overrides")
    text = render_object_docs(package[f"{home}.{name}".removeprefix("maxp.")], CONFIG)
    # Links to types, which this page has no entries for, and the names of modules.
    text = re.sub(r"\[([^][]+)\]\(#[^)]*\)|`maxp\.[a-z_.]+\.", _plain, text)
    return text.replace("```python", "```text")


def _plain(match: re.Match[str]) -> str:
    return match[1] or "`"


def main(check: bool = False) -> None:
    """Write docs/api.md.

    Args:
        check: Write nothing; fail if the page is not up to date.
    """
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/api.md is out of date: run python -m scripts.api_page")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m scripts.api_page")
