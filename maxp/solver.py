"""The program: the largest learning rates at which nothing grows with width.

For every site, ``r`` is the exponent by which its output changes (change = n^-r). With ``r_in``
from what feeds it, and ``u`` the exponent of the update's direct contribution,

    Adam      u = a + c
    SGD       u = 2 a + c + g,   g = min(a_L + b_L, 2 a_L + c_L)     (L the readout)
              u = 2 a + c                                            (at L itself)

    embedding       r = u
    other           r = min( u - align_z0_dW,  u + r_in - align_dZ_dW,  a + b + r_in - align_dZ_w0 )
    no weight       r = min( a + r_k - align_z0_dW,  a + r_q - align_dZ_w0,
                             a + r_q + r_k - align_dZ_dW )

and the program is: minimise the sum of c subject to r >= 0 everywhere. Every r and g enters later
constraints with a positive sign and is otherwise free, so ``r = min(terms)`` is relaxed to
``r <= each term`` without changing the optimum: a linear program.

Sources: Everett et al. 2024 (arXiv 2407.05872), appendix on alignment-general exponents; Kilian and
Wojnar 2025, the program. ``docs/theory.md`` has the derivation, and why ties are broken as here.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pulp

from maxp.dag import Graph, JoinNode, SiteNode

OptimizerType = Literal["adam", "sgd"]
OPTIMIZER_TYPES: tuple[str, ...] = get_args(OptimizerType)

# c to nine decimals: whatever path the simplex method took, on whichever rank, gives one answer.
_DECIMALS = 9
_TOLERANCE = 1e-7


class Alignment(NamedTuple):
    """Log-alignment exponents of a site's three terms: 1 adds up coherently, 1/2 at random.

    For a site without a weight the terms are q0 dK, dQ k0 and dQ dK, in this order.
    """

    z0_dW: float
    dZ_w0: float
    dZ_dW: float


PRESETS: dict[str, Alignment] = {
    "full": Alignment(1.0, 0.5, 1.0),
    "no": Alignment(0.5, 0.5, 0.5),
}


@dataclass(frozen=True)
class Exponents:
    """What the program knows of a site. ``c`` is None where the program chooses it."""

    a: float
    b: float
    alignment: Alignment
    c: float | None = None


@dataclass(frozen=True)
class Solution:
    """``c`` of every site with a weight, and the resulting ``r`` of every node."""

    c: dict[str, float]
    r: dict[str, float]


class InfeasibleProgramError(ValueError):
    """No c keeps every r >= 0. ``binding`` names the constraints that cannot be met."""

    def __init__(self, binding: list[str]) -> None:
        self.binding = binding
        super().__init__("no learning rate keeps every r >= 0; binding: " + "; ".join(binding))


class Term(NamedTuple):
    """``constant + own_c * c + sum of r over operands + own_g * g``, one branch of a min."""

    label: str
    constant: float
    own_c: int = 0
    operands: tuple[str, ...] = ()
    own_g: int = 0


def terms(site: SiteNode, e: Exponents, optimizer_type: OptimizerType) -> list[Term]:
    """The branches whose minimum is the site's r: the formulas of the module's docstring.

    A branch with an operand that is data is left out: data does not change, its r is infinite.
    """
    a, b = e.a, e.b
    align_z0_dw, align_dz_w0, align_dz_dw = e.alignment
    if not site.has_weight:
        q, k = site.operands
        branches = [
            ("a + r_k - align_q0_dK", a - align_z0_dw, (k,)),
            ("a + r_q - align_dQ_k0", a - align_dz_w0, (q,)),
            ("a + r_q + r_k - align_dQ_dK", a - align_dz_dw, (q, k)),
        ]
        return [
            Term(label, const, operands=tuple(o for o in ops if o))
            for label, const, ops in branches
            if all(ops)
        ]

    # The update's contribution: (its name in messages, its constant part, whether g is in it).
    if optimizer_type == "adam":
        name, u, g = "a + c", a, 0
    elif site.layer_type == "readout":
        name, u, g = "2a + c", 2 * a, 0
    else:
        name, u, g = "2a + c + g", 2 * a, 1
    if site.layer_type == "embedding":
        return [Term(name, u, own_c=1, own_g=g)]
    (source,) = site.operands
    found = [Term(f"{name} - align_z0_dW", u - align_z0_dw, own_c=1, own_g=g)]
    if source is not None:
        r_in = (source,)
        found += [
            Term(f"{name} + r_in - align_dZ_dW", u - align_dz_dw, 1, r_in, g),
            Term("a + b + r_in - align_dZ_w0", a + b - align_dz_w0, operands=r_in),
        ]
    return found


def gradient_terms(
    graph: Graph, exponents: Mapping[str, Exponents], optimizer_type: OptimizerType
) -> list[tuple[Term, str]]:
    """The branches of g, each with the readout whose c it contains; none for Adam.

    Raises:
        ValueError: SGD on a graph without a readout, where g is not defined.
    """
    if optimizer_type == "adam":
        return []
    readouts = [site.name for site in graph.weighted if site.layer_type == "readout"]
    if not readouts:
        raise ValueError("SGD's exponents need a site of layer_type 'readout'; none was found")
    found = []
    for name in readouts:
        e = exponents[name]
        found.append((Term("a_L + b_L", e.a + e.b), name))
        found.append((Term("2 a_L + c_L", 2 * e.a, own_c=1), name))
    return found


def gradient_exponent(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    c: Mapping[str, float],
    optimizer_type: OptimizerType,
) -> float:
    """g for given c; 0 for Adam, whose updates do not depend on the gradient's scale."""
    return min(
        (
            term.constant + term.own_c * c[name]
            for term, name in gradient_terms(graph, exponents, optimizer_type)
        ),
        default=0.0,
    )


def change_exponents(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    c: Mapping[str, float],
    optimizer_type: OptimizerType = "adam",
) -> dict[str, float]:
    """r of every node for given c, by the formulas themselves (no program is solved).

    A node that nothing changes (data only) has r = inf.
    """
    g = gradient_exponent(graph, exponents, c, optimizer_type)
    r: dict[str, float] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, JoinNode):
            r[name] = min(r[parent] for parent in node.parents)
            continue
        branches = (
            t.constant + t.own_c * c.get(name, 0.0) + sum(r[o] for o in t.operands) + t.own_g * g
            for t in terms(node, exponents[name], optimizer_type)
        )
        r[name] = min(branches, default=math.inf)
    return r


def bias_exponent(
    site: SiteNode, e: Exponents, optimizer_type: OptimizerType, g: float = 0.0
) -> float:
    """c of a site's bias: a bias is an embedding of the constant 1, behind the site's multiplier.

    So its r is u, and r = 0 gives the c.
    """
    if optimizer_type == "adam":
        return -e.a
    return -2 * e.a - (0.0 if site.layer_type == "readout" else g)


class Program:
    """The linear program of one graph, built once and solved for any exponents.

    Args:
        graph: the sites and what feeds them.
        optimizer_type: ``"adam"`` (any optimizer whose update's entries do not depend on the
            gradient's scale) or ``"sgd"``.
        feature_learning: also require that the input of every readout changes by a constant,
            r = 0, not merely r >= 0.
        solver: a PuLP solver; None is HiGHS in process.
        warm_start: start from the previous solution when only alignments changed. Only HiGHS in
            process can; with another solver each solve is a cold one.

    Raises:
        ValueError: an unknown ``optimizer_type``.
    """

    def __init__(
        self,
        graph: Graph,
        optimizer_type: OptimizerType = "adam",
        *,
        feature_learning: bool = False,
        solver: Any = None,
        warm_start: bool = False,
    ) -> None:
        if optimizer_type not in OPTIMIZER_TYPES:
            raise ValueError(
                f"optimizer_type must be one of {', '.join(OPTIMIZER_TYPES)}, "
                f"got {optimizer_type!r}"
            )
        self.graph = graph
        self.optimizer_type = optimizer_type
        self.feature_learning = feature_learning
        self.solver = pulp.HiGHS(msg=False, threads=1) if solver is None else solver
        self.warm_start = warm_start and isinstance(self.solver, pulp.HiGHS)
        self._pinned = frozenset(
            operand
            for site in graph.weighted
            if site.layer_type == "readout"
            for operand in site.operands
            if feature_learning and operand is not None
        )
        self._model: _Model | None = None

    def solve(self, exponents: Mapping[str, Exponents]) -> Solution:
        """The optimal c, ties broken towards the smallest r, to nine decimals.

        Args:
            exponents: of every site, by name; a site with ``c`` set is held there.

        Raises:
            InfeasibleProgramError: no c keeps every r >= 0; names the binding constraints.
        """
        if all(exponents[site.name].c is not None for site in self.graph.weighted):
            c = {s.name: float(exponents[s.name].c or 0.0) for s in self.graph.weighted}
            return Solution(c, change_exponents(self.graph, exponents, c, self.optimizer_type))
        values = self._solve_relaxed(exponents)
        if values is None:
            raise InfeasibleProgramError(self._binding(exponents))
        solution = self._as_solution(exponents, values)
        if any(abs(solution.r[node]) > _TOLERANCE for node in self._pinned):
            # Pinning a relaxed r at 0 does not pin the min that it stands for: make it exact.
            exact = _Model(self.graph, exponents, self.optimizer_type, self._pinned, exact=True)
            values = exact.solve(self.solver)
            if values is None:
                raise InfeasibleProgramError([f"r = 0 at {', '.join(sorted(self._pinned))}"])
            solution = self._as_solution(exponents, values)
        return solution

    def _solve_relaxed(self, exponents: Mapping[str, Exponents]) -> dict[str, float] | None:
        if self.warm_start and self._model is not None and self._model.same_rows(exponents):
            return self._model.solve_again(exponents)
        self._model = _Model(self.graph, exponents, self.optimizer_type, self._pinned)
        return self._model.solve(self.solver)

    def _binding(self, exponents: Mapping[str, Exponents]) -> list[str]:
        """Which constraints fail when each may be broken at a price."""
        model = _Model(self.graph, exponents, self.optimizer_type, self._pinned, elastic=True)
        model.solve(pulp.HiGHS(msg=False, threads=1))
        return [
            f"{label} >= r (short by {slack.varValue:.3g})"
            for label, slack in model.slacks
            if (slack.varValue or 0.0) > _TOLERANCE
        ] or ["unknown: the solver found no solution"]

    def _as_solution(
        self, exponents: Mapping[str, Exponents], values: dict[str, float]
    ) -> Solution:
        # + 0.0 turns -0.0 into 0.0
        c = {name: round(value, _DECIMALS) + 0.0 for name, value in values.items()}
        return Solution(c, change_exponents(self.graph, exponents, c, self.optimizer_type))


class _Model:
    """The PuLP problem of one graph. Rows are ``r - (what varies of a term) <= its constant``."""

    def __init__(
        self,
        graph: Graph,
        exponents: Mapping[str, Exponents],
        optimizer_type: OptimizerType,
        pinned: frozenset[str],
        *,
        exact: bool = False,
        elastic: bool = False,
    ) -> None:
        self.graph, self.optimizer_type = graph, optimizer_type
        self.problem = pulp.LpProblem("maxp", pulp.LpMinimize)
        self.slacks: list[tuple[str, pulp.LpVariable]] = []
        self._elastic = elastic
        self._fixed = {site.name: exponents[site.name].c for site in graph.weighted}
        order = {name: i for i, name in enumerate(graph.nodes)}
        self.r = {
            name: pulp.LpVariable(f"r{i}", 0.0, 0.0 if name in pinned else None)
            for name, i in order.items()
        }
        self.c = {
            site.name: pulp.LpVariable(f"c{order[site.name]}", fixed, fixed)
            for site in graph.weighted
            for fixed in (exponents[site.name].c,)
        }
        self.g = pulp.LpVariable("g") if optimizer_type == "sgd" else None
        rows = self._rows(exponents)
        price = 1.0 / (16 * len(graph.nodes))
        objective = [(c, 1.0) for c in self.c.values()]
        # The tie-break: among the optimal c, those with the smallest r (unique: docs/theory.md).
        # The price is too small to buy a change of the sum of c, whose steps are of order 1.
        objective += [(self.r[site.name], price) for site in graph.sites]
        if self.g is not None:
            objective.append((self.g, price))
        # Built in one go: PuLP's operators copy the expression at each addition.
        for label, entries, constant in rows:
            if elastic:
                slack = pulp.LpVariable(f"s{len(self.slacks)}", 0.0)
                self.slacks.append((label, slack))
                entries = [*entries, (slack, -1.0)]
            self._add(entries, constant)
        for name, node in graph.nodes.items():
            if isinstance(node, JoinNode):
                for parent in node.parents:
                    self._add([(self.r[name], 1.0), (self.r[parent], -1.0)], 0.0)
        if elastic:
            objective = [(slack, 1.0) for _, slack in self.slacks]
        self.problem.setObjective(pulp.LpAffineExpression(objective))
        if exact:
            self._make_exact(exponents, pinned)

    def _rows(
        self, exponents: Mapping[str, Exponents]
    ) -> list[tuple[str, list[tuple[pulp.LpVariable, float]], float]]:
        """(label, left side, right side) of every term; only right sides hold alignments."""
        rows = []
        for site in self.graph.sites:
            for term in terms(site, exponents[site.name], self.optimizer_type):
                left = [(self.r[site.name], 1.0), *self._varying(site.name, term)]
                rows.append((f"{site.name}: {term.label}", left, term.constant))
        for term, name in gradient_terms(self.graph, exponents, self.optimizer_type):
            left = [(self.g, 1.0)] + [(self.c[name], -1.0)] * term.own_c
            rows.append((f"{name}: {term.label}", left, term.constant))
        return rows

    def _varying(self, name: str, term: Term) -> list[tuple[pulp.LpVariable, float]]:
        """The variables of ``-term``; an operand that stands twice has its coefficient doubled."""
        left: dict[pulp.LpVariable, float] = {}
        if term.own_c:
            left[self.c[name]] = -1.0
        for operand in term.operands:
            left[self.r[operand]] = left.get(self.r[operand], 0.0) - 1.0
        if term.own_g:
            left[self.g] = -1.0
        return list(left.items())

    def _add(self, left: list[tuple[pulp.LpVariable, float]], right: float) -> None:
        self.problem.addConstraint(
            pulp.LpConstraint(pulp.LpAffineExpression(left), pulp.LpConstraintLE, rhs=right)
        )

    def _make_exact(self, exponents: Mapping[str, Exponents], pinned: frozenset[str]) -> None:
        """Big-M rows that make r the min it stands for, at the pinned nodes and all above them."""
        above, stack = set(pinned), list(pinned)
        while stack:
            node = self.graph.nodes[stack.pop()]
            feeds = node.parents if isinstance(node, JoinNode) else node.operands
            new = {feed for feed in feeds if feed is not None} - above
            above |= new
            stack.extend(new)
        big = 4.0 * (4 + sum(abs(x) for e in exponents.values() for x in (e.a, e.b, *e.alignment)))
        for i, name in enumerate(above):
            node = self.graph.nodes[name]
            if isinstance(node, JoinNode):
                branches = [([(self.r[p], -1.0)], 0.0) for p in node.parents]
            else:
                found = terms(node, exponents[name], self.optimizer_type)
                branches = [(self._varying(name, t), t.constant) for t in found]
            chosen = [pulp.LpVariable(f"z{i}_{j}", cat="Binary") for j in range(len(branches))]
            self._add([(z, -1.0) for z in chosen], -1.0)
            for z, (left, constant) in zip(chosen, branches, strict=True):
                # r >= term - big * (1 - z)
                flipped = [(v, -x) for v, x in left]
                self._add([(self.r[name], -1.0), *flipped, (z, big)], big - constant)

    def solve(self, solver: Any) -> dict[str, float] | None:
        """c by site; None where the program is infeasible.

        Raises:
            RuntimeError: the solver ended without an answer.
        """
        status = self.problem.solve(solver)
        if status == pulp.LpStatusInfeasible:
            return None
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"the solver ended with status {pulp.LpStatus[status]}")
        return {name: float(c.varValue) for name, c in self.c.items()}

    def same_rows(self, exponents: Mapping[str, Exponents]) -> bool:
        """Whether ``exponents`` differ from those built with in right sides only."""
        return not self._elastic and self._fixed == {
            name: exponents[name].c for name in self._fixed
        }

    def solve_again(self, exponents: Mapping[str, Exponents]) -> dict[str, float] | None:
        """Change the right sides in HiGHS's live model and continue from its last basis."""
        highs = self.problem.solverModel
        right = np.array(self._constants(exponents))
        index = np.arange(len(right), dtype=np.int32)
        highs.changeRowsBounds(len(right), index, np.full(len(right), -np.inf), right)
        highs.run()
        status = highs.modelStatusToString(highs.getModelStatus())
        if status == "Infeasible":
            return None
        if status != "Optimal":
            raise RuntimeError(f"the solver ended with status {status}")
        values = highs.getSolution().col_value
        return {name: values[c.index] for name, c in self.c.items()}

    def _constants(self, exponents: Mapping[str, Exponents]) -> list[float]:
        constants = [
            term.constant
            for site in self.graph.sites
            for term in terms(site, exponents[site.name], self.optimizer_type)
        ]
        found = gradient_terms(self.graph, exponents, self.optimizer_type)
        return constants + [term.constant for term, _ in found]


def solve(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    optimizer_type: OptimizerType = "adam",
    *,
    feature_learning: bool = False,
    solver: Any = None,
) -> Solution:
    """Solve the program of ``graph`` once; see `Program`."""
    program = Program(graph, optimizer_type, feature_learning=feature_learning, solver=solver)
    return program.solve(exponents)
