"""The page about microsoft/mup: what it says of the two libraries is what its own code gives."""

import math

import pytest

from scripts import mup_page


@pytest.fixture(scope="module", params=mup_page.KINDS)
def sides(request: pytest.FixtureRequest) -> tuple[mup_page.Side, mup_page.Side]:
    return mup_page.sides(request.param)


def test_the_page_has_what_its_code_gives() -> None:
    assert mup_page.PAGE.read_text(encoding="utf-8") == mup_page.page()


def test_lr_times_multiplier_is_the_same_for_every_parameter(
    sides: tuple[mup_page.Side, mup_page.Side],
) -> None:
    *_, rows = mup_page.marks(*sides).split("| --- |\n")
    products = [line.strip("| ").split(" | ")[-2:] for line in rows.splitlines()]
    assert len(products) == len(list(sides[0].model.parameters()))
    for pair in products:
        mine, theirs = (math.prod(map(float, text.split(" x "))) for text in pair)
        assert mine == pytest.approx(theirs)


@pytest.mark.parametrize("kind", mup_page.KINDS)
def test_losses_from_the_same_weights_agree_in_12_digits(kind: str) -> None:
    difference, theirs, _ = mup_page.largest_difference(kind, 1e-60)
    assert difference < 1e-12
    assert theirs[-1] < 0.1 * theirs[0]
