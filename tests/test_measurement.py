"""What is captured of a probe, and what is measured on it."""

import io
from collections import UserDict
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from models import FEATURES, MLP, ViT, batch, linear
from test_alignment import bilinear_by_definition, by_definition
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from maxp import Parametrization
from maxp.capture import Capture, token_positions
from maxp.module import find_sites

# Positions


@pytest.mark.parametrize(("tokens", "size"), [(5, 32), (32, 32), (33, 32), (4096, 32)])
def test_positions_are_distinct_in_order_and_at_most_so_many(tokens: int, size: int) -> None:
    chosen = token_positions(tokens, size).tolist()
    assert len(chosen) == min(tokens, size)
    assert chosen == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < tokens


def test_positions_are_the_same_at_every_call_and_spread() -> None:
    chosen = token_positions(4096, 64)
    torch.rand(3)
    assert torch.equal(token_positions(4096, 64), chosen)
    with torch.device("meta"):  # as torch.set_default_device, which a loop may have called
        assert torch.equal(token_positions(4096, 64), chosen)
    assert chosen[0] < 1024
    assert chosen[-1] > 3072


# Capture


def captured(model: nn.Module, x: torch.Tensor, sample_size: int = 1000) -> Any:
    with Capture(find_sites(model), sample_size).watching() as seen:
        model(x)
    return seen


def test_inputs_are_taken_of_every_site_but_embeddings() -> None:
    model, (x, _) = MLP(depth=1), batch(0)
    seen = captured(model, x)
    h = model.embed(x)
    torch.testing.assert_close(seen["layers.0"], (h,))
    torch.testing.assert_close(seen["readout"], (F.relu(model.layers[0](h)),))
    assert list(seen) == ["layers.0", "readout"]


def test_a_sample_is_of_the_seeded_positions_of_all_leading_dimensions() -> None:
    model, x = nn.Sequential(linear(8, 8)), torch.randn(3, 20, 8)
    (sample,) = captured(model, x, 7)["0"]
    assert torch.equal(sample, x.reshape(60, 8)[token_positions(60, 7)])


class Branches(nn.Module):
    """Two sites read one tensor, the second maybe after a write into it."""

    def __init__(self, *, write: bool) -> None:
        super().__init__()
        self.a, self.b, self.write = linear(8, 8), linear(8, 8), write

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x.clone()
        y = self.a(h)
        if self.write:
            h += 1
        return y + self.b(h)


def test_sites_that_share_an_input_share_its_sample() -> None:
    seen = captured(Branches(write=False), torch.randn(4, 8))
    assert seen["a"][0] is seen["b"][0]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_tensor_that_was_written_in_place_is_sampled_again(mode: Any) -> None:
    x = torch.randn(4, 8)
    with mode():
        seen = captured(Branches(write=True), x)
    assert torch.equal(seen["a"][0], x)
    assert torch.equal(seen["b"][0], x + 1)


def test_a_dtensor_is_sampled_as_the_whole_tensor() -> None:
    model, x = nn.Sequential(linear(8, 8)), torch.randn(20, 8)
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        model[0].forward = lambda x: x
        (sample,) = captured(model, distribute_tensor(x, mesh, [Shard(1)]), 7)["0"]
    finally:
        dist.destroy_process_group()
    assert torch.equal(sample, x[token_positions(20, 7)])


def test_a_sample_does_not_follow_later_writes() -> None:
    x = torch.randn(4, 8)
    (sample,) = captured(nn.Sequential(linear(8, 8)), x)["0"]
    x.zero_()
    assert sample.abs().min() > 0


def test_no_hook_stays() -> None:
    model = MLP()
    captured(model, batch(0)[0])
    assert not any(m._forward_pre_hooks for m in model.modules())


# Measuring


def train(
    model: nn.Module, p: Parametrization, x: Any, y: torch.Tensor, steps: int, probe: Any = None
) -> None:
    optimizer = torch.optim.Adam(p.param_groups)
    for _ in range(steps):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(probe, optimizer)


def test_measured_exponents_are_the_definition_on_the_probe() -> None:
    model, (x, y), (probe, _) = MLP(depth=2, bias=True), batch(0), batch(1)
    p = Parametrization(model, lr_prefactor=0.05, seed=0)
    z0 = captured(model, probe)
    w0 = {name: weight.detach().clone() for name, weight in p.weights.items()}
    p.capture_initial(probe)
    train(model, p, x, y, 3)
    z = captured(model, probe)
    assert set(p.measured) == {"layers.0", "layers.1", "readout"}
    for name, measured in p.measured.items():
        width, w = p.sites[name].width_dim, p.weights[name].detach()
        expected = by_definition(z0[name][0], w0[name], z[name][0], w, width)
        assert measured == pytest.approx(expected, abs=1e-5)


def test_scores_of_an_attention_are_measured_by_head() -> None:
    model, x = ViT(depth=1), torch.randn(2, 5, FEATURES)
    p = Parametrization(model, lr_prefactor=0.05, seed=0, sample_input=x)
    p.capture_initial(x)
    with torch.no_grad():
        q0, k0 = captured(model, x)["blocks.0.qk"]
    train(model, p, x, torch.tensor([0, 1]), 2)
    with torch.no_grad():
        q, k = captured(model, x)["blocks.0.qk"]
    each = [
        bilinear_by_definition(q0[b, h], k0[b, h], q[b, h], k[b, h])
        for b in range(2)
        for h in range(2)
    ]
    # model.qk's width is 8, the oracle's logarithm is to another base.
    base = torch.log(torch.tensor(16.0)) / torch.log(torch.tensor(8.0))
    expected = torch.tensor(each).mean(0) * base
    assert p.measured["blocks.0.qk"] == pytest.approx(expected.tolist(), abs=1e-5)


def test_the_probe_is_a_copy() -> None:
    model, (x, y) = MLP(), batch(0)
    measured = []
    for write in (False, True):
        p = Parametrization(model, seed=0)
        probe = x.clone()
        p.capture_initial(probe)
        if write:
            probe.mul_(-3)  # a buffer that the caller fills again
        train(model, p, x, y, 2)
        measured.append(p.measured)
    assert measured[0] == measured[1]


def test_the_probe_may_be_passed_again_as_another_equal_tensor() -> None:
    model, (x, y) = MLP(), batch(0)
    p = Parametrization(model)
    p.capture_initial(x)
    train(model, p, x, y, 1, probe=x.clone())
    assert p.steps == 1


@pytest.mark.parametrize("kind", [tuple, dict, UserDict])
def test_a_probe_may_hold_several_arguments(kind: type) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = linear(FEATURES, 4)

        def forward(self, x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
            return self.a(x + shift)

    x, _ = batch(0)
    probe: Any = (x, x) if kind is tuple else kind({"shift": x, "x": x})
    p = Parametrization(Two(), sample_input=probe, seed=0)
    p.capture_initial(probe)
    w0 = p.weights["a"].detach().clone()
    with torch.no_grad():
        p.weights["a"].add_(1.0)
    expected = by_definition(2 * x, w0, 2 * x, w0 + 1, FEATURES)
    assert p.measure()["a"] == pytest.approx(expected, abs=1e-5)
    assert p.measure(kind(probe))["a"] == pytest.approx(expected, abs=1e-5)
    torch.save(p.state_dict(), file := io.BytesIO())
    file.seek(0)
    assert isinstance(torch.load(file)["measurement"]["probe"], tuple if kind is tuple else dict)


def test_measuring_leaves_modes_gradients_and_the_random_stream_alone() -> None:
    model = nn.Sequential(linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8), linear(8, 8))
    model[2].eval()  # a layer that the user has frozen
    p = Parametrization(model)
    modes = [m.training for m in model.modules()]
    stream = torch.get_rng_state()
    p.capture_initial(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    p.measure()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_site_that_the_probe_does_not_reach_is_refused_by_name() -> None:
    model = nn.Sequential(linear(8, 8))
    model.unused = linear(8, 8)
    model.forward = lambda x: model[0](x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="does not reach unused"):
        Parametrization(model).capture_initial(torch.randn(2, 8))


# Activations of training


def test_activations_of_training_are_those_before_the_update() -> None:
    model, (x, y) = MLP(depth=1), batch(0)
    p = Parametrization(model, lr_prefactor=0.05, seed=0, use_training_activations=True)
    p.capture_initial(x)
    z0, w0 = captured(model, x), p.weights["layers.0"].detach().clone()
    train(model, p, x, y, 1)
    # The first forward pass was with the initial weights.
    assert p.measured["layers.0"][1:] == (None, None)
    before = captured(model, x)
    train(model, p, x, y, 1)
    w = p.weights["layers.0"].detach()
    expected = by_definition(z0["layers.0"][0], w0, before["layers.0"][0], w, 16)
    assert p.measured["layers.0"] == pytest.approx(expected, abs=1e-5)


def test_activations_of_training_cost_no_forward_pass_of_their_own() -> None:
    model, (x, y) = MLP(), batch(0)
    p = Parametrization(model, use_training_activations=True)
    p.capture_initial(x)
    calls: list[None] = []
    model.register_forward_pre_hook(lambda *_: calls.append(None))
    train(model, p, x, y, 3)
    assert len(calls) == 3


@pytest.mark.parametrize("seen", ["nothing", "no gradients"])
def test_activations_of_training_without_training_are_missed(seen: str) -> None:
    model, (x, y) = MLP(), batch(0)
    p = Parametrization(model, use_training_activations=True)
    p.capture_initial(x)
    optimizer = torch.optim.Adam(p.param_groups)
    if seen == "no gradients":  # a validation pass
        with torch.no_grad():
            model(x)
    with pytest.raises(RuntimeError, match="has not run the model"):
        p.step(None, optimizer)
    del y


def test_activations_of_training_serve_one_measurement() -> None:
    model, (x, y) = MLP(), batch(0)
    p = Parametrization(model, use_training_activations=True)
    p.capture_initial(x)
    train(model, p, x, y, 1)
    with pytest.raises(RuntimeError, match="since the last measurement"):
        p.measure()


def test_a_forward_pass_of_training_that_fails_leaves_no_hook() -> None:
    model, (x, y) = MLP(depth=1), batch(0)
    p = Parametrization(model, use_training_activations=True)
    p.capture_initial(x)
    fail = model.readout.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(x)
    fail.remove()
    assert not any(site._forward_pre_hooks for site in (model.layers[0], model.readout))
    train(model, p, x, y, 1)
    assert p.steps == 1
