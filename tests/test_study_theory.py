"""The study's derived exponents and corrections, against values by hand and by chance."""

import math

import numpy as np
import pytest
import torch

from scripts.study.derived import RATIOS, TOTAL, Layer, derive, derive_chain
from scripts.study.fits import finite_slope, slope, slope_of_mean_squares

MUP_ADAM = (
    Layer("embedding", -0.5, 0.5, 0.5),
    Layer("hidden", 0.0, 0.5, 1.0),
    Layer("readout", 0.5, 0.5, 0.5),
)
MUP_SGD = tuple(Layer(x.kind, x.a, x.b, 0.0) for x in MUP_ADAM)
STANDARD = (
    Layer("embedding", 0.0, 0.0, 0.0),
    Layer("hidden", 0.0, 0.5, 0.0),
    Layer("readout", 0.0, 0.5, 0.0),
)
# gradient, Frobenius, spectral, output; of embedding, hidden, readout. Worked out entry by entry.
BY_HAND = {
    ("mup", "adam"): [(0, 0, 0, 0), (-0.5, -0.5, 0, 0), (0, 0, 0, 0.5)],
    ("mup", "sgd"): [(0, 0, 0, 0), (-0.5, -0.5, 0, 0), (0, 0, 0, 0.5)],
    ("standard", "adam"): [(-0.5, 0, 0, 0), (0, 0.5, 1, 1), (0.5, 0.5, 0.5, 1)],
    ("standard", "sgd"): [(-0.5, -0.5, -0.5, -0.5), (0, 0, 0.5, 0.5), (0.5, 0.5, 0.5, 1)],
}
MODELS = {
    ("mup", "adam"): MUP_ADAM,
    ("mup", "sgd"): MUP_SGD,
    ("standard", "adam"): STANDARD,
    ("standard", "sgd"): STANDARD,
}


@pytest.mark.parametrize("case", BY_HAND, ids="-".join)
def test_exponents_are_those_worked_out_by_hand(case: tuple[str, str]) -> None:
    layers = MODELS[case]
    for layer, expected in zip(layers, BY_HAND[case], strict=True):
        derived = derive(layer, layers[-1], case[1])  # type: ignore[arg-type]
        assert [derived[q] for q in RATIOS] == pytest.approx(list(expected))


def test_a_readout_inherits_half_a_power_more_than_its_input_changes_by() -> None:
    totals = [e[TOTAL] for e in derive_chain(list(STANDARD), "adam")]
    assert totals == pytest.approx([0, 1, 1.5])
    assert [e[TOTAL] for e in derive_chain(list(MUP_ADAM), "adam")] == pytest.approx([0, 0, 0.5])


def test_a_power_law_has_its_exponent_as_slope_and_seeds_its_interval() -> None:
    widths = np.array([128.0, 256, 512])
    values = np.stack([3 * widths**-0.5, 5 * widths**-0.7])
    fit = slope(widths, values)
    assert fit.slope == pytest.approx(-0.6)
    assert fit.half == pytest.approx(12.706 * 0.1, rel=1e-3)  # t of 1 degree; error 0.2/sqrt(2)^2


def test_without_a_fixed_dimension_or_fluctuations_a_derived_slope_stays() -> None:
    widths = np.array([128.0, 512, 2048])
    assert finite_slope(widths, -0.5, "spectral", "hidden", 0, 10) == pytest.approx(-0.5)


def test_the_spectral_correction_is_that_of_random_matrices() -> None:
    widths = np.array([128.0, 256, 512, 1024])
    generator = torch.Generator().manual_seed(0)
    norms = np.array(
        [
            [float(torch.randn(int(n), 128, generator=generator).svd().S[0]) for n in widths]
            for _ in range(3)
        ]
    )
    expected = finite_slope(widths, 0.5, "weight_2", "embedding", 0, 128)
    assert abs(expected - 0.5) > 0.15  # there is something to see
    assert slope(widths, norms).slope == pytest.approx(expected, abs=0.02)


def test_a_log_norm_falls_by_five_quarters_over_n_with_each_random_relu_layer() -> None:
    n, layers, samples = 64, 3, 4000
    generator = torch.Generator().manual_seed(0)
    logs = torch.zeros(samples)
    for _ in range(layers):
        # Given its input, a layer's output is n independent gaussians of one scale.
        squares = torch.randn(samples, n, generator=generator).relu().square().sum(1)
        logs += 0.5 * (squares * 2 / n).log()
    error = float(logs.std() / math.sqrt(samples))
    # What finite_slope adds: the values at two widths whose slope it is.
    wide = 1e9
    expected = -finite_slope(np.array([n, wide]), 0, "grad", "hidden", layers, 0)
    expected *= math.log(wide / n)
    assert expected == pytest.approx(-1.25 * layers / n, rel=1e-3)
    assert float(logs.mean()) == pytest.approx(expected, abs=4 * error + 0.1 * abs(expected))


def test_the_mean_square_has_the_slope_that_fluctuations_hide_from_the_mean_of_logs() -> None:
    widths, layers, seeds = np.array([32.0, 128]), 8, 8000
    random = np.random.default_rng(0)
    norms = np.ones((seeds, 2))
    for i, n in enumerate(widths):
        for _ in range(layers):
            squares = np.square(np.maximum(random.standard_normal((seeds, int(n))), 0)).sum(1)
            norms[:, i] *= np.sqrt(squares * 2 / n)
    assert slope(widths, norms).slope > 0.1
    fit = slope_of_mean_squares(widths, norms)
    assert abs(fit.slope) < fit.half < 0.06


def test_the_jackknife_of_two_seeds_is_the_t_interval_of_their_log_squares_to_first_order() -> None:
    widths = np.array([128.0, 256, 512])
    values = np.stack([3 * widths**-0.5, 3 * widths**-0.502])
    one, two = slope(widths, values), slope_of_mean_squares(widths, values)
    assert two.slope == pytest.approx(one.slope, abs=1e-4)
    assert two.half == pytest.approx(one.half, rel=0.02)
