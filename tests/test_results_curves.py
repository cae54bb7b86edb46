"""Curves over the steps: what a reader hovers over is what the runs have logged."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_run

from train.results import curves, style
from train.results.analysis import Results
from train.results.collect import collect
from train.results.curves import SITE_VALUES, layer_type


def charts(root: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """(method, value, scale) -> the panel as the page's script gets it; the loss is of ""."""
    rows = curves.rows(Results.of(collect(root), "validation"))
    values = {label: value for value, label in SITE_VALUES.items()}
    panels = zip(rows, curves.to_data(rows), strict=True)
    return {
        (row.method, values.get(row.label, "loss"), panel["title"]): panel
        for row, several in panels
        for panel in several
    }


def line(panel: dict[str, Any], label: str, part: str = "mean") -> dict[int, float]:
    """Step -> value of one line of a panel, where it has one."""
    (chosen,) = [entry for entry in panel["lines"] if entry["label"] == label]
    values = zip(panel["steps"], chosen[part] or [], strict=True)
    return {step: value for step, value in values if value is not None}


def site(**values: float) -> dict[str, float]:
    return {"lr": 0.01, "c": 0.5} | values


def test_the_loss_is_the_mean_over_seeds_at_the_best_lr_with_its_deviation(tmp_path: Path) -> None:
    losses = {0: [9.0, 3.0], 1: [9.5, 3.5], 2: [7.0, 3.25]}
    for seed, (first, last) in losses.items():
        records = [{"step": 1, "loss": first}, {"step": 2, "loss": last}]
        write_run(tmp_path, seed=seed, steps=2, validation=last, records=records)
    worse = [{"step": 1, "loss": 99.0}]
    write_run(tmp_path, lr=0.1, validation=9.0, records=worse)
    panel = charts(tmp_path)["", "loss", "s1"]
    by_step = list(zip(*losses.values(), strict=True))
    assert line(panel, "maxP") == pytest.approx({1: 8.5, 2: 3.25})
    assert line(panel, "maxP", "std") == pytest.approx(
        {step: statistics.stdev(values) for step, values in enumerate(by_step, start=1)}, rel=1e-5
    )


def test_the_values_in_the_page_are_those_of_the_metrics(tmp_path: Path) -> None:
    """One seed: each value is a mean over the sites of a type, here computed from the file."""
    records = [
        {
            "step": step,
            "loss": 4.0 + 1 / step,
            "sites": {
                "tok_embeddings": {"lr": 0.01, "c": 0.5},
                "layers.0.attention.wo": site(align_z0_dW=0.5 + 0.01 * step, align_dZ_dW=0.75),
                "layers.1.attention.wo": site(align_z0_dW=0.7, align_dZ_dW=0.65, lr=0.03),
                "layers.0.attention.inner_attention": {"align_dZ_dW": 0.5},
                "lm_head": site(align_z0_dW=0.625, c=0.25 * step),
                "lm_head.bias": {"lr": 7.0},
                "rest": {"lr": 7.0},
            },
        }
        for step in (1, 2, 3)
    ]
    folder = write_run(tmp_path, validation=3.0, records=records)
    kinds = {
        "embedding": ["tok_embeddings"],
        "hidden": ["layers.0.attention.wo", "layers.1.attention.wo"],
        "attention product": ["layers.0.attention.inner_attention"],
        "readout": ["lm_head"],
    }
    logged = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    seen = 0
    for value in SITE_VALUES:
        for kind, sites in kinds.items():
            expected = {
                record["step"]: statistics.mean(record["sites"][name][value] for name in sites)
                for record in logged
                if "sites" in record and all(value in record["sites"][name] for name in sites)
            }
            panel = charts(tmp_path).get(("maxP", value, "s1"), {"lines": []})
            if expected:
                seen += 1
                assert line(panel, kind) == pytest.approx(expected, rel=1e-5)
            else:
                assert kind not in [entry["label"] for entry in panel["lines"]]
    assert seen == 3 + 3 + 2 + 2  # lr, c, align_z0_dW and align_dZ_dW


def test_a_single_seed_has_no_band(tmp_path: Path) -> None:
    write_run(tmp_path, validation=3.0, records=[{"step": 1, "loss": 5.0}])
    (entry,) = charts(tmp_path)["", "loss", "s1"]["lines"]
    assert entry["std"] is None


def test_a_long_curve_is_thinned_and_keeps_its_ends(tmp_path: Path) -> None:
    records = [{"step": step, "loss": 5.0 + step / 1000} for step in range(1, 1001)]
    write_run(tmp_path, steps=1000, validation=3.0, records=records)
    shown = line(charts(tmp_path)["", "loss", "s1"], "maxP")
    assert len(shown) == 300
    assert {min(shown), max(shown)} == {1, 1000}
    assert shown == pytest.approx({step: 5.0 + step / 1000 for step in shown}, rel=1e-5)


def test_only_the_runs_of_the_best_lrs_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [{"step": 1, "loss": 5.0}]
    for lr in (1e-3, 1e-2, 1e-1):
        for seed in (1, 2):
            loss = 3.0 + (lr != 1e-2)
            write_run(tmp_path, lr=lr, seed=seed, validation=loss, records=records)
    results = Results.of(collect(tmp_path), "validation")
    opened: list[str] = []
    read = Path.open

    def spy(path: Path, *args: Any, **kwargs: Any) -> Any:
        opened.append(path.parent.name)
        return read(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", spy)
    curves.rows(results)
    assert {*opened} == {"s1-maxP-0.01-1", "s1-maxP-0.01-2"}


def test_seeds_are_compared_at_the_steps_that_all_have_logged(tmp_path: Path) -> None:
    for seed, steps in enumerate([(1, 2, 3, 4), (2, 4)]):
        records = [{"step": step, "loss": 5.0 + 2 * seed} for step in steps]
        write_run(tmp_path, seed=seed, validation=3.0, records=records)
    assert line(charts(tmp_path)["", "loss", "s1"], "maxP") == {2: 6.0, 4: 6.0}


def test_a_run_whose_metrics_are_gone_leaves_the_curve_of_the_others(tmp_path: Path) -> None:
    records = [{"step": 1, "loss": 5.0}]
    runs = [write_run(tmp_path, seed=seed, validation=3.0, records=records) for seed in range(2)]
    results = Results.of(collect(tmp_path), "validation")
    (runs[0] / "metrics.jsonl").unlink()
    (row,) = curves.rows(results)
    assert row.panels[0].curves["maxP"]["mean"].to_dict() == {1: 5.0}


def test_torn_lines_and_records_without_a_loss_are_no_points(tmp_path: Path) -> None:
    folder = write_run(tmp_path, validation=3.0, records=[{"step": 1, "loss": 5.0}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "loss": null}\n{"step": 3, "loss": 4.0')
    assert line(charts(tmp_path)["", "loss", "s1"], "maxP") == {1: 5.0}


def test_all_panels_have_the_same_steps_at_their_ends(tmp_path: Path) -> None:
    for scale, last in (("s1", 10), ("s2", 40)):
        sites = {"lm_head": {"c": 0.5}}
        records = [{"step": last // 2, "loss": 5.0}, {"step": last, "loss": 4.0, "sites": sites}]
        write_run(tmp_path, scale=scale, validation=3.0, records=records)
    panels = charts(tmp_path)
    assert {value for _, value, _ in panels} == {"loss", "c"}
    assert {(panel["steps"][0], panel["steps"][-1]) for panel in panels.values()} == {(5, 40)}


def test_the_steep_beginning_does_not_flatten_the_loss(tmp_path: Path) -> None:
    losses = [11.0, *[4.0 - step / 100 for step in range(2, 101)]]
    records = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
    write_run(tmp_path, validation=3.0, records=records)
    low, high = charts(tmp_path)["", "loss", "s1"]["range"]
    assert 2.8 < low < 3.0
    assert 3.9 < high < 4.1


def test_scales_of_a_row_have_the_same_range_of_alignment(tmp_path: Path) -> None:
    for scale, alignment in (("s1", 0.5), ("s2", 0.9)):
        records = [{"step": 1, "loss": 4.0, "sites": {"lm_head": site(align_z0_dW=alignment)}}]
        write_run(tmp_path, scale=scale, validation=3.0, records=records)
    panels = charts(tmp_path)
    left, right = (panels["maxP", "align_z0_dW", scale]["range"] for scale in ("s1", "s2"))
    assert left == right
    assert left[0] < 0.5 < 0.9 < left[1]


def test_a_method_has_its_colour_and_a_layer_type_that_of_the_type(tmp_path: Path) -> None:
    for method in ("maxP", "mup-no"):
        records = [{"step": 1, "loss": 4.0, "sites": {"layers.1.wq": site()}}]
        write_run(tmp_path, method=method, validation=3.0, records=records)
    panels = charts(tmp_path)
    looks = style.looks(["maxP", "mup-no"])
    assert [entry["colour"] for entry in panels["", "loss", "s1"]["lines"]] == [
        looks["maxP"][0],
        looks["mup-no"][0],
    ]
    for method in looks:
        (entry,) = panels[method, "c", "s1"]["lines"]
        assert (entry["label"], entry["colour"]) == ("hidden", "ink")


@pytest.mark.parametrize("name", ["debug", "cpu64", "vit-debug", "mlp-debug"])
def test_layer_types_are_those_of_the_graph(name: str) -> None:
    from train.charts import layer_types
    from train.config import Flags, make_config
    from train.model.kinds import site_graph

    model = make_config(Flags(scale=name)).model_spec.model
    types = layer_types(site_graph(model))
    assert {site: layer_type(site) for site in types} == types
