"""The tutorial's and the report's numbers are those of the committed study."""

import json
from pathlib import Path

import pytest

from scripts.study import marks

DOCS = Path(__file__).resolve().parent.parent / "docs"
NUMBERS = json.loads((DOCS / "study" / "summary.json").read_text())


@pytest.mark.parametrize("name", ["tutorial.md", "study/report.md"])
def test_the_committed_numbers_are_those_of_the_committed_study(name: str) -> None:
    text = (DOCS / name).read_text()
    assert text.count("<!-- study: ") > 10
    assert marks.fill(text, NUMBERS) == text


def test_a_number_that_differs_is_noticed() -> None:
    text = "slope <!-- study: a.0.b .2f -->1.00<!-- / -->"
    assert marks.fill(text, {"a": [{"b": 0.5}]}) == text.replace("1.00", "0.50")
    with pytest.raises(KeyError, match=r"a\.1\.b"):
        marks.fill(text.replace("a.0", "a.1"), {"a": [{"b": 0.5}]})
