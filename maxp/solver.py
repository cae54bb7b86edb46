"""The program: the largest learning rates at which no change grows with width.

Minimise the sum of c subject to r >= 0 at every site, with r the min of the terms of
`maxp.exponents`, and at a join the min of the r of what is joined.

Every r enters later constraints with a positive sign and is otherwise free, so ``r = min(terms)``
is relaxed to ``r <= each term`` without changing the optimum: a linear program, `maxp.lp.Model`.

Sources: Everett et al. 2024 (arXiv 2407.05872), the exponents; Kilian and Wojnar 2025, the program.
``docs/theory.md`` has the derivation, and explains how ties are broken.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pulp

from maxp.exponents import OPTIMIZER_TYPES, Exponents, OptimizerType, change_exponents
from maxp.graph import Graph
from maxp.lp import HiGHS, Model

# c has nine decimals, so that it does not depend on the path of the simplex method or on the rank.
_DECIMALS = 9
_TOLERANCE = 1e-7


@dataclass(frozen=True)
class Solution:
    """``c`` of every site with a weight, and the resulting ``r`` of every node."""

    c: dict[str, float]
    r: dict[str, float]


class InfeasibleProgramError(ValueError):
    """No c keeps every r >= 0. ``binding`` lists the constraints that cannot be met."""

    def __init__(self, binding: list[str]) -> None:
        self.binding = binding
        super().__init__("no learning rate keeps every r >= 0; binding: " + "; ".join(binding))


class Program:
    """The program of one graph, to be solved for any exponents.

    Args:
        graph: the sites and what feeds them.
        optimizer_type: ``"adam"``, for any optimizer whose updates do not depend on the gradient's
            scale, or ``"sgd"``. With ``"adam"``, sites whose exponents have an ``adjust_lr_fn`` are
            Muon's.
        feature_learning: also require that the input of every readout changes by a constant: r = 0
            instead of r >= 0.
        solver: a PuLP solver; None is HiGHS, in process.
        warm_start: start from the previous solution if only alignment has changed. It has no effect
            with solvers other than HiGHS in process.

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
        self.solver = HiGHS() if solver is None else solver
        self.warm_start = warm_start and isinstance(self.solver, pulp.HiGHS)
        self._pinned = frozenset(
            operand
            for site in graph.readouts
            for operand in site.operands
            if feature_learning and operand is not None
        )
        self._model: Model | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies, which start the next solve anew."""
        return {**self.__dict__, "_model": None}

    def solve(self, exponents: Mapping[str, Exponents]) -> Solution:
        """The optimal c to nine decimals; ties are broken towards the smallest r.

        If every c is fixed, nothing is solved, and an r may be negative.

        Args:
            exponents: of every site, by name. A site's ``c`` is fixed if it is set.

        Raises:
            InfeasibleProgramError: no c keeps every r >= 0; it lists the binding constraints.
        """
        if all(exponents[site.name].c is not None for site in self.graph.weighted):
            return self._solution(exponents, {})
        values = self._solve_relaxed(exponents)
        if values is None:
            raise InfeasibleProgramError(self._binding(exponents))
        solution = self._solution(exponents, values)
        if any(abs(solution.r[node]) > _TOLERANCE for node in self._pinned):
            # Fixing a relaxed r at 0 does not fix the min that bounds it: solve exactly.
            values = Model(self.graph, exponents, self.optimizer_type, self._pinned).solve_exact()
            if values is None:
                raise InfeasibleProgramError([f"r = 0 at {', '.join(sorted(self._pinned))}"])
            solution = self._solution(exponents, values)
        return solution

    def _solve_relaxed(self, exponents: Mapping[str, Exponents]) -> dict[str, float] | None:
        if self.warm_start and self._model is not None and self._model.same_rows(exponents):
            return self._model.solve_again(exponents)
        self._model = Model(self.graph, exponents, self.optimizer_type, self._pinned)
        return self._model.solve(self.solver)

    def _binding(self, exponents: Mapping[str, Exponents]) -> list[str]:
        """The constraints that a solution must violate, with the smallest sum of violations."""
        model = Model(self.graph, exponents, self.optimizer_type, self._pinned)
        return [f"{label} >= r (short by {short:.3g})" for label, short in model.shortfalls()] or [
            "unknown: the solver found no solution"
        ]

    def _solution(self, exponents: Mapping[str, Exponents], values: dict[str, float]) -> Solution:
        given = {site.name: exponents[site.name].c for site in self.graph.weighted}
        c = {n: _rounded(values[n]) if held is None else held for n, held in given.items()}
        return Solution(c, change_exponents(self.graph, exponents, c, self.optimizer_type))


def _rounded(c: float) -> float:
    """Rounded up to nine decimals, so that r does not fall below 0; solver noise is dropped."""
    return math.ceil(round(c * 10**_DECIMALS, 3)) / 10**_DECIMALS + 0.0  # + 0.0: no -0.0


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
