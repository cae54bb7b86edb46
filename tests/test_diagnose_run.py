"""How the check runs: its probe, what it leaves as it was, and the options that it refuses."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from diagnose_cases import MLP, Known, Model, check, check_known, known, mup
from torch import nn

from maxp import Parametrization
from maxp.diagnose.check import diagnose_axis


def test_a_seed_gives_the_same_probe_at_every_width_and_another_seed_another() -> None:
    seen: dict[int, list[torch.Tensor]] = {}

    def make_input(width: int) -> torch.Tensor:
        x = torch.randn(2, 1)
        seen.setdefault(width, []).append(x)
        return x

    diagnose_axis(known, make_input, [4, 8], seeds=2, progress=False)
    for one, other in zip(seen[4], seen[8], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(*seen[4])


def test_the_probe_may_be_a_dict_of_arguments() -> None:
    stats = diagnose_axis(
        known, lambda width: {"x": torch.ones(2, 1)}, [4, 8], seeds=2, progress=False
    )[2]
    assert stats["site"].init.mean == pytest.approx(0.2, abs=1e-4)


def test_the_callers_generator_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    check_known()
    assert torch.equal(torch.get_rng_state(), before)


def test_every_module_is_in_its_own_mode_afterwards() -> None:
    models = []

    class Frozen(nn.Module):
        """An MLP that trains behind a Dropout that does not."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.drop, self.mlp = nn.Dropout().eval(), MLP(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mlp(self.drop(x))

    def make_model(width: int) -> Any:
        models.append(Frozen(width))
        return models[-1], Parametrization(models[-1]).param_groups

    check(make_model, [8, 16], steps=1, seeds=2)
    assert [(m.drop.training, m.mlp.training) for m in models] == [(False, True)] * 4


def test_the_module_is_imported_without_matplotlib() -> None:
    code = "import sys; sys.modules['matplotlib'] = None; from maxp import diagnose_axis"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of adam, sgd.*'lion'"),
        ({"widths": [64]}, "widths: give at least two"),
        ({"widths": [64, 64]}, "widths: give at least two"),
        ({"seeds": 1}, "seeds must be at least 2"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"alignment_overrides": {"nowhere": (1, 1, 1)}}, "alignment_overrides for nowhere"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(mup, **{"widths": [16, 32], **options})


def test_models_whose_sites_differ_between_widths_are_an_error() -> None:
    def make(width: int) -> Model:
        return mup(width) if width == 16 else known(width)

    with pytest.raises(ValueError, match="other sites at width 32"):
        check(make, [16, 32])


def test_a_model_that_returns_no_tensor_asks_for_a_loss() -> None:
    class Pair(Known):
        def forward(self, x: torch.Tensor) -> Any:
            return self.site(x), None

    def make(width: int) -> Model:
        model = Pair(width)
        return model, [{"params": list(model.parameters()), "lr": 0.1}]

    with pytest.raises(TypeError, match="loss_fn: needed for a model that returns tuple"):
        check_known(make, loss_fn=None)


def test_an_lr_of_zero_at_one_width_only_is_an_error_that_names_the_site() -> None:
    with pytest.raises(ValueError, match="the lr of site"):
        check_known(lambda width: known(width, lr=0.0 if width == 64 else 0.1))
