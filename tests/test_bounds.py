"""Bounds on measured alignments: c does not depend on depth, and what is measured stays visible."""

import random
import re
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import MLP, batch

from maxp import BOUNDS, Alignment, AlignmentBounds, Graph, Parametrization, bounded, solve
from maxp.alignment import Measured
from maxp.exponents import Exponents
from maxp.module import MUP_AB
from train.model.decoders import model_config, site_graph
from train.model.scales import get_scale

PROBE = batch(99)[0]
NAMES = ("layers.0", "layers.1", "readout")
ABOVE: Measured = (0.8, 0.52, 0.9)
Table = dict[str, tuple[float, float, float]]


@cache
def llama(layers: int) -> Graph:
    return site_graph(model_config(replace(get_scale("debug"), n_layers=layers), 256))


def kind(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def solved(layers: int, table: Table, bounds: AlignmentBounds | None) -> dict[str, float]:
    """c of a LLaMA-3 model, in muP's (a, b), from a table by kind of site."""
    exponents = {}
    for site in llama(layers).sites:
        values = Alignment(0.5, 0.5, 0.5)
        if site.has_weight:
            values = bounded(table[kind(site.name)], bounds)
        exponents[site.name] = Exponents(*MUP_AB[site.layer_type], values)
    return solve(llama(layers), exponents).c


def kinds() -> list[str]:
    return list(dict.fromkeys(kind(site.name) for site in llama(2).weighted))


def table_of(excess: float) -> Table:
    return dict.fromkeys(kinds(), (1.0, 0.5 + excess, 1.0))


# Depth


@pytest.mark.parametrize(
    ("excess", "expected"),
    [
        (0.005, [0.54, 0.62, 0.82, 1.14]),
        (0.01, [0.58, 0.74, 1.14, 1.78]),
        (0.02, [0.66, 0.98, 1.78, 3.06]),
    ],
)
def test_without_bounds_the_excess_of_dz_w0_adds_up_over_the_layers(
    excess: float, expected: list[float]
) -> None:
    c = [solved(layers, table_of(excess), None)["tok_embeddings"] for layers in (2, 6, 16, 32)]
    assert c == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("layers", [2, 32])
def test_with_bounds_an_excess_changes_no_c(layers: int) -> None:
    assert solved(layers, table_of(0.02), BOUNDS) == solved(layers, table_of(0.0), None)


def by_layer(c: dict[str, float]) -> dict[str, list[float]]:
    """c by kind of site, over the layers in order."""
    return {k: [value for name, value in c.items() if kind(name) == k] for k in kinds()}


@pytest.mark.parametrize("seed", range(4))
def test_one_table_gives_the_same_c_at_2_and_at_32_layers(seed: int) -> None:
    draw = random.Random(seed).uniform
    table = {k: (draw(0.45, 1.0), draw(0.45, 0.55), draw(0.45, 1.0)) for k in kinds()}
    shallow, deep = (by_layer(solved(layers, table, BOUNDS)) for layers in (2, 32))
    unbounded = by_layer(solved(32, table, None))
    for k in kinds():
        assert abs(deep[k][0] - shallow[k][0]) < 0.01
        assert abs(deep[k][-1] - shallow[k][-1]) < 0.01
        assert max(deep[k]) - min(deep[k]) == pytest.approx(max(shallow[k]) - min(shallow[k]))
    assert abs(unbounded["tok_embeddings"][0] - shallow["tok_embeddings"][0]) > 0.1


# In a run


def measured_once(values: Measured = ABOVE, **arguments: Any) -> Parametrization:
    p = Parametrization(MLP(), seed=0, **arguments)
    p.set_measured(dict.fromkeys(p.measured, values))
    p.solve()
    return p


def test_the_program_uses_bounded_values_and_reports_raw_ones() -> None:
    p = measured_once((0.8, 0.52, 1.1))
    assert p.measured == dict.fromkeys(NAMES, (0.8, 0.52, 1.1))
    assert p.alignment == dict.fromkeys(NAMES, (0.8, 0.5, 1.0))
    assert p.c == {"embed": 0.5, "layers.0": 1.0, "layers.1": 1.0, "readout": 0.5}


def test_each_value_that_a_bound_changes_is_counted_by_site() -> None:
    p = measured_once((0.4, 0.52, 0.9))
    assert p.bounded_values == dict.fromkeys(NAMES, 2)
    p.set_measured(dict.fromkeys(p.measured, (0.8, 0.4, 0.9)))
    p.set_measured(dict.fromkeys(p.measured, (None, float("nan"), 0.4)))
    assert p.bounded_values == dict.fromkeys(NAMES, 3)


def test_without_bounds_the_program_uses_what_was_measured() -> None:
    p = measured_once(alignment_bounds=None)
    assert p.alignment == dict.fromkeys(NAMES, ABOVE)
    given = {
        n: Exponents(*MUP_AB[node.layer_type], p.alignment.get(n, Alignment(1.0, 0.5, 1.0)))
        for n, node in ((s.name, s) for s in p.graph.sites)
    }
    assert p.c == solve(p.graph, given).c
    assert p.bounded_values == {}


def test_raw_values_are_averaged_and_the_average_is_bounded() -> None:
    p = measured_once((0.8, 0.6, 0.9), alignment_ema=0.5)
    p.set_measured(dict.fromkeys(p.measured, (0.8, 0.3, 0.9)))
    # The average of bounded values would be 0.4.
    assert p.alignment["readout"].dZ_w0 == pytest.approx(0.45)


def test_overrides_are_not_bounded() -> None:
    p = measured_once(alignment_overrides={"hidden": (0.8, 0.6, 0.3)})
    assert p.alignment["layers.0"] == (0.8, 0.6, 0.3)
    assert p.alignment["readout"] == (0.8, 0.5, 0.9)
    assert p.bounded_values == {"readout": 1}


def test_other_bounds_can_be_given() -> None:
    p = measured_once(alignment_bounds=AlignmentBounds(z0_dW=(0.9, 1.0), dZ_w0=(0.0, 0.51)))
    assert p.alignment["readout"] == (0.9, 0.51, 0.9)


def test_bounds_with_low_above_high_are_refused() -> None:
    with pytest.raises(ValueError, match="alignment_bounds: dZ_w0 must be"):
        Parametrization(MLP(), alignment_bounds=AlignmentBounds(dZ_w0=(0.6, 0.5)))


# Resuming


def test_a_resumed_run_continues_from_raw_averages() -> None:
    p = measured_once((0.8, 0.6, 0.9), alignment_ema=0.5)
    resumed = Parametrization(MLP(), alignment_ema=0.5)
    resumed.load_state_dict(p.state_dict())
    assert resumed.alignment == p.alignment
    assert resumed.bounded_values == p.bounded_values
    for each in (p, resumed):
        each.set_measured(dict.fromkeys(each.measured, (0.8, 0.3, 0.9)))
        each.solve()
    assert resumed.alignment["readout"].dZ_w0 == pytest.approx(0.45)
    assert resumed.c == p.c


def test_a_state_from_before_bounds_loads() -> None:
    p = measured_once(alignment_bounds=None)
    state = p.state_dict()
    del state["bounded_values"]
    same, bounds = Parametrization(MLP(), alignment_bounds=None), Parametrization(MLP())
    same.load_state_dict(state)
    bounds.load_state_dict(state)
    assert same.alignment == p.alignment
    assert same.c == bounds.c == p.c  # until the next solve
    assert bounds.alignment["readout"] == (0.8, 0.5, 0.9)
    assert bounds.bounded_values == {}


def test_a_trained_run_stays_between_its_two_presets() -> None:
    model = MLP(32)
    p = Parametrization(model, lr_prefactor=0.05, seed=0)
    p.capture_initial(PROBE)
    optimizer = torch.optim.Adam(p.param_groups)
    presets = [Parametrization(MLP(32), alignment=preset).c for preset in ("no", "full")]
    for step in range(8):
        x, y = batch(step)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(PROBE, optimizer)
        for name, c in p.c.items():
            assert presets[0][name] <= c <= presets[1][name]
    assert sum(p.bounded_values.values()) > 0
