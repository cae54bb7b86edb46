"""A measurement on any batch goes on after resuming, and from states of earlier versions."""

from __future__ import annotations

import copy
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from any_batch_cases import RESAMPLE, Net, backward, batch, build, train

from maxp import Parametrization

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "drawn again": {"resample_w0": True},
    "activations of training": {"use_training_activations": True},
    "with a probe": {},
}


@pytest.mark.parametrize("in_place", [False, True], ids=["a file", "distributed, in place"])
@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_continues_to_the_bit(name: str, in_place: bool, tmp_path: Path) -> None:
    probe = batch(50) if name == "with a probe" else None

    def start(seed: int) -> tuple[Net, Parametrization, Any]:
        torch.manual_seed(seed)
        model = Net().double()
        model.drop.p = 0.0
        p = Parametrization(model, lr_prefactor=0.05, **SETTINGS[name])
        p.capture_initial(probe)
        return model, p, torch.optim.Adam(p.param_groups)

    def advance(model: Net, p: Parametrization, optimizer: Any, steps: range) -> Iterator[Any]:
        for step in steps:
            backward(model, batch(step))
            optimizer.step()
            optimizer.zero_grad()
            p.step(batch(step), optimizer)
            yield p.measured, dict(p.c)

    model, p, optimizer = start(0)
    list(advance(model, p, optimizer, range(1, 4)))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), p.state_dict()], file)
    file.seek(0)
    weights, moments, state = torch.load(file)
    dcp.save({"maxp": state}, checkpoint_id=tmp_path, no_dist=True)
    whole = list(advance(model, p, optimizer, range(4, 7)))

    other, q, fresh = start(1)
    if in_place:
        if name == "activations of training":
            backward(other, batch(30))  # what was seen does not change the keys
        loaded = {"maxp": q.state_dict()}
        dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
        state = loaded["maxp"]
    other.load_state_dict(weights)
    fresh.load_state_dict(moments)
    q.load_state_dict(state)
    fresh.zero_grad()
    assert list(advance(other, q, fresh, range(4, 7))) == whole
    assert all(
        torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True)
    )


def test_a_state_saved_between_a_forward_pass_and_step_is_measured_after_loading() -> None:
    model, p = build(use_training_activations=True)
    p.capture_initial(None)
    optimizer = torch.optim.Adam(p.param_groups)
    backward(model, batch(1))
    optimizer.step()
    other, q = build(use_training_activations=True)
    q.capture_initial(None)
    file = io.BytesIO()
    torch.save([model.state_dict(), p.state_dict()], file)
    file.seek(0)
    weights, state = torch.load(file)
    other.load_state_dict(weights)
    q.load_state_dict(state)
    assert q.measure() == p.measure()


def earlier(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it was before any batch could be measured on."""
    del state["measurement"]["others"]
    return state


@RESAMPLE
def test_an_earlier_state_loads_and_goes_on_on_its_probe(resample_w0: bool) -> None:
    model, p = build(resample_w0=resample_w0)
    p.capture_initial(batch(50))
    train(model, p, range(1, 3), measure_on=50)
    state = earlier(copy.deepcopy(p.state_dict()))
    other, q = build(resample_w0=resample_w0)
    other.load_state_dict(model.state_dict())
    q.load_state_dict(state)
    assert q.measure() == p.measure()
    with pytest.raises(RuntimeError, match=r"only the fixed probe .*step\(None, optimizer\)"):
        q.measure(batch(9))


def test_without_any_batch_the_state_is_that_of_earlier_versions() -> None:
    _, p = build()
    p.capture_initial(batch(50), any_batch=False)
    assert p.state_dict()["measurement"].keys() == {"probe", "z0", "w0", "seen"}
    p.measure()
    with pytest.raises(RuntimeError, match="any_batch=False"):
        p.measure(batch(9))
    with pytest.raises(ValueError, match="any_batch=False needs a fixed probe"):
        p.capture_initial(any_batch=False)
