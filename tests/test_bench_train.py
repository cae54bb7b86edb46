"""The training benchmark: what it prints is what was timed, and its bytes are as predicted."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.bench.contenders import STATIC, TITAN, Contender
from scripts.bench.report import Row, differences, step_time, table, verdict
from scripts.bench.train import Options
from scripts.torture.ranks import run_ranks
from train.model.costs import Mesh, Probe

ROW = Row("a", None, False, 10.0, None, 10.0, 1.0, 1000, 0, 0, 0, 0, None)


class NoTrainer:
    dataloader = ()

    def batch_generator(self, data: Any) -> Any:
        return iter(data)


def test_a_measurement_is_spread_over_its_interval() -> None:
    assert step_time([10.0, 10.0, 11.0], [30.0, 40.0, 30.0], 100) == pytest.approx(10.2)


def test_at_interval_one_only_measuring_steps_count() -> None:
    assert step_time([], [30.0, 32.0, 50.0], 1) == 32.0


def test_steps_are_told_apart_by_their_place_in_a_block() -> None:
    contender = Contender(
        "maxP", NoTrainer(), interval=2, blocks=[[1.0, 9.0, 2.0, 8.0], [3, 7, 4, 6]]
    )
    assert (contender.plain(), contender.measuring(0)) == ([1, 2, 3, 4], [9, 8])


def test_an_interval_beyond_the_block_measures_at_its_end() -> None:
    contender = Contender("maxP", NoTrainer(), interval=1000, blocks=[[1.0, 2.0, 9.0]])
    assert (contender.plain(), contender.measuring()) == ([1, 2], [9])


def test_a_ratio_over_its_target_is_said_to_be_missed() -> None:
    own, static = ROW, replace(ROW, step_ms=10.15)
    assert verdict([own, static], accelerator=False)[0].endswith("reached")
    assert verdict([own, static], accelerator=True)[0].endswith("MISSED")


def test_the_table_compares_with_torchtitan_and_the_static_method() -> None:
    rows = [ROW, replace(ROW, name="b", step_ms=20.0), replace(ROW, name="c", step_ms=30.0)]
    line = next(line for line in table(rows).splitlines() if line.startswith("c"))
    assert line.split()[4:6] == ["3.000", "1.500"]


def test_bytes_that_are_not_as_predicted_are_named() -> None:
    (line,) = differences(ROW, "debug", Mesh(), Probe())
    assert "1000 bytes measured" in line


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": "tiny"}, "--scale tiny"),
        ({"rounds": 0}, "--rounds 0"),
        ({"intervals": ()}, "--intervals"),
        ({"intervals": (3,)}, "--block 5"),
        ({"json": Path("nowhere/x.json")}, "--json"),
    ],
)
def test_bad_input_names_its_flag(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**given)


def test_processes_that_a_mesh_does_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide 2"):
        Options(tensor_parallel=4).mesh(2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "flags"),
    [
        pytest.param(1, (), marks=pytest.mark.exhaustive),
        (2, ()),
        pytest.param(2, ("--tensor-parallel", "2"), marks=pytest.mark.exhaustive),
    ],
)
def test_measured_bytes_are_the_predicted_ones(
    processes: int, flags: tuple[str, ...], corpus_cache: Path, tmp_path: Path
) -> None:
    file = tmp_path / "found.json"
    small = ("--rounds", "1", "--block", "1", "--intervals", "1", "--json", str(file))
    done = run_ranks("scripts.bench.train", *small, *flags, processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "debug: every byte as predicted" in done.stdout
    rows = json.loads(file.read_text())["rows"]
    assert [row["name"] for row in rows[:2]] == [TITAN, STATIC]
    assert all((row["communicated_bytes"] > 0) == (processes > 1) for row in rows[2:])
