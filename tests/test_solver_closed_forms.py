"""The solver's c against the method's table and other values computed by hand."""

import pytest
from solver_cases import FULL, llama

from maxp.exponents import PRESETS, Alignment, Exponents, OptimizerType, change_exponents
from maxp.graph import Graph, SiteNode
from maxp.solver import solve
from scripts.bench.milp_oracle import chain_of, preset_exponents

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")

# c of embedding, every hidden site and readout, from the method's table. The two cells that it
# leaves open, SGD with full alignment, by hand. The change of the embedding, 2a + c + g, and of a
# hidden site, 2a + c + g - 1, must be 0, and the readout's 2 a_L + c_L - 1 gives c_L = 1 - 2 a_L:
#   NTK         a_L = 1/2, b_L = 0:  c_L = 0,   g = min(1/2, 1) = 1/2
#               embedding a = 0: c = -1/2;      hidden a = 1/2: 1 + c + 1/2 - 1 = 0, c = -1/2
#   mean-field  a_L = 1, b_L = 0:    c_L = -1,  g = min(1, 1) = 1
#               embedding a = 0: c = -1;        hidden a = 1/2: 1 + c + 1 - 1 = 0, c = -1
# A larger c_L would pay only if it raised g, and a_L + b_L caps g in both.
TABLE: dict[tuple[str, OptimizerType, str], tuple[float, float, float]] = {
    ("standard", "adam", "full"): (0, 1, 1),
    ("standard", "adam", "no"): (0, 0.5, 0.5),
    ("standard", "sgd", "full"): (-0.5, 0.5, 1),
    ("ntk", "adam", "full"): (0, 0.5, 0.5),
    ("ntk", "adam", "no"): (0, 0, 0),
    ("ntk", "sgd", "full"): (-0.5, -0.5, 0),
    ("mup", "adam", "full"): (0.5, 1, 0.5),
    ("mup", "adam", "no"): (0.5, 0.5, 0),
    ("mup", "sgd", "full"): (0, 0, 0),
    ("mean-field", "adam", "full"): (0, 0.5, 0),
    ("mean-field", "adam", "no"): (0, 0, -0.5),
    ("mean-field", "sgd", "full"): (-1, -1, -1),
}


@pytest.mark.parametrize("cell", TABLE, ids="-".join)
def test_c_is_the_tables(cell: tuple[str, OptimizerType, str]) -> None:
    parametrization, kind, preset = cell
    graph = chain_of(6)
    c = solve(graph, preset_exponents(graph, parametrization, PRESETS[preset]), kind).c
    embedding, hidden, readout = TABLE[cell]
    assert c == {"embedding": embedding, **{f"hidden{i}": hidden for i in range(4)}} | {
        "readout": readout
    }


@pytest.mark.parametrize(("preset", "expected"), [("full", (0.5, 1, 0.5)), ("no", (0.5, 0.5, 0))])
def test_on_llama_the_presets_give_the_chains_values(
    preset: str, expected: tuple[float, float, float]
) -> None:
    graph = llama(4)
    c = solve(graph, preset_exponents(graph, "mup", PRESETS[preset])).c
    by_type = dict(zip(("embedding", "hidden", "readout"), expected, strict=True))
    assert c == {site.name: by_type[site.layer_type] for site in graph.weighted}


def test_with_c_0_the_standard_parametrization_grows_with_depth() -> None:
    """Embedding: a + c = 0. Hidden: min(0 - 1, 0 + r_in - 1, 1/2 + r_in - 1/2) = r_in - 1."""
    graph = chain_of(5)
    c = {site.name: 0.0 for site in graph.weighted}
    r = change_exponents(graph, preset_exponents(graph, "standard", PRESETS["full"]), c)
    assert list(r.values()) == [0, -1, -2, -3, -4]


def test_sgds_g_falls_with_the_readouts_c() -> None:
    """muP, c_L = -1: g = min(1/2 + 1/2, 1 - 1) = 0, so the embedding's r is -1 + c + 0."""
    graph = chain_of(2)
    exponents = preset_exponents(graph, "mup", PRESETS["full"])
    r = change_exponents(graph, exponents, {"embedding": 3.0, "readout": -1.0}, "sgd")
    assert r == {"embedding": 2.0, "readout": -1.0}


def test_what_reads_data_alone_has_only_the_updates_own_term() -> None:
    """With b = -9 the missing term, a + b + r_in - align_dZ_w0, would ask the impossible."""
    graph = Graph({"first": SiteNode("first", "hidden", (None,))})
    assert solve(graph, {"first": Exponents(0.25, -9.0, PRESETS["full"])}).c == {"first": 0.75}


def test_a_bilinear_site_with_one_operand_of_data_has_only_the_other_operands_change() -> None:
    """r = a + r_q - align_dQ_k0 = 1/2 + c_E - 3/4; the terms with dK would ask for c_E = 3/2."""
    graph = Graph(
        {
            "embedding": SiteNode("embedding", "embedding", (None,)),
            "qk": SiteNode("qk", "hidden", ("embedding", None), has_weight=False),
        }
    )
    bilinear = Exponents(0.5, 0.0, Alignment(2.0, 0.75, 2.0))
    solution = solve(graph, {"embedding": Exponents(0.0, 0.0, FULL), "qk": bilinear})
    assert solution.c == {"embedding": 0.25}
    assert solution.r == {"embedding": 0.25, "qk": 0.0}


def test_sgd_with_a_readout_alone_needs_only_its_own_constraint() -> None:
    """2 a_L + c_L - align_z0_dW = 0; g enters no constraint."""
    graph = Graph({"readout": SiteNode("readout", "readout", (None,))})
    assert solve(graph, {"readout": Exponents(0.5, 0.5, FULL)}, "sgd").c == {"readout": 0.0}
