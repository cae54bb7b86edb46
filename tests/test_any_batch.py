"""`Parametrization.step` on any batch, against a second model that kept its initial weights."""

from __future__ import annotations

import copy
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from models import CLASSES, FEATURES, MLP, linear
from test_alignment import by_definition
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from maxp import Parametrization, ParametrizedModule
from scripts.torture.ranks import run_ranks

WIDTH, TOKENS, ROWS, LENGTH = 16, 9, 3, 5


class Net(nn.Module):
    """Everything that a forward pass depends on, and that training changes."""

    def __init__(self, *, rerun: str | None = None) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Embedding(TOKENS, WIDTH), WIDTH, "embedding")
        self.norm = nn.LayerNorm(WIDTH)
        self.first = linear(WIDTH, WIDTH, bias=True)
        self.statistics = nn.BatchNorm1d(WIDTH)
        self.drop = nn.Dropout(0.5)
        self.plain = nn.Linear(WIDTH, WIDTH)  # no site
        self.frozen = nn.Parameter(torch.full((WIDTH,), 1.5), requires_grad=False)
        self.second = linear(WIDTH, WIDTH)
        self.readout = ParametrizedModule(nn.Linear(WIDTH, CLASSES, bias=False), WIDTH, "readout")
        self.register_buffer("written", torch.zeros(2))  # nothing writes it, but for one test
        self.rerun = rerun

    def body(self, h: torch.Tensor) -> torch.Tensor:
        shape = h.shape[:2]
        h = self.first(self.norm(h)).relu()
        h = self.statistics(h.flatten(0, 1)).unflatten(0, shape)
        # The second site's weight is also used by an operation that is no site.
        h = h + F.linear(self.plain(self.drop(h)) * self.frozen, self.second.op.weight)
        return self.second(h).relu()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.rerun is None:
            return self.readout(self.body(self.embed(x)))
        reentrant = self.rerun == "reentrant"
        return self.readout(checkpoint(self.body, self.embed(x), use_reentrant=reentrant))


def batch(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENS, (ROWS, LENGTH), generator=generator)


def build(*, rerun: str | None = None, **settings: Any) -> tuple[Net, Parametrization]:
    torch.manual_seed(0)
    model = Net(rerun=rerun).double()
    return model, Parametrization(model, lr_prefactor=0.05, seed=3, **settings)


def backward(model: nn.Module, x: torch.Tensor) -> None:
    F.cross_entropy(model(x).flatten(0, 1), x.flatten() % CLASSES).backward()


def train(model: nn.Module, p: Parametrization, steps: range, measure_on: Any = None) -> None:
    optimizer = torch.optim.Adam(p.param_groups)
    for step in steps:
        backward(model, batch(step))
        optimizer.step()
        optimizer.zero_grad()
        p.step(batch(measure_on) if measure_on is not None else batch(step), optimizer)


def inputs(model: Net, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The inputs of the sites on x, in evaluation mode, by hooks of the test's own."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(model, name).register_forward_pre_hook(
            lambda _, args, name=name: seen.update({name: args[0].detach().flatten(0, -2)})
        )
        for name in ("first", "second", "readout")
    ]
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    with torch.no_grad():
        model(x)
    for module, mode in modes:
        module.training = mode
    for hook in hooks:
        hook.remove()
    return seen


def by_twin(
    model: Net, twin: Net, x: torch.Tensor, z: dict[str, torch.Tensor] | None = None
) -> dict[str, tuple[float | None, ...]]:
    """The definition, from a model with the initial weights and one with the current ones."""
    z0, z = inputs(twin, x), z or inputs(model, x)
    return {
        name: by_definition(
            z0[name],
            getattr(twin, name).weight.detach(),
            z[name],
            getattr(model, name).weight.detach(),
            WIDTH,
        )
        for name in z
    }


def assert_exact(measured: Any, expected: Any) -> None:
    assert measured.keys() == expected.keys()
    for name, values in expected.items():
        assert None not in values
        assert measured[name] == pytest.approx(values, abs=1e-6), name


def snapshot(model: nn.Module) -> list[Any]:
    """All that measuring must leave alone."""
    tensors = [*model.parameters(), *model.buffers()]
    return [
        *(t.detach().clone() for t in tensors),
        *(p.grad.clone() for p in model.parameters() if p.grad is not None),
        torch.get_rng_state(),
        torch.tensor([m.training for m in model.modules()]),
        torch.tensor([id(t) for t in tensors]),
        torch.tensor([t.data_ptr() for t in tensors]),
    ]


def assert_untouched(model: nn.Module, before: list[Any]) -> None:
    after = snapshot(model)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def draw_and_write(model: nn.Module) -> None:
    torch.rand(3)
    model.written.add_(1)


RESAMPLE = pytest.mark.parametrize("resample_w0", [False, True], ids=["kept", "drawn again"])


# Exact


@RESAMPLE
@pytest.mark.parametrize("probe", [None, 50], ids=["no probe", "a probe"])
def test_a_batch_is_measured_against_a_model_that_kept_its_initial_weights(
    resample_w0: bool, probe: int | None
) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None if probe is None else batch(probe))
    twin = copy.deepcopy(model)
    train(model, p, range(1, 4))
    for x in (batch(3), batch(77)[:2]):
        assert_exact(p.measure(x), by_twin(model, twin, x))


@RESAMPLE
def test_gradient_accumulation_is_measured_on_the_batch_that_is_passed(resample_w0: bool) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in range(1, 4):
        for part in range(2):
            backward(model, batch(10 * step + part))
        optimizer.step()
        optimizer.zero_grad()
        p.step(batch(10 * step + 1), optimizer)
    assert_exact(p.measured, by_twin(model, twin, batch(31)))


def test_a_compiled_model_is_measured_with_its_initial_weights() -> None:
    model, _ = build()
    compiled = torch.compile(model, backend="eager")
    p = Parametrization(compiled, lr_prefactor=0.05, seed=3, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(compiled, p, range(1, 4))
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_several_batches_in_turn_do_not_wear_the_initial_weights_out() -> None:
    model, p = build(sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 9))
    assert_exact(p.measure(batch(5)), by_twin(model, twin, batch(5)))


@RESAMPLE
def test_weights_that_are_tied_or_frozen_or_not_of_sites_are_initial_too(resample_w0: bool) -> None:
    model, p = build(
        resample_w0=resample_w0, sample_size=100, alignment_overrides={"second": (1, 0.5, 1)}
    )
    model.again = model.plain
    model.view = nn.Parameter(model.plain.weight.detach(), requires_grad=False)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    with torch.no_grad():
        model.frozen.mul_(2)
    expected = by_twin(model, twin, batch(9))
    del expected["second"]
    before = snapshot(model)
    assert_exact(p.measure(batch(9)), expected)
    assert_untouched(model, before)


def test_an_embedding_that_was_not_drawn_is_kept_although_w0_is_drawn_again() -> None:
    model, p = build(resample_w0=True, sample_size=100)
    with torch.no_grad():
        model.embed.weight[0] = 0.0
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_the_probe_is_still_measured_on_if_no_batch_is_passed() -> None:
    probe, histories = batch(50), []
    for passed in (None, probe, probe.clone()):
        model, p = build()
        p.capture_initial(probe)
        optimizer = torch.optim.Adam(p.param_groups)
        calls: list[None] = []
        backward(model, batch(1))
        optimizer.step()
        model.register_forward_pre_hook(lambda *_, calls=calls: calls.append(None))
        p.step(passed, optimizer)
        assert len(calls) == 1  # its initial activations are known
        histories.append((p.measured, p.c))
    assert histories[0] == histories[1] == histories[2]


# Untouched


@RESAMPLE
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_touched_even_if_the_pass_raises(resample_w0: bool, fails: bool) -> None:
    model, p = build(resample_w0=resample_w0, sample_size=100)
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    train(model, p, range(1, 3))
    model.norm.eval()  # a layer that the user has frozen
    backward(model, batch(8))
    # A layer that draws in evaluation too, and writes a buffer.
    noisy = model.statistics.register_forward_hook(lambda *_: draw_and_write(model))
    hook = model.readout.register_forward_pre_hook(lambda *_: 1 / 0) if fails else None
    before = snapshot(model)
    if hook:
        with pytest.raises(ZeroDivisionError):
            p.measure(batch(9))
        assert_untouched(model, before)
        hook.remove()
    p.measure(batch(9))
    assert_untouched(model, before)
    noisy.remove()
    assert_exact(p.measure(batch(9)), by_twin(model, twin, batch(9)))


def test_a_graph_that_awaits_its_backward_pass_is_left_whole() -> None:
    model, p = build()
    p.capture_initial(None)
    loss = model(batch(1)).square().sum()
    p.measure(batch(2))
    loss.backward()


# Activations of training


@pytest.mark.parametrize("rerun", [None, "reentrant", "not reentrant", "wrapper", "whole"])
def test_activations_of_training_are_those_of_its_last_batch(rerun: str | None) -> None:
    model, p = build(rerun=rerun, sample_size=100, use_training_activations=True)
    model.drop.p = 0.0
    model.statistics.eval()  # so that training and evaluation compute the same
    if rerun in ("wrapper", "whole"):
        model.rerun = None
    if rerun == "wrapper":
        model.second, model.first = map(checkpoint_wrapper, (model.second, model.first))
        p = Parametrization(
            model, lr_prefactor=0.05, seed=3, sample_size=100, use_training_activations=True
        )
    p.capture_initial(None)
    twin = copy.deepcopy(model)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in range(1, 4):
        for part in range(2):  # gradients are accumulated
            x = batch(10 * step + part)
            before = inputs(model, x)
            h = checkpoint(model, x, use_reentrant=False) if rerun == "whole" else model(x)
            F.cross_entropy(h.flatten(0, 1), x.flatten() % CLASSES).backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(None, optimizer)
    # The inputs are those of before the update, the weights those of after it.
    assert_exact(p.measured, by_twin(model, twin, x, before))


def test_a_forward_pass_of_training_that_fails_is_not_measured_on(
    recwarn: pytest.WarningsRecorder,
) -> None:
    measured = []
    for fails in (False, True):
        model, p = build(use_training_activations=True)
        p.capture_initial(None)
        optimizer = torch.optim.Adam(p.param_groups)
        backward(model, batch(1))
        optimizer.step()
        backward(model, batch(2))
        if fails:
            hook = model.second.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                model(batch(3))
            hook.remove()
        p.step(None, optimizer)
        measured.append(p.measured)
    assert measured[0] == measured[1]
    assert not recwarn.list


def test_activations_of_training_follow_no_later_write_into_the_batch() -> None:
    measured = []
    for write in (False, True):
        model, p = build(use_training_activations=True)
        p.capture_initial(None)
        optimizer, x = torch.optim.Adam(p.param_groups), batch(1)
        for _ in range(2):
            backward(model, x)
            optimizer.step()
        if write:
            x.zero_()
        p.step(None, optimizer)
        measured.append(p.measured)
    assert measured[0] == measured[1]


# Resuming

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


# Bad input


def test_without_a_probe_a_batch_must_be_passed() -> None:
    _, p = build()
    p.capture_initial(None)
    with pytest.raises(RuntimeError, match=r"no fixed probe.*pass a batch"):
        p.step(None, torch.optim.Adam(p.param_groups))


def test_an_empty_batch_is_refused() -> None:
    _, p = build()
    p.capture_initial(None)
    with pytest.raises(ValueError, match="x is empty"):
        p.step(batch(1)[:0], torch.optim.Adam(p.param_groups))


@pytest.mark.parametrize("where", ["batch", "probe"])
def test_a_batch_with_nan_is_refused(where: str) -> None:
    p = Parametrization(MLP())
    x = torch.randn(4, FEATURES)
    x[1, 2] = torch.nan
    p.capture_initial(None)
    optimizer = torch.optim.Adam(p.param_groups)
    use = p.capture_initial if where == "probe" else lambda x: p.step(x, optimizer)
    with pytest.raises(ValueError, match="x contains NaN"):
        use(x)


class Gated(nn.Module):
    """Its second site reads only the rows that its first one lets pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.rest = linear(8, 8), linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rest(x[self.gate(x)[:, 0] > 0])


def test_a_site_that_reads_other_tokens_than_before_is_measured_at_those_of_both() -> None:
    model = Gated()
    p = Parametrization(model, seed=0)
    p.capture_initial(None)
    x = torch.rand(20, 8, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(p.param_groups)
    w0 = model.rest.weight.detach().clone()
    with torch.no_grad():
        before = x[model.gate(x)[:, 0] > 0]
        model.gate.weight[0] = 1.0  # now all rows pass
        model.rest.weight.add_(torch.rand(8, 8), alpha=0.1)
    assert 0 < len(before) < 20
    p.step(x, optimizer)
    w = model.rest.weight.detach()
    assert p.measured["rest"] == pytest.approx(by_definition(before, w0, before, w, 8), abs=1e-5)


def test_an_input_without_a_dimension_of_tokens_is_refused() -> None:
    model = nn.Sequential(linear(8, 8))
    model[0].op.forward = lambda x: x  # type: ignore[method-assign]
    p = Parametrization(model)
    with pytest.raises(ValueError, match="0: its input has no dimension"):
        p.capture_initial(torch.tensor(1.0))


# Shards: the same on two processes


def main() -> None:
    """One of the processes: writes what it measured to FOLDER/rankN.json."""
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    cases = {}
    for resample_w0 in (False, True):
        for from_training in (False, True):
            model, p = sharded(resample_w0, from_training)
            cases[f"{resample_w0} {from_training}"] = case(model, p, rank, from_training)
    (folder / f"rank{rank}.json").write_text(json.dumps(cases))
    dist.destroy_process_group()


def sharded(resample_w0: bool, from_training: bool) -> tuple[Net, Parametrization]:
    torch.manual_seed(0)
    model = Net().double()
    model.drop.p = 0.0
    model.statistics.eval()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model.first, model.norm):
        fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    p = Parametrization(
        model,
        lr_prefactor=0.05,
        seed=3,
        sample_size=100,
        resample_w0=resample_w0,
        use_training_activations=from_training,
    )
    return model, p


def case(model: Net, p: Parametrization, rank: int, from_training: bool) -> dict[str, Any]:
    p.capture_initial(None)
    optimizer = torch.optim.Adam(p.param_groups)
    for step in (1, 2):
        for part in range(2):  # gradients are accumulated, over batches of each process
            backward(model, batch(100 * step + 10 * part + rank))
        optimizer.step()
        optimizer.zero_grad()
        if not from_training:
            with torch.no_grad():  # a validation pass, which leaves the last weights gathered
                model(batch(0))
        p.step(batch(100 * step + 10 + rank), optimizer)
        if step == 2:
            measured = p.measured
    whole = {n: v.full_tensor().tolist() for n, v in model.named_parameters()}
    local = [v.to_local().clone() for v in model.parameters()]
    # Each process fails in the pass; then training goes on with the current weights.
    fails = model.second.register_forward_pre_hook(lambda *_: 1 / 0)
    if not from_training:
        with pytest.raises(ZeroDivisionError):
            p.measure(batch(5))
    fails.remove()
    after = [v.to_local() for v in model.parameters()]
    same = all(torch.equal(a, b) for a, b in zip(local, after, strict=True))
    with torch.no_grad():
        output = model(batch(4)).tolist()
    return {"measured": measured, "whole": whole, "same": same, "output": output}


@pytest.mark.slow
def test_two_processes_measure_what_a_model_that_kept_its_initial_weights_does(
    tmp_path: Path,
) -> None:
    done = run_ranks("test_any_batch", str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    cases = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert len(cases[0]) == 4
    for name, first in cases[0].items():
        other = cases[1][name]
        assert first["same"]
        assert other["same"]
        twin, _ = build()
        model = copy.deepcopy(twin)
        model.load_state_dict(
            {n: torch.tensor(v).double() for n, v in first["whole"].items()}, strict=False
        )
        for net in (model, twin):
            net.eval()
        assert torch.allclose(model(batch(4)), torch.tensor(first["output"]).double(), atol=1e-12)
        # The first process's batch counts.
        if name.endswith("False"):
            assert_exact(first["measured"], by_twin(model, twin, batch(210)))
        assert first["measured"] == other["measured"]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
