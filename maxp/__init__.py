"""Learning rates that transfer across width: the abc-parametrization, solved from alignment.

Mark a model's layers with `ParametrizedModule`, build a `Parametrization` and give its
``param_groups`` to an optimizer; with `Parametrization.capture_initial` and `Parametrization.step`
the learning rates follow the alignment that is measured during training.
"""

import importlib

from maxp.alignment import compute_alignment
from maxp.bounds import BOUNDS, AlignmentBounds, bounded
from maxp.depth import Depth
from maxp.exponents import Alignment, Exponents
from maxp.factors import Factors
from maxp.graph import Graph, JoinNode, SiteNode
from maxp.mark import mark
from maxp.module import ParametrizedModule, Site
from maxp.muon import MuonAdamW
from maxp.overrides import PARAMETRIZATIONS
from maxp.parametrization import Parametrization
from maxp.plan import MarkedWeight, Plan
from maxp.solver import InfeasibleProgramError, Program, Solution, solve
from maxp.trace import trace

__all__ = [
    "BOUNDS",
    "PARAMETRIZATIONS",
    "Alignment",
    "AlignmentBounds",
    "Depth",
    "Exponents",
    "Factors",
    "Fault",
    "Graph",
    "InfeasibleProgramError",
    "JoinNode",
    "MarkedWeight",
    "MuonAdamW",
    "Parametrization",
    "ParametrizedModule",
    "Plan",
    "Program",
    "Site",
    "SiteNode",
    "SiteStats",
    "Slope",
    "Solution",
    "bounded",
    "compute_alignment",
    "diagnose_axis",
    "mark",
    "plot_axis",
    "print_axis",
    "solve",
    "trace",
]


# They need numpy and matplotlib.
_OF_DIAGNOSE = {
    "Fault": "faults",
    "SiteStats": "slopes",
    "Slope": "slopes",
    "diagnose_axis": "check",
    "plot_axis": "report",
    "print_axis": "report",
}


def __getattr__(name: str) -> object:
    if name in _OF_DIAGNOSE:
        module = importlib.import_module(f"maxp.diagnose.{_OF_DIAGNOSE[name]}")
        return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
