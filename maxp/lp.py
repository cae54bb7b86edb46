"""The linear program of `maxp.solver` as a PuLP problem, solved once or repeatedly."""

import math
from collections.abc import Mapping
from typing import Any

import highspy
import numpy as np
import pulp

from maxp.exponents import Exponents, OptimizerType, Term, gradient_terms, terms
from maxp.graph import Graph, JoinNode

Row = list[tuple[pulp.LpVariable, float]]


class _SilentHighs(highspy.Highs):
    def enableCallbacks(self) -> None:
        # The constructor calls this, and from highspy 1.16 on it prints a banner.
        self.silent()
        super().enableCallbacks()


class HiGHS(pulp.HiGHS):
    """HiGHS in process, silent and on one thread. It loads a problem and reads its values in bulk.

    PuLP's own class adds one row and one column at a time and collects duals, which takes longer
    than solving: 30 ms in all at 226 sites, where this takes 19 and a warm solve 12.
    """

    def __init__(self, **options: Any) -> None:
        # Presolving takes longer than it saves on a program of this size.
        super().__init__(msg=False, threads=1, **{"presolve": "off", **options})

    def createAndConfigureSolver(self, lp: pulp.LpProblem) -> None:
        lp.solverModel = _SilentHighs()
        limits = {
            "mip_rel_gap": self.gapRel,
            "mip_abs_gap": self.gapAbs,
            "threads": self.threads,
            "time_limit": self.timeLimit,
        }
        for key, value in {**limits, **self.optionsDict}.items():
            if value is not None:
                lp.solverModel.setOptionValue(key, value)

    def actualSolve(self, lp: pulp.LpProblem) -> int:
        variables = lp.variables()
        self.createAndConfigureSolver(lp)
        self._load(lp, variables)
        self.callSolver(lp)
        known = highspy.HighsModelStatus
        status, solution = {
            known.kOptimal: (pulp.LpStatusOptimal, pulp.LpSolutionOptimal),
            known.kInfeasible: (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible),
            known.kUnboundedOrInfeasible: (pulp.LpStatusInfeasible, pulp.LpSolutionInfeasible),
            known.kUnbounded: (pulp.LpStatusUnbounded, pulp.LpSolutionUnbounded),
        }.get(
            lp.solverModel.getModelStatus(),
            (pulp.LpStatusNotSolved, pulp.LpSolutionNoSolutionFound),
        )
        if status == pulp.LpStatusOptimal:
            values = lp.solverModel.getSolution().col_value
            for variable, value in zip(variables, values, strict=True):
                variable.varValue = value
        lp.assignStatus(status, solution)
        return int(status)

    def _load(self, lp: pulp.LpProblem, variables: list[pulp.LpVariable]) -> None:
        model, infinity = lp.solverModel, highspy.kHighsInf
        for index, variable in enumerate(variables):
            variable.index = index
        low = [-infinity if v.lowBound is None else v.lowBound for v in variables]
        high = [infinity if v.upBound is None else v.upBound for v in variables]
        columns = np.arange(len(variables), dtype=np.int32)
        model.addVars(len(variables), np.array(low), np.array(high))
        costs = [lp.objective.get(v, 0.0) for v in variables]
        model.changeColsCost(len(variables), columns, np.array(costs, dtype=np.float64))
        for variable in variables:
            if variable.cat == pulp.LpInteger and self.mip:
                model.changeColIntegrality(variable.index, highspy.HighsVarType.kInteger)
        starts: list[int] = []
        indices: list[int] = []
        values: list[float] = []
        lower: list[float] = []
        upper: list[float] = []
        for index, row in enumerate(lp._constraints.values()):
            row.index = index
            starts.append(len(indices))
            bounds = row.getLb(), row.getUb()
            lower.append(-infinity if bounds[0] is None else bounds[0])
            upper.append(infinity if bounds[1] is None else bounds[1])
            for variable, value in row.items():
                indices.append(variable.index)
                values.append(value)
        model.addRows(
            len(starts),
            np.array(lower, dtype=np.float64),
            np.array(upper, dtype=np.float64),
            len(indices),
            np.array(starts, dtype=np.int32),
            np.array(indices, dtype=np.int32),
            np.array(values, dtype=np.float64),
        )


class Model:
    """The problem of one graph. Rows are ``r - (variables of a term) <= constant of the term``.

    Ties among optimal c are broken towards the smallest sum of r. With Adam, and sites without a
    weight that only pass on the smaller r, a small price on r in the objective breaks them.
    Otherwise a second program does, in which the sum of c is fixed (docs/theory.md, "Uniqueness").

    Args:
        graph: as in `maxp.solver.Program`.
        exponents: by site, as in `maxp.solver.Program.solve`.
        optimizer_type: ``"adam"`` or ``"sgd"``.
        pinned: nodes whose r is fixed at 0.
    """

    def __init__(
        self,
        graph: Graph,
        exponents: Mapping[str, Exponents],
        optimizer_type: OptimizerType,
        pinned: frozenset[str] = frozenset(),
    ) -> None:
        self.graph, self.optimizer_type, self._pinned = graph, optimizer_type, pinned
        self.problem = pulp.LpProblem("maxp", pulp.LpMinimize)
        self._given = {site.name: exponents[site.name].c for site in graph.weighted}
        self._two_stages = _needs_two_stages(graph, exponents, optimizer_type)
        order = {name: i for i, name in enumerate(graph.nodes)}
        self.r = {
            name: self.problem.add_variable(f"r{i}", 0.0, 0.0 if name in pinned else None)
            for name, i in order.items()
        }
        self.c = {
            n: self.problem.add_variable(f"c{order[n]}", c, c) for n, c in self._given.items()
        }
        self.g = self.problem.add_variable("g") if optimizer_type == "sgd" else None
        self._labels: list[str] = []
        for label, left, right in self._term_rows(exponents):
            self._labels.append(label)
            self._add(left, right)
        for name, node in graph.nodes.items():
            if isinstance(node, JoinNode):
                for parent in node.parents:
                    self._add([(self.r[name], 1.0), (self.r[parent], -1.0)], 0.0)
        self._sum_of_c: Row = [(c, 1.0) for c in self.c.values()]
        self._ties = self._tie_rows()
        self._minimise_c(priced=not self._two_stages)

    def _minimise_c(self, *, priced: bool) -> None:
        # The sum of c changes in steps of order 1, so the price is too small to change it.
        price = 1.0 / (16 * len(self.graph.nodes))
        ties = [(variable, price * x) for variable, x in self._ties] if priced else []
        self.problem.setObjective(pulp.LpAffineExpression(self._sum_of_c + ties))

    # Rows

    def _term_rows(self, exponents: Mapping[str, Exponents]) -> list[tuple[str, Row, float]]:
        """(label, left side, right side) of every term. Only right sides depend on alignment."""
        rows: list[tuple[str, Row, float]] = []
        for site in self.graph.sites:
            for term in terms(site, exponents[site.site], self.optimizer_type):
                left = [(self.r[site.name], 1.0), *self._varying(site.owner, term)]
                rows.append((f"{site.name}: {term.label}", left, term.constant))
        for term, name in gradient_terms(self.graph, exponents, self.optimizer_type):
            left = [(self.g, 1.0), *self._varying(name, term)]
            rows.append((f"{name}: {term.label}", left, term.constant))
        return rows

    def _varying(self, name: str, term: Term) -> Row:
        """The variables of ``-term``; an operand that occurs twice has its coefficient doubled."""
        left: dict[pulp.LpVariable, float] = {}
        if term.own_c:
            left[self.c[name]] = -1.0
        for operand in term.operands:
            left[self.r[operand]] = left.get(self.r[operand], 0.0) - 1.0
        if term.own_g:
            left[self.g] = -1.0
        return list(left.items())

    def _add(self, left: Row, right: float) -> None:
        # Built at once: PuLP's operators copy the expression at each addition.
        self.problem.addConstraint(
            pulp.LpConstraint(pulp.LpAffineExpression(left), pulp.LpConstraintLE, rhs=right)
        )

    def _tie_rows(self) -> Row:
        """The expression that the solution minimises among equal sums of c."""
        ties = [(self.r[site.name], 1.0) for site in self.graph.sites]
        if self.g is not None and any(s.layer_type != "readout" for s in self.graph.weighted):
            ties.append((self.g, 1.0))
        if self._two_stages:
            # If only r_q + r_k is bounded, share it evenly.
            for i, site in enumerate(self.graph.sites):
                if (
                    not site.has_weight
                    and None not in site.operands
                    and len(set(site.operands)) > 1
                ):
                    q, k = (self.r[operand] for operand in site.operands if operand is not None)
                    apart = self.problem.add_variable(f"d{i}", 0.0)
                    ties.append((apart, 0.25))
                    self._add([(q, 1.0), (k, -1.0), (apart, -1.0)], 0.0)
                    self._add([(k, 1.0), (q, -1.0), (apart, -1.0)], 0.0)
        return ties

    # Solving

    def solve(self, solver: Any) -> dict[str, float] | None:
        """c by site; None if the program is infeasible.

        Raises:
            RuntimeError: the solver ended without a solution.
        """
        if not self._two_stages:
            return self._run(solver)
        if not isinstance(solver, pulp.HiGHS):
            # A solver that communicates through files gives too few digits to fix the sum of c.
            self._minimise_c(priced=True)
            return self._run(solver)
        values = self._run(solver)
        if values is None:
            return None
        self._add(self._sum_of_c, sum(values.values()))
        self.problem.setObjective(pulp.LpAffineExpression(self._ties))
        return self._run(solver)

    def _run(self, solver: Any) -> dict[str, float] | None:
        status = self.problem.solve(solver)
        if status == pulp.LpStatusInfeasible:
            return None
        if status != pulp.LpStatusOptimal:
            raise RuntimeError(f"the solver ended with status {pulp.LpStatus[status]}")
        return {name: float(c.varValue) for name, c in self.c.items()}

    def same_rows(self, exponents: Mapping[str, Exponents]) -> bool:
        """Whether ``exponents`` change only the right sides of this problem."""
        one_stage = not (
            self._two_stages or _needs_two_stages(self.graph, exponents, self.optimizer_type)
        )
        return one_stage and self._given == {n: exponents[n].c for n in self._given}

    def solve_again(self, exponents: Mapping[str, Exponents]) -> dict[str, float] | None:
        """Change the right sides in HiGHS's model and continue from its last basis.

        Raises:
            RuntimeError: the solver ended without a solution.
        """
        highs = self.problem.solverModel
        right = np.array(self._right_sides(exponents))
        rows = np.arange(len(right), dtype=np.int32)
        highs.changeRowsBounds(len(right), rows, np.full(len(right), -math.inf), right)
        highs.run()
        status = highs.modelStatusToString(highs.getModelStatus())
        if status == "Infeasible":
            return None
        if status != "Optimal":
            raise RuntimeError(f"the solver ended with status {status}")
        values = highs.getSolution().col_value
        return {name: values[c.index] for name, c in self.c.items()}

    def _right_sides(self, exponents: Mapping[str, Exponents]) -> list[float]:
        return [
            term.constant
            for site in self.graph.sites
            for term in terms(site, exponents[site.site], self.optimizer_type)
        ] + [t.constant for t, _ in gradient_terms(self.graph, exponents, self.optimizer_type)]

    def shortfalls(self) -> list[tuple[str, float]]:
        """(label, shortfall) of the terms that a solution must violate; their sum is minimal."""
        slacks = []
        for i, row in enumerate(list(self.problem.constraints.values())[: len(self._labels)]):
            slack = self.problem.add_variable(f"s{i}", 0.0)

            row.expr.addterm(slack, -1.0)
            slacks.append(slack)
        self.problem.setObjective(pulp.LpAffineExpression([(slack, 1.0) for slack in slacks]))
        self.problem.solve(HiGHS())
        labelled = zip(self._labels, slacks, strict=True)
        return [(label, s.varValue) for label, s in labelled if (s.varValue or 0.0) > 1e-7]

    def solve_exact(self) -> dict[str, float] | None:
        """c with r equal to its min, not only at most: at pinned nodes, all above them, and for g.

        Binary variables choose the term that is the min. A linear program with that choice is then
        solved again, since binary variables are exact to six digits only.
        """
        picks = self._make_exact()
        if self._run(HiGHS(gapRel=0.0, gapAbs=0.0, presolve="choose")) is None:
            return None
        for pick in picks:
            pick.lowBound = pick.upBound = round(pick.varValue)
        return self._run(HiGHS(mip=False))

    def _make_exact(self) -> list[pulp.LpVariable]:
        above, stack = set(self._pinned), list(self._pinned)
        while stack:
            node = self.graph.nodes[stack.pop()]
            feeds = node.parents if isinstance(node, JoinNode) else node.operands
            new = {feed for feed in feeds if feed is not None} - above
            above |= new
            stack.extend(new)
        exact = [self.r[name] for name in self.graph.nodes if name in above]
        exact += [self.g] if self.g is not None else []
        # A bound, larger than any row can be from binding.
        rows = list(self.problem.constraints.values())
        big = 16.0 + 4.0 * sum(abs(row.constant) for row in rows)
        picks: list[pulp.LpVariable] = []
        for variable in exact:
            bounds = [row for row in rows if row.get(variable, 0.0) > 0]
            chosen = [
                self.problem.add_variable(f"z{len(picks) + j}", cat="Binary")
                for j in range(len(bounds))
            ]
            picks += chosen
            self._add([(z, -1.0) for z in chosen], -1.0)
            for z, row in zip(chosen, bounds, strict=True):
                # left >= right - big * (1 - z)
                flipped = [(v, -x) for v, x in row.items()]
                self._add([*flipped, (z, big)], big + row.constant)
        return picks


def _needs_two_stages(
    graph: Graph, exponents: Mapping[str, Exponents], optimizer_type: OptimizerType
) -> bool:
    """Whether the sum of c may change in smaller steps than the price on r assumes."""
    neutral = all(
        abs(exponents[site.site].a - e) < 1e-12
        for site in graph.sites
        if not site.has_weight
        for e in exponents[site.site].alignment
    )
    return optimizer_type != "adam" or not neutral
