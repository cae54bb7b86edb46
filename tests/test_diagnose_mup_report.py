"""muP and the standard parametrization: what the check finds, and what its table and plot show."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from diagnose_cases import HIDDEN_SITES, SITES, WIDE, WIDTHS, broken, check, mup, standard_at_one_lr

from maxp.diagnose.report import plot_axis, print_axis
from maxp.diagnose.slopes import SiteStats, Slope

Checked = tuple[list[str], list[str], dict[str, SiteStats]]


@pytest.fixture(scope="module")
def mup_checked() -> Checked:
    return check(mup, seeds=16)


@pytest.fixture(scope="module")
def standard_checked() -> Checked:
    return check(standard_at_one_lr(1e-4))


# What is found


def assert_like_mup(checked: Checked) -> None:
    names, _, stats = checked
    assert names == SITES
    expected = dict.fromkeys(SITES, 0.0) | {"readout": -0.5}
    for name in SITES:
        init = stats[name].init
        assert abs(init.mean - expected[name]) <= max(0.05, 3 * init.error), name
        assert 3 * init.error < 0.25, f"{name}: the error bars do not tell -1/2 from 0"
    for name in SITES[:-1]:
        assert abs(stats[name].change.mean) <= 0.05, name
    assert abs(stats["readout"].change.mean) <= 0.15


def assert_grows_at_one_lr(checked: Checked) -> None:
    _, affected, stats = checked
    change = {name: stats[name].change for name in SITES}
    for name in [*HIDDEN_SITES, "readout"]:
        assert change[name].mean > 0.5, name
        assert name in affected
        assert "GROWS" in stats[name].text
    assert max(slope.mean for slope in change.values()) > 1


def test_under_mup_activations_and_their_changes_do_not_depend_on_width(
    mup_checked: Checked,
) -> None:
    assert_like_mup(mup_checked)


def test_nothing_is_affected_under_mup_and_the_readout_that_starts_at_minus_half_is_not(
    mup_checked: Checked,
) -> None:
    _, affected, stats = mup_checked
    assert affected == []
    assert stats["readout"].init.derived == pytest.approx(-0.5)


def test_under_mup_every_change_is_derived_as_flat(mup_checked: Checked) -> None:
    assert [mup_checked[2][name].change.derived for name in SITES] == pytest.approx([0.0] * 5)


@pytest.mark.slow
def test_under_mup_activations_and_their_changes_do_not_depend_on_width_up_to_2048() -> None:
    checked = check(mup, WIDE)
    assert_like_mup(checked)
    assert checked[1] == []


def test_in_the_standard_parametrization_at_one_lr_changes_grow(standard_checked: Checked) -> None:
    assert_grows_at_one_lr(standard_checked)


@pytest.mark.slow
def test_in_the_standard_parametrization_at_one_lr_changes_grow_up_to_2048() -> None:
    assert_grows_at_one_lr(check(standard_at_one_lr(1e-4), WIDE))


# What is shown


@pytest.mark.parametrize(
    ("mean", "error", "wanted", "words"),
    [
        (0.01, 0.02, 0.0, "flat"),
        (0.10, 0.04, 0.0, "flat, but noisy"),
        (0.98, 0.04, 0.0, "GROWS n^0.98"),
        (-0.20, 0.01, 0.0, "falls n^-0.20"),
        (-0.52, 0.01, -0.5, "n^-0.52"),
        (-0.20, 0.01, -0.5, "GROWS n^-0.20"),
        (-math.inf, 0.0, 0.0, "zero"),
        (math.nan, math.nan, 0.0, "NOT FINITE, or zero at times"),
    ],
)
def test_a_slope_in_words(mean: float, error: float, wanted: float, words: str) -> None:
    assert str(Slope(mean, error, derived=0.0, wanted=wanted, tolerance=0.05)) == words


def test_the_table_shows_derived_slopes_and_what_grows(
    standard_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("standard", *standard_checked, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[2 : 2 + len(SITES)]}
    for power, name in enumerate(SITES):
        assert f"{power:+.2f}" in rows[name], rows[name]
    assert "GROWS n^" in rows["hidden.0"]
    assert "4 of 5 sites are wrong" in lines[-1]
    assert "hidden.0 (GROWS" in lines[-1]


def test_the_table_of_a_right_parametrization_says_so(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("muP", SITES[:-1], *mup_checked[1:], WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "muP: all 4 sites are right over widths 128 to 512"


def test_the_table_names_the_width_that_would_tell(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    print_axis("muP", *mup_checked, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert "-0.50" in lines[1 + len(SITES)]
    first, last = mup_checked[2]["readout"].widths or (0, 0)
    need = f"widths {first} to {last} would, or more seeds"
    assert lines[-2] == f"readout: cannot tell at these widths; {need}"
    assert lines[-1] == "muP: no site is wrong, 4 of 5 are right over widths 128 to 512"


def test_the_table_asks_for_seeds_alone_where_the_width_that_would_tell_is_out_of_reach(
    mup_checked: Checked, capsys: pytest.CaptureFixture[str]
) -> None:
    names, wrong, stats = mup_checked
    noisy = replace(stats["readout"], init=replace(stats["readout"].init, error=0.5))
    assert noisy.widths is not None
    assert noisy.widths[1] > 16 * WIDTHS[-1]
    print_axis("muP", names, wrong, {**stats, "readout": noisy}, WIDTHS)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "readout: cannot tell at these widths; raise seeds"


def test_statistics_are_json_even_where_nothing_is_finite() -> None:
    stats = broken()
    read = json.loads(json.dumps(stats.as_dict(), allow_nan=False))
    assert read["init"]["mean"] == stats.init.mean
    assert read["init_rms"] == stats.init_rms.tolist()
    assert read["change"]["mean"] is None


def test_the_plot_is_written_and_nothing_beside_it(
    standard_checked: Checked, tmp_path: Path
) -> None:
    plot_axis("standard", *standard_checked, WIDTHS, filename=tmp_path / "check.png")
    assert (tmp_path / "check.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["check.png"]


def test_a_plot_of_an_unknown_format_is_an_error_and_leaves_nothing(
    standard_checked: Checked, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="docx"):
        plot_axis("standard", *standard_checked, WIDTHS, filename=tmp_path / "check.docx")
    assert list(tmp_path.iterdir()) == []


def test_the_plot_draws_sites_that_are_zero_or_not_finite_only_in_the_legend(
    tmp_path: Path,
) -> None:
    stats = {"site": broken()}
    plot_axis("broken", ["site"], ["site"], stats, [16, 64, 128], filename=tmp_path / "check.svg")
    assert (tmp_path / "check.svg").stat().st_size > 0
