"""The page of the heat map: its numbers, its rows, and the command that makes it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from scripts.study import __main__ as command
from scripts.study import heatmap, marks
from scripts.study.files import read_rows
from scripts.study.numbers import rounded
from scripts.study.plan import FULL, SinglePass
from scripts.study.single_pass import derived_rows, fixed_input

COMMITTED = Path(__file__).resolve().parent.parent / "docs" / "study"
PAGE = COMMITTED / "heatmap.md"
KEYS = ["depth", "width"]


def test_the_numbers_of_the_page_are_those_of_its_tables() -> None:
    numbers = heatmap.numbers(*(read_rows(COMMITTED, name) for name in ("heatmap", "activations")))
    text = PAGE.read_text()
    assert text.count("<!-- study: ") > 10
    assert marks.fill(text, {"heatmap": rounded(numbers)}) == text


def test_the_table_has_a_row_for_each_of_5_widths_and_5_depths() -> None:
    table = read_rows(COMMITTED, "heatmap")
    sizes = pd.MultiIndex.from_product([(2, 4, 8, 16, 32), (64, 128, 256, 512, 1024)])
    assert list(zip(table.depth, table.width, strict=True)) == list(sizes)


def test_committed_ratios_are_measured_again() -> None:
    committed = read_rows(COMMITTED, "heatmap").set_index(KEYS)
    plan = SinglePass(widths=(64, 256), depths=(4, 8))
    again = heatmap.run(plan, workers=0).set_index(KEYS)
    np.testing.assert_allclose(again, committed.loc[again.index, again.columns], rtol=2e-3)


def test_the_derived_powers_of_the_columns_are_those_of_the_closed_form() -> None:
    for method in heatmap.INITS:
        rows = {row["kind"]: row for row in derived_rows(method, "adam", 4, FULL.single)}
        for name, (kind, quantity) in heatmap.COLUMNS.items():
            assert heatmap.EXPONENTS[f"{method}_{name}"] == rows[kind][quantity]


def ratios(readout_power: float, multiplier_power: float, width: int = 48) -> list[float]:
    """‖grad W‖ / ‖W‖ of a three-layer MLP, by autograd, with weights from N(0, 1/fan_in).

    The readout's weights are multiplied by ``width^readout_power`` and its output by
    ``width^-multiplier_power``.
    """
    generator = torch.Generator().manual_seed(0)
    shapes = [(width, 128), (width, width), (10, width)]
    draws = [torch.randn(s, generator=generator) / s[1] ** 0.5 for s in shapes]
    draws[2] *= width**readout_power
    w = [draw.double().requires_grad_() for draw in draws]
    h = (w[1] @ (w[0] @ fixed_input(128).double()).relu()).relu()
    (w[2] @ h * width**-multiplier_power).sum().backward()
    return [float(x.grad.norm() / x.detach().norm()) for x in w]


def test_without_its_multiplier_mup_has_the_ratios_of_the_standard_parametrization() -> None:
    standard, mup = ratios(0, 0), ratios(0, 0.5)
    assert [ratio * 48**0.5 for ratio in mup] == pytest.approx(standard)


def test_the_readouts_ratio_differs_between_two_forms_of_one_parametrization() -> None:
    ours, theirs = ratios(0, 0.5), ratios(0.5, 1)
    assert theirs[2] == pytest.approx(ours[2] / 48)
    assert theirs[:2] == pytest.approx(ours[:2])


def test_activations_are_of_the_last_layer_before_the_readout() -> None:
    step = {"width": 8, "depth": 3, "step": 0, "loss": 1.0, "accuracy": 0.5}
    rows = pd.DataFrame(
        [
            {**step, "seed": seed, "layer": layer, "activation": scale**seed}
            for seed in (0, 1)
            for layer, scale in enumerate((9.0, 4.0, 9.0))
        ]
    )
    assert heatmap.activations(rows).activation.item() == pytest.approx(2)


def test_the_command_writes_the_page_with_numbers_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ["--quick", "--part", "heatmap", "--workers", "0", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["study", *flags])
    assert command.main() == 0
    names = {"heatmap", "activations"}
    written = {path.name for path in tmp_path.iterdir()}
    assert written == {f"{n}.{e}" for n in names for e in ("csv", "png")} | {
        *("heatmap.md", "spiral.png", "training.csv")
    }
    assert set(read_rows(tmp_path, "heatmap").width) == {64, 128, 256}
    assert "| derived | 2 (+0.5) |" in (tmp_path / "heatmap.md").read_text()
