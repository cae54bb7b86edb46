"""Where many c are as good, the solver's choice is fair and depends on nothing but the program."""

import random
from dataclasses import replace

import pulp
import pytest
from solver_cases import KINDS, llama

from maxp.exponents import Alignment, Exponents, OptimizerType
from maxp.graph import Graph, JoinNode, Node, SiteNode
from maxp.solver import solve
from scripts.bench.milp_oracle import chain_of, preset_exponents, random_exponents, random_graph

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


def degenerate_case(
    rng: random.Random, *, bilinear: bool = False
) -> tuple[Graph, dict[str, Exponents]]:
    graph = random_graph(rng, blocks=rng.randint(1, 4), bilinear=bilinear)
    return graph, random_exponents(rng, graph, degenerate=True)


def relabelled(rng: random.Random, graph: Graph) -> tuple[Graph, dict[str, str]]:
    """The same graph under other names and in another order, and the new name of each node."""
    names = dict(zip(graph.nodes, rng.sample(range(10**6), len(graph.nodes)), strict=True))
    new = {old: f"n{number}" for old, number in names.items()}
    nodes: dict[str, Node] = {}
    left = list(graph.nodes)
    while left:
        ready = [n for n in left if all(new[f] in nodes for f in fed_by(graph.nodes[n]))]
        name = rng.choice(ready)
        left.remove(name)
        node = graph.nodes[name]
        if isinstance(node, JoinNode):
            nodes[new[name]] = JoinNode(new[name], tuple(new[p] for p in node.parents))
        else:
            operands = tuple(None if o is None else new[o] for o in node.operands)
            nodes[new[name]] = replace(node, name=new[name], operands=operands)
    return Graph(nodes), new


def fed_by(node: Node) -> list[str]:
    feeds = node.parents if isinstance(node, JoinNode) else node.operands
    return [name for name in feeds if name is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_layers_side_by_side_get_equal_c(kind: OptimizerType) -> None:
    nodes: dict[str, Node] = {"embedding": SiteNode("embedding", "embedding", (None,))}
    branches = [f"branch{i}" for i in range(4)]
    nodes |= {name: SiteNode(name, "hidden", ("embedding",)) for name in branches}
    nodes["sum"] = JoinNode("sum", tuple(branches))
    nodes["readout"] = SiteNode("readout", "readout", ("sum",))
    graph = Graph(nodes)
    c = solve(graph, preset_exponents(graph, "mup", Alignment(0.5, 0.5, 1.0)), kind).c
    assert len({c[name] for name in branches}) == 1


def test_equal_layers_in_a_row_get_equal_c() -> None:
    """Raising c upstream by x saves x downstream, a tie; the smallest r, all 0, settles it."""
    graph = chain_of(8)
    c = solve(graph, preset_exponents(graph, "mup", Alignment(0.5, 0.5, 1.0))).c
    assert list(c.values()) == [0.5, *[1.0] * 6, 0.5]


def test_q_and_k_get_equal_c_where_only_their_sum_is_bounded() -> None:
    """r_qk = r_q + r_k + 1/2 - 3/4 >= 0 leaves open which of them gives.

    With align_dZ_w0 = 1/4 neither asks its input for more than it has.
    """
    graph = llama(1)
    exponents = preset_exponents(graph, "mup", Alignment(1.0, 0.25, 1.0))
    exponents["0.qk"] = Exponents(0.5, 0.0, Alignment(0.5, 0.5, 0.75))
    c = solve(graph, exponents).c
    assert c["0.q"] == c["0.k"]


@pytest.mark.parametrize("bilinear", [False, True], ids=["weighted", "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_and_order_of_the_sites_change_nothing(kind: OptimizerType, bilinear: bool) -> None:
    rng = random.Random(5)
    for _ in range(15):
        graph, exponents = degenerate_case(rng, bilinear=bilinear)
        other, new = relabelled(rng, graph)
        c = solve(graph, exponents, kind).c
        c_other = solve(other, {new[n]: e for n, e in exponents.items()}, kind).c
        assert c_other == {new[name]: value for name, value in c.items()}


@pytest.mark.parametrize("bilinear", [False, True], ids=["weighted", "bilinear"])
@pytest.mark.parametrize("kind", KINDS)
def test_another_solver_gives_the_same_c(kind: OptimizerType, bilinear: bool) -> None:
    cbc = pulp.PULP_CBC_CMD(msg=False, options=["primalTolerance 1e-9"])
    rng = random.Random(6)
    for _ in range(15):
        graph, exponents = degenerate_case(rng, bilinear=bilinear)
        by_cbc = solve(graph, exponents, kind, solver=cbc).c
        assert by_cbc == pytest.approx(solve(graph, exponents, kind).c, rel=0, abs=1e-7)
