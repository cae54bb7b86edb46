"""The independent oracle of the program's tests: random programs, and their exact solution.

It is written from the method alone, without the formulas of `maxp.solver`. One binary per term
(big-M) makes every ``r = min(terms)``, and SGD's ``g``, exact, so the oracle does not depend on the
argument that the program is linear. It is solved by CBC, while the library uses HiGHS.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pulp

from maxp.exponents import Alignment, Exponents, OptimizerType
from maxp.graph import Graph, JoinNode, Node, SiteNode, chain
from maxp.module import LayerType

# a, b of embedding, hidden and readout.
PARAMETRIZATIONS: dict[str, dict[str, tuple[float, float]]] = {
    "standard": {"embedding": (0.0, 0.0), "hidden": (0.0, 0.5), "readout": (0.0, 0.5)},
    "ntk": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (0.5, 0.0)},
    "mup": {"embedding": (-0.5, 0.5), "hidden": (0.0, 0.5), "readout": (0.5, 0.5)},
    "mean-field": {"embedding": (0.0, 0.0), "hidden": (0.5, 0.0), "readout": (1.0, 0.0)},
}

# The step of random exponents. Sums of them are exact in binary and either equal or GRID apart, so
# that no solver's tolerance decides between two branches of a min.
GRID = 2.0**-9

# CBC's own preprocessing calls some feasible big-M programs infeasible, and its cut-off ends the
# search 1e-5 short of the optimum.
CBC_EXACT = [
    "preprocess off",
    "increment 1e-10",
    "integerTolerance 1e-9",
    "primalTolerance 1e-9",
]


@dataclass(frozen=True)
class OracleSolution:
    """The optimum: ``objective`` is the sum of all c, the fixed ones included."""

    objective: float
    c: dict[str, float]


def site_terms(site: SiteNode, e: Exponents, c: Any, g: Any, r: Mapping[str, Any]) -> list[Any]:
    """The values whose smallest is the site's r, on numbers or on PuLP's expressions.

    Args:
        c: the site's c (unused where it has no weight).
        g: min(a_L + b_L, 2 a_L + c_L) under SGD, None under Adam.
        r: of every node that changes at all; a node that is missing is data.
    """
    align_z0_dw, align_dz_w0, align_dz_dw = e.alignment
    moving = [r[name] if name is not None and name in r else None for name in site.operands]
    if not site.has_weight:
        q, k = moving
        values = [] if k is None else [e.a + k - align_z0_dw]
        values += [] if q is None else [e.a + q - align_dz_w0]
        return values + ([] if q is None or k is None else [e.a + q + k - align_dz_dw])
    if g is None:
        update = e.a + c
    elif site.layer_type == "readout":
        update = 2 * e.a + c
    else:
        update = e.a + c + (g + e.a)
    if site.layer_type == "embedding":
        return [update]
    (r_in,) = moving
    if r_in is None:
        return [update - align_z0_dw]
    return [update - align_z0_dw, update + r_in - align_dz_dw, e.a + e.b + r_in - align_dz_w0]


def gradient_branches(graph: Graph, exponents: Mapping[str, Exponents], c: Mapping) -> list[Any]:
    """The values whose smallest is SGD's g: a_L + b_L and 2 a_L + c_L of every readout."""
    readouts = [site.name for site in graph.weighted if site.layer_type == "readout"]
    return [
        value
        for name in readouts
        for e in (exponents[name],)
        for value in (e.a + e.b, 2 * e.a + c[name])
    ]


def changes(
    graph: Graph, exponents: Mapping[str, Exponents], c: Mapping[str, float], kind: OptimizerType
) -> dict[str, float]:
    """r of every node for given c; data is left out."""
    g = min(gradient_branches(graph, exponents, c)) if kind == "sgd" else None
    r: dict[str, float] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, JoinNode):
            values = [r[parent] for parent in node.parents if parent in r]
        else:
            values = site_terms(node, exponents[name], c.get(name), g, r)
        if values:
            r[name] = min(values)
    return r


def solve_big_m(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    kind: OptimizerType = "adam",
    *,
    feature_learning: bool = False,
    relaxed: bool = False,
    polish: bool = True,
    solver: pulp.LpSolver | None = None,
) -> OracleSolution | None:
    """Minimise the sum of c subject to every r = min(terms) >= 0; None where it is infeasible.

    Args:
        feature_learning: the node that feeds each readout has r = 0.
        relaxed: leave the binaries out, so that r <= min(terms) only.
        polish: solve once more in process, with the binaries fixed at their values. CBC returns its
            solution as text, with eight digits, and its tolerance on a binary allows an error of M
            times as much in r.
        solver: a PuLP solver; None is CBC with tolerances that suit big-M.
    """
    problem = pulp.LpProblem("oracle", pulp.LpMinimize)
    c = {
        site.name: pulp.LpVariable(f"c{i}", fixed, fixed)
        for i, site in enumerate(graph.weighted)
        for fixed in (exponents[site.name].c,)
    }
    big = _big(graph, exponents)
    binaries: list[pulp.LpVariable] = []

    def smallest(label: str, branches: Sequence[Any], low: float | None) -> pulp.LpVariable:
        value = pulp.LpVariable(label, low)
        for branch in branches:
            problem.addConstraint(value <= branch)
        if not relaxed and len(branches) == 1:
            problem.addConstraint(value >= branches[0])
        elif not relaxed:
            picks = [pulp.LpVariable(f"{label}_{i}", cat="Binary") for i in range(len(branches))]
            for pick, branch in zip(picks, branches, strict=True):
                problem.addConstraint(value >= branch - big * (1 - pick))
            problem.addConstraint(pulp.lpSum(picks) == 1)
            binaries.extend(picks)
        return value

    g = smallest("g", gradient_branches(graph, exponents, c), None) if kind == "sgd" else None
    r: dict[str, pulp.LpVariable] = {}
    for i, (name, node) in enumerate(graph.nodes.items()):
        if isinstance(node, JoinNode):
            branches = [r[parent] for parent in node.parents if parent in r]
        else:
            branches = site_terms(node, exponents[name], c.get(name), g, r)
        if branches:
            r[name] = smallest(f"r{i}", branches, 0.0)
    for site in graph.weighted if feature_learning else ():
        if site.layer_type == "readout" and site.operands[0] in r:
            problem.addConstraint(r[site.operands[0]] == 0)
    problem.setObjective(pulp.lpSum(c.values()))

    status = problem.solve(
        pulp.PULP_CBC_CMD(msg=False, options=CBC_EXACT) if solver is None else solver
    )
    if status == pulp.LpStatusOptimal and polish:
        for pick in binaries:
            pick.lowBound = pick.upBound = round(pick.varValue)
        status = problem.solve(pulp.HiGHS(mip=False, msg=False, threads=1))
    if status == pulp.LpStatusInfeasible:
        return None
    assert status == pulp.LpStatusOptimal, pulp.LpStatus[status]
    solved = {name: float(variable.varValue) for name, variable in c.items()}
    return OracleSolution(sum(solved.values()), solved)


def _big(graph: Graph, exponents: Mapping[str, Exponents]) -> float:
    """M: too small a one could only raise the oracle's objective, never lower it."""
    reach = 4.0
    for site in graph.sites:
        e = exponents[site.name]
        e_z0_dw, e_dz_w0, e_dz_dw = e.alignment
        if site.has_weight:
            reach += abs(e.a + e.b - e_dz_w0) + abs(e.c or 0.0)
        else:
            reach += max(abs(e.a - x) for x in (e_z0_dw, e_dz_w0, e_dz_dw))
    return 2.0 * reach


def chain_of(sites: int) -> Graph:
    """embedding, hidden..., readout: ``sites`` sites in all."""
    middle: list[tuple[str, LayerType, bool]] = [
        (f"hidden{i}", "hidden", True) for i in range(sites - 2)
    ]
    return chain([("embedding", "embedding", True), *middle, ("readout", "readout", True)])


def random_graph(rng: random.Random, blocks: int, *, bilinear: bool = True) -> Graph:
    """A residual stream with ``blocks`` of attention, gated or plain branches, and a readout.

    ``bilinear`` has QK^T as a site without a weight; else q and k only meet in a join.
    """
    nodes: dict[str, Node] = {}

    def site(name: str, *operands: str | None, weight: bool = True) -> str:
        nodes[name] = SiteNode(name, "hidden", operands, weight)
        return name

    def join(name: str, *parents: str) -> str:
        nodes[name] = JoinNode(name, parents)
        return name

    nodes["embedding"] = SiteNode("embedding", "embedding", (None,))
    stream = "embedding"
    if rng.random() < 0.5:
        nodes["positions"] = SiteNode("positions", "embedding", (None,))
        stream = join("embedded", stream, "positions")
    for i in range(blocks):
        shape = rng.choice(("attention", "gated", "plain", "deep"))
        if shape == "attention":
            q, k, v = (site(f"{i}.{x}", stream) for x in "qkv")
            qk = site(f"{i}.qk", q, k, weight=False) if bilinear else join(f"{i}.qk", q, k)
            branch = site(f"{i}.o", join(f"{i}.mix", qk, v))
        elif shape == "gated":
            gate, up = site(f"{i}.w1", stream), site(f"{i}.w3", stream)
            branch = site(f"{i}.w2", join(f"{i}.product", gate, up))
        else:
            branch = site(f"{i}.fc1", stream)
            branch = site(f"{i}.fc2", branch) if shape == "deep" else branch
        stream = join(f"{i}.sum", stream, branch) if rng.random() < 0.8 else branch
    nodes["readout"] = SiteNode("readout", "readout", (stream,))
    return Graph(nodes)


def preset_exponents(
    graph: Graph, parametrization: str, alignment: Alignment
) -> dict[str, Exponents]:
    """One alignment at every weighted site; 1/sqrt(width) and 1/2 at sites without a weight."""
    table = PARAMETRIZATIONS[parametrization]
    half = Alignment(0.5, 0.5, 0.5)
    return {
        s.name: Exponents(*table[s.layer_type], alignment)
        if s.has_weight
        else Exponents(0.5, 0.0, half)
        for s in graph.sites
    }


def random_exponents(
    rng: random.Random, graph: Graph, *, degenerate: bool = False
) -> dict[str, Exponents]:
    """(a, b) that meet their column at init, and alignments, in steps of `GRID`.

    ``degenerate`` draws the alignments from few values, e_dZ_dW > e_z0_dW among them, so that
    many c share the optimum.
    """

    def uniform(low: float, high: float) -> float:
        return round(rng.uniform(low, high) / GRID) * GRID

    def alignment() -> Alignment:
        if degenerate:
            return Alignment(0.5, rng.choice((0.5, 0.5, 0.75)), rng.choice((0.5, 0.75, 1.0)))
        return Alignment(uniform(0.4, 1.0), uniform(0.4, 0.65), uniform(0.4, 1.2))

    drawn: dict[str, Exponents] = {}
    for site in graph.sites:
        if not site.has_weight:
            drawn[site.name] = Exponents(rng.choice((0.5, 1.0)), 0.0, alignment())
            continue
        a = rng.choice((-0.5, 0.0, 0.5)) if degenerate else uniform(-0.5, 1.0)
        total = {"embedding": 0.0, "hidden": 0.5, "readout": 0.5 + max(0.0, uniform(-0.5, 0.5))}
        drawn[site.name] = Exponents(a, total[site.layer_type] - a, alignment())
    return drawn


def fix_some(
    rng: random.Random, exponents: Mapping[str, Exponents], c: Mapping[str, float], share: float
) -> dict[str, Exponents]:
    """Hold a ``share`` of the sites at or above their ``c``: no r falls, so it stays feasible."""
    return {
        name: replace(e, c=math.ceil(c[name] / GRID) * GRID + rng.choice((0.0, 0.25, 0.5, 1.0)))
        if name in c and rng.random() < share
        else e
        for name, e in exponents.items()
    }
