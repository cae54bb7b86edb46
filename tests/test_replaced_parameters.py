"""A model whose parameters are replaced after `Parametrization`, which then holds the old ones."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import MLP, batch

from maxp import Parametrization

REPLACED = r"embed, layers\.0, layers\.1, readout: .* without assign=True"


def assign(model: torch.nn.Module) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def train(
    p: Parametrization, optimizer: torch.optim.Optimizer, seed: int, *, on_probe: bool = False
) -> None:
    x, labels = batch(seed)
    F.cross_entropy(p.model(x), labels).backward()
    optimizer.step()
    optimizer.zero_grad()
    p.step(None if on_probe else x, optimizer)


def test_no_optimizer_is_built_on_parameters_that_the_model_has_no_more() -> None:
    p = Parametrization(MLP())
    assign(p.model)
    with pytest.raises(ValueError, match=REPLACED):
        p.param_groups  # noqa: B018


def test_a_model_that_leaves_the_meta_device_after_it_is_refused() -> None:
    with torch.device("meta"):
        model = MLP()
    p = Parametrization(model)
    assert len(p.param_groups) == 4
    model.to_empty(device="cpu")
    with pytest.raises(ValueError, match="call to_empty and fully_shard before Parametrization"):
        p.param_groups  # noqa: B018


def test_what_is_replaced_in_one_layer_is_named_by_its_groups() -> None:
    p = Parametrization(MLP(bias=True))
    assign(p.model.layers[0].op)
    with pytest.raises(ValueError, match=r"^layers\.0, rest: "):
        p.param_groups  # noqa: B018


def test_initial_weights_are_not_captured_from_what_the_model_has_no_more() -> None:
    p = Parametrization(MLP())
    assign(p.model)
    with pytest.raises(ValueError, match=r"layers\.0, layers\.1, readout: .* without assign=True"):
        p.capture_initial()


@pytest.mark.parametrize("on_probe", [False, True])
def test_in_training_they_are_not_measured(on_probe: bool) -> None:
    p = Parametrization(MLP(), lr_prefactor=1e-2)
    optimizer = torch.optim.Adam(p.param_groups)
    p.capture_initial(batch(0)[0], any_batch=not on_probe)
    train(p, optimizer, 1, on_probe=on_probe)
    assign(p.model)
    with pytest.raises(ValueError, match="without assign=True"):
        train(p, optimizer, 2, on_probe=on_probe)


def test_a_state_that_is_loaded_in_place_changes_nothing() -> None:
    p = Parametrization(MLP(), lr_prefactor=1e-2)
    optimizer = torch.optim.Adam(p.param_groups)
    p.capture_initial()
    train(p, optimizer, 1)
    p.model.load_state_dict(copy.deepcopy(p.model.state_dict()))
    train(p, optimizer, 2)
    assert p.param_groups[0]["params"][0] is p.model.embed.weight
