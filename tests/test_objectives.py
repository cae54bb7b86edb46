"""Other objectives of the program: their c, and the runs that get it."""

from pathlib import Path

import pytest

from maxp.exponents import Alignment, Exponents
from maxp.graph import Graph, SiteNode
from scripts.transfer.objectives import (
    objective_runs,
    read_solutions,
    site_factors,
    solutions,
    write_solutions,
)
from scripts.transfer.plan import Choice

TABLE = Path(__file__).parents[1] / "docs/results/alignment.json"
MUP = {"embedding": (-0.5, 0.5), "hidden": (0.0, 0.5)}


def fan(delta: float, layers: int) -> dict[str, dict[str, float]]:
    """c of an embedding that feeds hidden layers with align_z0_dW 1/2 and align_dZ_dW delta."""
    nodes = {"embedding": SiteNode("embedding", "embedding", (None,))}
    nodes |= {f"h{i}": SiteNode(f"h{i}", "hidden", ("embedding",)) for i in range(layers)}
    exponents = {
        name: Exponents(*MUP[node.layer_type], Alignment(0.5, 0.5, delta))
        for name, node in nodes.items()
    }
    return solutions(Graph(nodes), exponents)


def test_of_one_layer_the_sum_raises_nothing_and_the_others_share() -> None:
    # u of the embedding is x, that of the layer max(1/2, 0.9 - x): x = 0.4 is enough, and
    # x^2 + (0.9 - x)^2 is still falling there.
    by_objective = fan(0.9, layers=1)
    assert by_objective["sum"] == pytest.approx({"embedding": 0.5, "h0": 0.9})
    for name in ("maximum", "squares"):
        assert by_objective[name] == pytest.approx({"embedding": 0.9, "h0": 0.5}, abs=1e-6)


def test_squares_stop_where_the_next_part_of_a_layer_is_cheaper() -> None:
    # x^2 + 2 (1.5 - x)^2 is smallest at x = 1, where the layers are at 1/2; with one layer the
    # minimum of x^2 + (1.4 - x)^2 is inside, at x = 0.7.
    assert fan(1.5, layers=2)["squares"] == pytest.approx(
        {"embedding": 1.5, "h0": 0.5, "h1": 0.5}, abs=1e-6
    )
    inside = {"embedding": 1.2, "h0": 0.7}
    assert fan(1.4, layers=1)["squares"] == pytest.approx(inside, abs=1e-6)
    assert fan(1.4, layers=1)["maximum"] == pytest.approx(inside, abs=1e-6)
    assert fan(1.4, layers=2)["sum"] == pytest.approx({"embedding": 1.4, "h0": 0.5, "h1": 0.5})


def test_the_file_has_the_solutions_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "alignment.json").write_bytes(TABLE.read_bytes())
    write_solutions(str(tmp_path / "alignment.json"))
    again, written = read_solutions(str(tmp_path / "alignment.json")), read_solutions(str(TABLE))
    assert again.keys() == written.keys()
    for objective, c in written.items():
        assert again[objective] == pytest.approx(c, abs=2e-6)


def test_no_run_is_planned_before_the_file_exists(tmp_path: Path) -> None:
    assert list(objective_runs(str(tmp_path / "alignment.json"), Choice(1e-2))) == []


def test_a_factor_contains_the_carried_one_and_the_change_of_c() -> None:
    of_sum = {"tok_embeddings": 0.5, "wq": 0.6, "wo": 0.6}
    other = {"tok_embeddings": 0.75, "wq": 0.35, "wo": 0.6}
    factors = site_factors(of_sum, other, Choice(1e-2, embedding=3.0))
    assert factors == pytest.approx({"tok_embeddings": 3 / 2**0.5, "wq": 2**0.5})
