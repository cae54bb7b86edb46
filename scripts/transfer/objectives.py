"""Two other objectives of the program, tried with the frozen table at `ABLATED`.

The program minimises the sum of c. Under the same constraints, "maximum" minimises the largest
u = a + c, and then the sum; "squares" minimises the sum of u^2. c alone would depend on how a
model's powers of n are divided between a, b and c (docs/theory.md), and u does not.

A run gets other c through factors on the lr of the sites that differ.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import highspy
import numpy as np
import pulp
import torch

from maxp import Graph, Parametrization
from maxp.exponents import PRESETS, Exponents
from maxp.lp import HiGHS, Model
from maxp.overrides import resolve_exponents
from scripts.transfer.plan import ABLATED, ARMS, BASE, SEEDS, WIDTHS, Choice, Run, run_of
from train.run.files import to_json, write_whole

PART = "objective"
OBJECTIVES = ("maximum", "squares")

C = dict[str, float]
"""c by site."""


def solutions(graph: Graph, exponents: Mapping[str, Exponents]) -> dict[str, C]:
    """c under the sum and under each of `OBJECTIVES`, with Adam.

    Raises:
        RuntimeError: HiGHS ended without a solution.
    """
    a = {site.name: exponents[site.name].a for site in graph.weighted}
    return {
        "sum": _solved(Model(graph, exponents, "adam")),
        "maximum": _smallest_maximum(Model(graph, exponents, "adam"), a),
        "squares": _smallest_squares(Model(graph, exponents, "adam"), a),
    }


def _solved(model: Model) -> C:
    values = model.solve(HiGHS())
    if values is None:
        raise RuntimeError("no learning rate keeps every r >= 0")
    return values


def _smallest_maximum(model: Model, a: Mapping[str, float]) -> C:
    problem, of_sum = model.problem, model.problem.objective
    largest = problem.add_variable("largest")
    for name, c in model.c.items():
        problem.addConstraint(c + a[name] <= largest)
    problem.setObjective(pulp.LpAffineExpression([(largest, 1.0)]))
    _solved(model)
    largest.upBound = largest.varValue
    problem.setObjective(of_sum)
    return _solved(model)


def _smallest_squares(model: Model, a: Mapping[str, float]) -> C:
    """PuLP has no squares: HiGHS gets them, with the rows that it holds after a solve."""
    _solved(model)
    highs = model.problem.solverModel
    columns = {c.index: a[name] for name, c in model.c.items()}
    size = highs.getNumCol()
    # u^2 = c^2 + 2 a c + a^2, and HiGHS minimises half of what the Hessian gives.
    costs = np.array([2 * columns.get(i, 0.0) for i in range(size)])
    highs.changeColsCost(size, np.arange(size, dtype=np.int32), costs)
    hessian = highspy.HighsHessian()
    hessian.dim_, hessian.format_ = size, highspy.HessianFormat.kTriangular
    hessian.start_ = np.cumsum([0, *(i in columns for i in range(size))])
    hessian.index_ = np.array(sorted(columns))
    hessian.value_ = np.full(len(columns), 2.0)
    highs.passHessian(hessian)
    highs.run()
    status = highs.modelStatusToString(highs.getModelStatus())
    if status != "Optimal":
        raise RuntimeError(f"the solver ended with status {status}")
    values = highs.getSolution().col_value
    return {name: values[c.index] for name, c in model.c.items()}


def file_of(table: str) -> Path:
    """The file of the solutions, beside the table."""
    return Path(table).with_name("objectives.json")


def write_solutions(table: str) -> None:
    """Solve with the table's alignment at `ABLATED`, and write c by objective and site."""
    rounded = {
        objective: {name: round(c, 6) for name, c in of.items()}
        for objective, of in solutions(*_program(table)).items()
    }
    write_whole(file_of(table), to_json(rounded, indent=2) + "\n")


def _program(table: str) -> tuple[Graph, dict[str, Exponents]]:
    """What the runs of maxP-frozen solve."""
    # Imported here, since torchtitan takes seconds.
    from train.config import Flags, make_config
    from train.method.methods import get_method
    from train.model.kinds import site_graph
    from train.trainer import method_arguments

    config = make_config(Flags(ABLATED, method="maxP-frozen", alignment_table=table))
    assert config.model_spec is not None
    graph = site_graph(config.model_spec.model)
    with torch.device("meta"):
        model = config.model_spec.model.build()
    given = method_arguments(config, graph)
    sites = Parametrization(model, sample_input=graph, seed=0, **given).sites
    preset, ab = PRESETS[given["alignment"]], get_method("maxP-frozen").ab
    return graph, resolve_exponents(sites, preset, ab, {}, given["alignment_overrides"])


def read_solutions(table: str) -> dict[str, C]:
    """c by objective and site, as `write_solutions` wrote them; empty without the file."""
    file = file_of(table)
    return json.loads(file.read_text()) if file.exists() else {}


def objective_runs(table: str, chosen: Choice) -> Iterator[Run]:
    """The carried lr at each objective; none while the file of solutions does not exist."""
    solved = read_solutions(table)
    for seed in SEEDS:
        for objective in OBJECTIVES if solved else ():
            run = run_of(PART, ARMS, "maxP-frozen", ABLATED, chosen, table, seed)
            factors = site_factors(solved["sum"], solved[objective], chosen)
            words = " ".join(f"{name} {factor:.6g}" for name, factor in factors.items())
            flags = f"{run.flags} --maxp.lr_multipliers.sites {words}"
            yield run._replace(arm=objective, flags=flags)


def site_factors(of_sum: C, other: C, chosen: Choice) -> dict[str, float]:
    """Factors on the lr of the sites whose c differs; they contain the carried ones."""
    ratio = WIDTHS[ABLATED] / WIDTHS[BASE]
    carried = {"tok_embeddings": chosen.embedding, "lm_head": chosen.readout}
    return {
        name: carried.get(name, 1.0) * ratio ** (c - other[name])
        for name, c in of_sum.items()
        if abs(c - other[name]) > 1e-5
    }
