"""Probes drawn from many tokens: their spread is the standard error."""

import numpy as np
import pytest
import torch

from maxp import compute_alignment
from scripts.bench.probe_error import Row, averaged, draw, per_token


def test_tokens_own_exponents_average_to_the_measured_ones() -> None:
    generator = torch.Generator().manual_seed(0)
    z0, z = (torch.randn(7, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    w0, w = (torch.randn(5, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    exponents = per_token(z0, z, w0, w, 16).mean(1)
    assert tuple(exponents.tolist()) == pytest.approx(compute_alignment(z0, w0, z, w, 16))


def test_a_token_without_a_term_has_no_exponent() -> None:
    z0, w0 = torch.ones(2, 4), torch.ones(3, 4)
    z = z0.clone()
    z[1] = 2.0
    exponents = per_token(z0, z, w0, 2 * w0, 4)
    assert torch.isnan(exponents[1:, 0]).all()
    assert torch.isfinite(exponents[1:, 1]).all()


def spread(values: np.ndarray, count: int, sequences: int) -> float:
    rng = np.random.default_rng(0)
    means = [draw({"x": values}, count, sequences, rng)["x"][0] for _ in range(2000)]
    return float(np.std(means))


def test_independent_tokens_have_the_naive_error() -> None:
    values = np.random.default_rng(1).normal(size=(1, 400, 50))
    assert spread(values, 25, 25) == pytest.approx(1 / 5, rel=0.1)


def test_more_tokens_of_equal_ones_in_a_sequence_help_nothing() -> None:
    values = np.repeat(np.random.default_rng(1).normal(size=(1, 400, 1)), 50, axis=2)
    assert spread(values, 50, 1) == pytest.approx(1, rel=0.1)


def test_runs_are_averaged_as_variances() -> None:
    runs = [[Row(16, 1, x, x, x, x, x)] for x in (3.0, 4.0)]
    assert averaged(runs)[0].exponent == pytest.approx(12.5**0.5)
