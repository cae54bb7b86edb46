"""The coordinate check: does anything grow or shrink with width? Needs numpy and matplotlib."""

from maxp.diagnose.check import diagnose_axis
from maxp.diagnose.report import plot_axis, print_axis
from maxp.diagnose.slopes import SiteStats, Slope

__all__ = ["SiteStats", "Slope", "diagnose_axis", "plot_axis", "print_axis"]
