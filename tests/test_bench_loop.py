"""The benchmark of `Parametrization.step` in a loop: its ratios, and that all loops run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.bench import loop as bench
from scripts.bench.loop import Loop, Options, report, row


def timed(*rounds: list[float]) -> list[list[dict[str, float]]]:
    """Rounds of times; those of the wall are twice those of the CPU."""
    return [[{"cpu": ms, "wall": 2 * ms} for ms in steps] for steps in rounds]


def made_up() -> tuple[Loop, Loop]:
    nothing: Any = None
    plain = Loop("plain", nothing, nothing, steps=timed([10, 10], [20, 20]))
    measured = Loop(
        "measured",
        nothing,
        nothing,
        call=lambda x: None,
        steps=timed([11, 11], [22, 22]),
        other=timed([0.1], [0.2]),
        measuring=timed([5], [10]),
    )
    return plain, measured


def test_costs_are_relative_to_the_plain_step_of_the_same_round() -> None:
    plain, measured = made_up()
    of = row(measured, plain)
    assert of.relative["cpu"] == pytest.approx(1.1)
    # (99 * 0.1 + 5) / 100 of 10
    assert {k: costs["cpu"] for k, costs in of.costs.items()} == pytest.approx(
        {1: 0.5, 10: 0.059, 100: 0.0149}
    )
    assert "50.00% (50.00%) | 5.90% (5.90%) | 1.49% (1.49%) |" in report([of])


def test_every_loop_trains_and_every_second_timed_call_measures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = Options(width=128, batch=2, sequence=16, probe=1, rounds=1, block=2)
    torch.manual_seed(0)
    x = torch.randint(256, (6, 17))
    measured: list[Any] = []

    def measurements_in(call: Any, x: torch.Tensor) -> dict[str, float]:
        before = len(measured)
        call(x)
        return {"cpu": len(measured) - before}

    monkeypatch.setattr(bench, "timed", measurements_in)
    for loop in bench.loops(options):
        before = [parameter.clone() for parameter in loop.model.parameters()]
        if loop.p is not None:
            monkeypatch.setattr(loop.p, "set_measured", lambda *values: measured.append(values))
        loop.run(list(x.split(2)))
        assert not all(map(torch.equal, before, loop.model.parameters()))
        assert len(loop.steps[0]) == 2
        if loop.call is not None:
            assert loop.measuring == [[{"cpu": 1}]]
            assert loop.other == [[{"cpu": 0}]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rounds": 0}, "--rounds 0"),
        ({"width": 200}, "--width 200"),
        ({"probe": 9}, "--probe 9: must be at most --batch 8"),
        ({"block": 3}, "--block 3"),
        ({"json": Path("nowhere/x.json")}, "--json"),
    ],
)
def test_bad_input_names_its_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**given)
