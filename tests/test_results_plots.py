"""The pictures of a sweep: what is drawn is what was measured."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import write_run, write_sweep
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure

from train.results import curves, plots, style
from train.results.analysis import Results
from train.results.collect import collect


def analysed(root: Path) -> Results:
    return Results.of(collect(root), "validation")


def drawn(axes: Axes, method: str) -> list[list[tuple[float, float]]]:
    """The points of each line in the colour of a method."""
    colour, _ = style.looks([method])[method]
    lines = [line for line in axes.get_lines() if line.get_color() == colour]
    data: list[Any] = [line.get_xydata() for line in lines]
    return [[(float(x), float(y)) for x, y in points] for points in data]


def heat(figure: Figure) -> list[np.ndarray[Any, Any]]:
    meshes = [axes.collections[0] for axes in figure.axes[:-1]]  # the last is the colour bar
    assert all(isinstance(mesh, QuadMesh) for mesh in meshes)
    return [np.ma.filled(np.ma.asarray(mesh.get_array()), math.nan) for mesh in meshes]


def test_the_line_of_a_method_is_its_means_and_its_ring_the_best(tmp_path: Path) -> None:
    for seed, loss in enumerate([3.0, 3.5]):
        write_run(tmp_path, lr=1e-2, seed=seed, validation=loss)
    write_run(tmp_path, lr=1e-3, validation=3.75)
    (axes,) = plots.loss_against_lr(analysed(tmp_path)).axes
    line, *_ = drawn(axes, "maxP")
    assert line == [(1e-3, 3.75), (1e-2, 3.25)]
    rings = [mark for mark in axes.get_lines() if mark.get_markersize() == 11]
    assert [ring.get_xydata().tolist() for ring in rings] == [[[1e-2, 3.25]]]


def test_a_diverged_lr_is_a_cross_at_the_top_and_no_point_of_the_line(tmp_path: Path) -> None:
    write_run(tmp_path, lr=1e-2, validation=3.0)
    write_run(tmp_path, lr=1e-1, seed=0, validation=2.0)
    write_run(tmp_path, lr=1e-1, seed=1, state="diverged")
    (axes,) = plots.loss_against_lr(analysed(tmp_path)).axes
    line, *_ = drawn(axes, "maxP")
    assert line == [(1e-2, 3.0)]
    (cross,) = [mark for mark in axes.get_lines() if mark.get_marker() == "x"]
    assert cross.get_xdata() == [1e-1]
    assert cross.get_transform() == axes.get_xaxis_transform()


def test_losses_that_would_flatten_the_others_are_left_out_and_counted(tmp_path: Path) -> None:
    losses = {1e-4: 3.2, 1e-3: 3.1, 1e-2: 3.0, 1e-1: 3.1, 1.0: 90.0}
    for lr, loss in losses.items():
        write_run(tmp_path, lr=lr, validation=loss)
    (axes,) = plots.loss_against_lr(analysed(tmp_path)).axes
    assert axes.get_ylim()[1] < 4
    assert "1 higher" in [text.get_text() for text in axes.texts]


def test_the_gap_is_the_method_less_the_reference(tmp_path: Path) -> None:
    for method, losses in {
        "maxP": {1e-3: 3.0, 1e-2: 3.5, 1e-1: None},
        "mup-full": {1e-3: 3.25, 1e-2: 3.25, 1e-1: 4.0, 1.0: 5.0},
    }.items():
        for lr, loss in losses.items():
            state = "completed" if loss else "diverged"
            write_run(tmp_path, method=method, lr=lr, validation=loss, state=state)
    figure = plots.gap_map(analysed(tmp_path))
    assert figure is not None
    (gaps,) = heat(figure)
    assert gaps[:, :2].tolist() == [[-0.25, 0.25]]
    assert np.isnan(gaps[:, 2:]).all()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["-0.250", "+0.250", "div.", "–"]


def test_without_a_reference_there_is_no_gap_map(tmp_path: Path) -> None:
    write_run(tmp_path, method="maxP", validation=3.0)
    assert plots.gap_map(analysed(tmp_path)) is None


def test_the_transfer_plot_shows_the_best_lr_of_each_scale(tmp_path: Path) -> None:
    for scale, best in (("s2", 1e-2), ("s10", 1e-3)):
        for lr in (1e-3, 1e-2):
            write_run(tmp_path, scale=scale, lr=lr, validation=3.0 + (lr != best))
    lr_axes, loss_axes, regret_axes = plots.transfer(analysed(tmp_path)).axes
    assert drawn(lr_axes, "maxP")[0] == [(0, 1e-2), (1, 1e-3)]
    assert drawn(loss_axes, "maxP")[0] == [(0, 3.0), (1, 3.0)]
    assert drawn(regret_axes, "maxP")[0] == [(1, 1.0)]


def test_the_curve_is_that_of_the_best_seed_at_the_best_lr(tmp_path: Path) -> None:
    for seed, loss in enumerate([3.5, 3.0]):
        records: list[dict[str, Any]] = [{"step": 1, "loss": 9.0 + seed}, {"step": 2, "loss": loss}]
        write_run(tmp_path, seed=seed, steps=2, validation=loss, records=records)
    results = analysed(tmp_path)
    figure = curves.loss_over_steps(results, curves.best_runs(results))
    assert figure is not None
    assert drawn(figure.axes[0], "maxP") == [[(1, 10.0), (2, 3.0)]]


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [{"step": step, "loss": 5.0} for step in range(1, 1001)]
    write_run(tmp_path, validation=3.0, records=records)
    results = analysed(tmp_path)
    figure = curves.loss_over_steps(results, curves.best_runs(results))
    assert figure is not None
    ((first, *_, last),) = drawn(figure.axes[0], "maxP")
    assert (first, last) == ((1, 5.0), (1000, 5.0))


def test_exponents_are_drawn_only_where_they_change(tmp_path: Path) -> None:
    for method, moves in (("maxP", 0.25), ("mup-full", 0.0)):
        records = [
            {"step": step, "loss": 3.0, "sites": {"layers.0.wq": {"c": 1 - moves * step}}}
            for step in (1, 2)
        ]
        write_run(tmp_path, method=method, validation=3.0, records=records)
    results = analysed(tmp_path)
    figure = curves.exponents_over_steps(results, curves.best_runs(results))
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "s1, maxP"
    assert [line.get_xydata().tolist() for line in axes.get_lines()] == [[[1, 0.75], [2, 0.5]]]


def test_plots_are_written_as_png_and_svg(tmp_path: Path) -> None:
    write_sweep(tmp_path / "runs", scales=2, seeds=1)
    files = plots.write_plots(analysed(tmp_path / "runs"), tmp_path / "plots")
    assert [file.name for file in files] == [
        f"{name}.{kind}"
        for name in ("loss_against_lr", "transfer", "gap")
        for kind in ("png", "svg")
    ]
    for file in files:
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")
        else:
            assert ET.parse(file).getroot().tag.endswith("svg")
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == sorted(
        file.name for file in files
    )


def test_a_sweep_of_which_nothing_finished_can_be_drawn(tmp_path: Path) -> None:
    for scale in ("s1", "s2"):
        for method in ("maxP", "mup-full"):
            write_run(tmp_path, scale=scale, method=method, state="diverged")
    drawn = plots.figures(analysed(tmp_path))
    assert list(drawn) == ["loss_against_lr", "gap"]
    assert len([mark for mark in drawn["gap"].axes[0].texts if mark.get_text() == "both div."]) == 2
    assert style.to_bytes(drawn["gap"], "png")


@pytest.mark.parametrize("name", ["a", "b"])
def test_pictures_of_one_page_share_no_ids(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, validation=3.0)
    svg = style.inline_svg(plots.loss_against_lr(analysed(tmp_path)), name)
    ids = {element.get("id") for element in ET.fromstring(svg).iter() if element.get("id")}
    assert ids
    assert all(str(identifier).startswith(f"{name}-") for identifier in ids)
