"""Learning rates that transfer across width: the abc-parametrization, solved from alignment.

Mark a model's layers with `ParametrizedModule`, build a `Parametrization` and give its
``param_groups`` to an optimizer; with `Parametrization.capture_initial` and `Parametrization.step`
the learning rates follow the alignment that is measured during training.
"""

from maxp.alignment import compute_alignment
from maxp.graph import Graph
from maxp.module import ParametrizedModule, Site
from maxp.overrides import PARAMETRIZATIONS
from maxp.parametrization import Parametrization
from maxp.solver import Alignment, InfeasibleProgramError, solve
from maxp.trace import trace

__all__ = [
    "PARAMETRIZATIONS",
    "Alignment",
    "Graph",
    "InfeasibleProgramError",
    "Parametrization",
    "ParametrizedModule",
    "Site",
    "compute_alignment",
    "diagnose_axis",
    "plot_axis",
    "print_axis",
    "solve",
    "trace",
]


def __getattr__(name: str) -> object:
    # numpy and matplotlib are needed for these alone.
    if name in {"diagnose_axis", "plot_axis", "print_axis"}:
        from maxp import diagnose

        return getattr(diagnose, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
