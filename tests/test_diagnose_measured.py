"""What the check measures and reads off, on a model of which all is known."""

import pytest
import torch
from diagnose_cases import Known, Model, check_known, known
from torch import nn

from maxp.diagnose.check import diagnose_axis


def test_rms_is_that_of_the_output_and_of_its_change() -> None:
    stats = check_known()
    for i, width in enumerate([16, 64, 128]):
        assert stats.init_rms[:, i] == pytest.approx([width**0.2] * 2, rel=1e-5)
        # Adam's first update is the lr.
        assert stats.change_rms[:, i] == pytest.approx([0.01 * width**-0.2] * 2, rel=1e-3)


def test_the_change_is_that_of_all_steps() -> None:
    # As long as the gradient is the same, Adam's updates are the lr.
    one, three = check_known(steps=1), check_known(steps=3)
    assert three.change_rms == pytest.approx(3 * one.change_rms, rel=1e-3)


def test_what_a_model_writes_into_an_output_is_not_measured() -> None:
    class InPlace(Known):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).mul_(3.0)

    def make(width: int) -> Model:
        model = InPlace(width).double()
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    def ones(width: int) -> torch.Tensor:
        return torch.ones(2, 1, dtype=torch.float64)

    _, _, stats = diagnose_axis(make, ones, [16, 64], seeds=2, progress=False)
    assert stats["site"].init_rms[0, 0] == pytest.approx(16**0.2, rel=1e-5)


def test_measured_is_the_model_in_evaluation_and_trained_it_as_it_was() -> None:
    modes = []

    class Dropped(Known):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            modes.append((self.training, torch.is_grad_enabled()))
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    def make(width: int) -> Model:
        model = Dropped(width)
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    stats = check_known(make)
    assert stats.init_rms[0, 0] == pytest.approx(16**0.2, rel=1e-5)
    assert modes[-3:] == [(False, False), (True, True), (False, False)]


def test_slopes_are_those_of_a_known_power_law() -> None:
    stats = check_known()
    assert stats.init.mean == pytest.approx(0.2, abs=1e-4)
    assert stats.change.mean == pytest.approx(-0.2, abs=1e-3)


def test_exponents_are_read_off_multiplier_weight_and_lr() -> None:
    stats = check_known()
    assert stats.init.derived == pytest.approx(0.2, abs=1e-4)  # -(a + b) = 0.5 - 0.3
    assert stats.change.derived == pytest.approx(-0.2, abs=1e-4)  # -(a + c) = 0.5 - 0.7


def test_the_mean_and_error_of_a_slope_are_over_seeds() -> None:
    def make(width: int) -> Model:
        model, groups = known(width)
        # Seeds 0 and 1 are told apart by what they draw.
        slope = 0.1 if torch.initial_seed() == 0 else 0.3
        with torch.no_grad():
            model.get_parameter("site.op.weight").fill_(width ** (slope - 0.5))
        return model, groups

    stats = check_known(make)
    assert stats.init.mean == pytest.approx(0.2, abs=1e-4)
    assert stats.init.error == pytest.approx(0.1, abs=1e-4)  # |0.3 - 0.1| / sqrt(2) / sqrt(2)
