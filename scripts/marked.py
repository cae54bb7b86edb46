"""Marked places in a Markdown page that a command fills with tables and numbers.

``<!-- label: name --><!-- / -->`` holds the text of that name.
"""

import re
from collections.abc import Iterable, Mapping, Sequence


def fill(page: str, label: str, texts: Mapping[str, str]) -> str:
    """The page with the text of each marked place written anew. A table gets lines of its own.

    Raises:
        ValueError: a mark names no text, or a text has no mark.
    """
    marked: set[str] = set()

    def rewrite(match: re.Match[str]) -> str:
        opening, name, closing = match.groups()
        if name not in texts:
            raise ValueError(f"{opening}: choose one of {', '.join(texts)}")
        marked.add(name)
        text = texts[name]
        return f"{opening}\n\n{text}\n\n{closing}" if "\n" in text else opening + text + closing

    pattern = rf"(<!-- {label}: ([^>]+) -->).*?(<!-- / -->)"
    filled = re.sub(pattern, rewrite, page, flags=re.DOTALL)
    if missing := sorted(texts.keys() - marked):
        raise ValueError(f"the page has no mark <!-- {label}: {missing[0]} -->")
    return filled


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
