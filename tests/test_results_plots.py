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

from train.results import plots, style
from train.results.analysis import Results
from train.results.collect import collect
from train.results.names import METHODS


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


def test_every_scale_has_the_same_learning_rates_on_its_axis(tmp_path: Path) -> None:
    write_run(tmp_path, scale="s1", lr=1e-4, validation=3.0)
    write_run(tmp_path, scale="s2", lr=1e-1, validation=3.0)
    left, right = plots.loss_against_lr(analysed(tmp_path)).axes
    assert left.get_xlim() == right.get_xlim()
    assert left.get_xlim()[0] < 1e-4 < 1e-1 < left.get_xlim()[1]


def test_the_gaps_to_both_references_are_drawn(tmp_path: Path) -> None:
    for method, loss in (("maxP", 3.0), ("mup-full", 3.25), ("mup-no", 3.125)):
        write_run(tmp_path, method=method, validation=loss)
    figure = plots.gap_map(analysed(tmp_path))
    assert figure is not None
    titles = [axes.get_title(loc="left") for axes in figure.axes[:-1]]
    assert titles == ["maxP - mup-full", "mup-no - mup-full", "maxP - mup-no"]
    assert [gap.tolist() for gap in heat(figure)] == [[[-0.25]], [[-0.125]], [[-0.125]]]


def test_in_one_column_every_panel_has_its_y_label(tmp_path: Path) -> None:
    for scale in ("s1", "s2"):
        write_run(tmp_path, scale=scale, validation=3.0)
    axes = plots.loss_against_lr(analysed(tmp_path), columns=1).axes
    assert [panel.get_ylabel() for panel in axes] == ["validation loss (nats)"] * 2
    assert len({panel.get_position().x0 for panel in axes}) == 1


def test_no_layer_type_has_the_colour_of_a_method() -> None:
    methods = {colour for colour, _ in style.looks(list(METHODS)).values()}
    types = [colour for colour, _ in style.LAYER_TYPES.values()]
    assert len(set(types)) == len(types)
    assert methods.isdisjoint(types)


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
