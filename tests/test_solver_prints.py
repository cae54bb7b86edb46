"""Solving prints nothing, whatever HiGHS would say."""

import os
import subprocess
import sys

import highspy
import pytest
from solver_cases import FULL, feature_case

from maxp.exponents import Alignment
from maxp.solver import solve

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pulp")


def test_solving_prints_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    enable = highspy.Highs.enableCallbacks

    def with_banner(self: highspy.Highs) -> None:
        # As highspy 1.16 does, once per process.
        if self.getOptionValue("output_flag")[1]:
            os.write(1, b"Running HiGHS\n")
        enable(self)

    monkeypatch.setattr(highspy.Highs, "enableCallbacks", with_banner)
    end = ("embedding", Alignment(0.5, 0.5, 1.0), None)
    last = ("embedding", Alignment(1.0, 0.6, 1.0), 2.0)
    readout = ("last", FULL, None)
    graph, exponents = feature_case(
        {"embedding": (None, FULL, None), "last": last, "end": end, "readout": readout}
    )
    solve(graph, exponents, feature_learning=True)
    assert capfd.readouterr() == ("", "")


def test_a_fresh_process_that_solves_prints_nothing() -> None:
    script = """
from maxp import Parametrization, ParametrizedModule
from torch import nn
Parametrization(nn.Sequential(ParametrizedModule(nn.Linear(4, 4), 4)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
