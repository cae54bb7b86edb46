"""``python -m scripts.api_page``: writes docs/api.md, the library's public names, from docstrings.

python -m scripts.api_page          # write it
python -m scripts.api_page --check  # say whether it is up to date
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import tyro

import maxp

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"

HEAD = """# The library's public names

Written by `python -m scripts.api_page` from the docstrings; change those. What the letters mean is
in [the theory](theory.md), how to use them in [the tutorial](tutorial.md).
"""

# Sections of Google-style docstrings; each becomes a list.
_SECTIONS = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):$")
_CONTINUED = 4
_WIDTH = 96


def page() -> str:
    """The whole page."""
    names = sorted(maxp.__all__, key=lambda name: (name.isupper(), name.lower()))
    contents = "\n".join(f"- [`{name}`](#{name.lower()})" for name in names)
    return "\n".join([HEAD, contents, "", *(entry(name) for name in names)])


def entry(name: str) -> str:
    """One public name: its signature and what it says of itself."""
    thing = getattr(maxp, name)
    if not callable(thing):
        return f"## `{name}`\n\n{_constant(name)}\n"
    parts = [f"## `{name}`", _signature(name, thing), _prose(inspect.getdoc(thing) or "")]
    if inspect.isclass(thing):
        parts += [_member(name, member, value) for member, value in _members(thing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _constant(name: str) -> str:
    rows = "\n".join(
        f"| `{key}` | {', '.join(f'{kind} {pair}' for kind, pair in value.items())} |"
        for key, value in getattr(maxp, name).items()
    )
    said = "The parametrizations by name, as `ab_overrides` takes them: (a, b) a layer type."
    return f"{said}\n\n| name | (a, b) |\n|---|---|\n{rows}"


def _members(cls: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class itself documents."""
    found = []
    for name, value in vars(cls).items():
        wrapped = value.fget if isinstance(value, property) else value
        wrapped = getattr(wrapped, "__func__", wrapped)
        if not name.startswith("_") and inspect.isfunction(wrapped) and wrapped.__doc__:
            found.append((name, value))
    return found


def _member(owner: str, name: str, value: Any) -> str:
    if isinstance(value, property):
        return f"### `{owner}.{name}`\n\n{_prose(inspect.getdoc(value) or '')}"
    function = getattr(value, "__func__", value)
    return "\n\n".join(
        [
            f"### `{owner}.{name}`",
            _signature(f"{owner}.{name}", function),
            _prose(inspect.getdoc(function) or ""),
        ]
    )


def _signature(name: str, thing: Any) -> str:
    try:
        signature = inspect.signature(thing)
    except ValueError:
        return ""
    shown = [
        parameter.replace(annotation=_short(parameter.annotation))
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    returns = _short(signature.return_annotation)
    arrow = "" if returns is inspect.Signature.empty or inspect.isclass(thing) else f" -> {returns}"
    bare = signature.replace(parameters=shown, return_annotation=inspect.Signature.empty)
    text = f"{name}{bare}{arrow}"
    if len(text) > _WIDTH:  # one parameter a line
        inside = ",\n    ".join(_parameters(shown))
        text = f"{name}(\n    {inside},\n){arrow}"
    return f"```text\n{text}\n```"


def _parameters(shown: list[inspect.Parameter]) -> list[str]:
    found = []
    starred = False
    for parameter in shown:
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
            found.append("*")
            starred = True
        found.append(str(parameter))
    return found


def _short(annotation: Any) -> Any:
    """An annotation as one reads it: without the modules' names."""
    if annotation is inspect.Signature.empty:
        return annotation
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return _Plain(re.sub(r"\b(?:[a-z_]\w*\.)+(?=\w)", "", text))


class _Plain(str):
    """Shown without quotes."""

    def __repr__(self) -> str:
        return str(self)


def _prose(doc: str) -> str:
    """A docstring as Markdown: sections as lists, reST literals as code."""
    lines: list[str] = []
    section = False
    for line in doc.splitlines():
        if found := _SECTIONS.match(line):
            section = True
            lines += [f"**{found[1]}**", ""]
        elif section and line.startswith(" " * _CONTINUED):
            own = line[_CONTINUED:]
            item = re.match(r"([\w*, ]+): (.*)", own)
            if own.startswith(" "):
                lines.append(f"  {own.strip()}")
            elif item:
                lines.append(f"- `{item[1]}`: {item[2]}")
            else:
                lines.append(own)
        else:
            section = section and not line.strip()
            lines.append(line)
    text = "\n".join(lines)
    return re.sub(r"``([^`]+)``", r"`\1`", text).strip()


def main(check: bool = False) -> None:
    """Write the page.

    Args:
        check: Write nothing; fail where the page is not what would be written.
    """
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
        print(PAGE.relative_to(ROOT))
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/api.md is out of date: run python -m scripts.api_page")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m scripts.api_page")
