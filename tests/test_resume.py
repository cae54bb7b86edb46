"""Saving in the middle of a run and loading into fresh objects continues it to the bit."""

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import torch.nn.functional as F
from models import FEATURES, MLP, ViT, batch, linear
from plain_models import GPT, tokens
from torch import nn
from torch.optim import Optimizer

from maxp import Parametrization

PROBE, LABELS = batch(99)
STEPS, SAVED_AFTER = 8, 4

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "c_ema": {"c_ema": 0.7},
    "alignment_ema": {"alignment_ema": 0.7},
    "resample_w0": {"resample_w0": True},
    "warm_start": {"warm_start": True},
    "training activations": {"use_training_activations": True},
    "sgd": {"optimizer_type": "sgd"},
    "saved in warmup": {"warmup_steps": 5},
    "saved between solves": {"solve_interval": 3},
    "few tokens": {"sample_size": 5},
    "infeasible": {"alignment": "no", "c_overrides": {"layers.0": 0.5}},
    "everything": {
        "c_ema": 0.5,
        "alignment_ema": 0.5,
        "resample_w0": True,
        "warm_start": True,
        "use_training_activations": True,
        "solve_interval": 3,
        "sample_input": PROBE,
        "alignment_overrides": {"layers.1": (0.9, 0.5, 0.9)},
    },
}


class Run:
    """A model, its parametrization and optimizer; everything a run shows is in ``history``."""

    def __init__(self, settings: dict[str, Any], *, seed: int, scheduled: bool = False) -> None:
        torch.manual_seed(seed)  # so that a fresh run starts from other weights
        self.p = Parametrization(MLP(bias=True), lr_prefactor=0.05, **settings)
        kind = torch.optim.SGD if settings.get("optimizer_type") == "sgd" else torch.optim.Adam
        self.optimizer: Optimizer = kind(self.p.param_groups)
        self.full_batch = settings.get("use_training_activations", False)
        self.scheduled = scheduled
        self.history: list[Any] = []

    def train(self, first: int, last: int) -> None:
        p, optimizer = self.p, self.optimizer
        for step in range(first, last + 1):
            if self.scheduled:
                p.lr_prefactor = 0.05 / step
            x, y = (PROBE, LABELS) if self.full_batch else batch(step)
            loss = F.cross_entropy(p.model(x), y)
            loss.backward()
            used = [group["lr"] for group in optimizer.param_groups]
            optimizer.step()
            optimizer.zero_grad()
            p.step(PROBE, optimizer)
            now = [group["lr"] for group in optimizer.param_groups]
            self.history.append(
                (loss.item(), used, now, p.c, p.targets, p.r, p.alignment, p.measured)
            )
            self.history.append((p.steps, p.infeasible, dict(p.refused), dict(p.zero_terms)))

    def state(self) -> dict[str, Any]:
        return {
            "model": self.p.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "maxp": self.p.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.p.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.p.load_state_dict(state["maxp"])


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


def uninterrupted(settings: dict[str, Any], **options: Any) -> tuple[Run, Any]:
    """A whole run, and what it saved on the way."""
    run = Run(settings, seed=0, **options)
    run.p.capture_initial(PROBE)
    run.train(1, SAVED_AFTER)
    state = through_a_file(run.state())
    run.train(SAVED_AFTER + 1, STEPS)
    return run, state


def assert_same_end(resumed: Run, whole: Run) -> None:
    assert resumed.history == whole.history[2 * SAVED_AFTER :]
    for name, weight in whole.p.model.state_dict().items():
        assert torch.equal(resumed.p.model.state_dict()[name], weight), name


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_a_resumed_run_continues_exactly(settings: dict[str, Any]) -> None:
    whole, state = uninterrupted(settings)
    assert whole.p.measured["layers.0"][0] is not None
    resumed = Run(settings, seed=1)
    resumed.load(state)
    resumed.train(SAVED_AFTER + 1, STEPS)
    assert_same_end(resumed, whole)


def test_a_schedule_continues_exactly_from_the_first_step_on() -> None:
    whole, state = uninterrupted({}, scheduled=True)
    resumed = Run({}, seed=1, scheduled=True)
    resumed.load(state)
    resumed.p.apply(resumed.optimizer)
    resumed.train(SAVED_AFTER + 1, STEPS)
    assert_same_end(resumed, whole)


def test_a_prefactor_that_was_set_once_stays_set() -> None:
    first = Run({}, seed=0)
    first.p.lr_prefactor = 0.02
    resumed = Run({}, seed=1)
    resumed.load(through_a_file(first.state()))
    for run in (first, resumed):
        run.p.capture_initial(PROBE)
        run.train(1, 3)
    assert resumed.p.lr_prefactor == 0.02
    assert resumed.history == first.history


def test_counts_go_on() -> None:
    run, resumed = Run({}, seed=0), Run({}, seed=1)
    run.p.refused["readout"], run.p.zero_terms["layers.0"], run.p.infeasible = 3, 2, 1
    resumed.load(through_a_file(run.state()))
    assert resumed.p.refused == {"readout": 3}
    assert resumed.p.zero_terms == {"layers.0": 2}
    assert resumed.p.infeasible == 1


@pytest.mark.parametrize("order", [("maxp", "optimizer", "model"), ("model", "maxp", "optimizer")])
def test_the_order_of_loading_does_not_matter(order: tuple[str, ...]) -> None:
    whole, state = uninterrupted({})
    resumed = Run({}, seed=1)
    for part in order:
        target: Any = {
            "model": resumed.p.model,
            "optimizer": resumed.optimizer,
            "maxp": resumed.p,
        }[part]
        target.load_state_dict(state[part])
    resumed.train(SAVED_AFTER + 1, STEPS)
    assert_same_end(resumed, whole)


@pytest.mark.parametrize(("first", "then"), [(False, True), (True, False)])
def test_a_run_may_change_how_it_keeps_the_initial_weights(first: bool, then: bool) -> None:
    whole, state = uninterrupted({"resample_w0": first})
    resumed = Run({"resample_w0": then}, seed=1)
    resumed.load(state)
    resumed.train(SAVED_AFTER + 1, STEPS)
    assert_same_end(resumed, whole)


def test_activations_of_training_seen_before_saving_are_measured_after_loading() -> None:
    settings: dict[str, Any] = {
        "use_training_activations": True,
        "solve_interval": 3,
        "lr_prefactor": 0.05,
    }

    def advance(p: Parametrization, optimizer: Optimizer, steps: range) -> None:
        for step in steps:
            # Training sees the probe at the second step only.
            x, y = (PROBE, LABELS) if step == 2 else batch(step)
            F.cross_entropy(p.model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
            p.step(None, optimizer)

    whole = Parametrization(MLP(), seed=0, **settings)
    whole.capture_initial(PROBE)
    optimizer = torch.optim.Adam(whole.param_groups)
    advance(whole, optimizer, range(1, 3))
    state = through_a_file([whole.model.state_dict(), optimizer.state_dict(), whole.state_dict()])
    advance(whole, optimizer, range(3, 4))

    resumed = Parametrization(MLP(), seed=1, **settings)
    fresh = torch.optim.Adam(resumed.param_groups)
    resumed.model.load_state_dict(state[0])
    fresh.load_state_dict(state[1])
    resumed.load_state_dict(state[2])
    advance(resumed, fresh, range(3, 4))
    assert resumed.measured == whole.measured
    assert resumed.c == whole.c


def test_a_state_of_before_the_capture_is_resumed_too() -> None:
    settings = {"c_overrides": {"layers.0": 1.0}}
    first = Run(settings, seed=0)
    state = through_a_file(first.state())
    resumed = Run(settings, seed=1)
    resumed.load(state)
    for run in (first, resumed):
        run.p.capture_initial(PROBE)
        run.train(1, 3)
    assert resumed.history == first.history


def test_the_samples_that_sites_share_are_saved_once_and_shared_again() -> None:
    x = torch.randn(2, 4, FEATURES)
    p = Parametrization(ViT(depth=1), sample_input=x)
    p.capture_initial(x)
    state = p.state_dict()["measurement"]["z0"]
    assert len(state["index"]) == 6  # qkv, qk, proj, fc1, fc2, head
    assert len(state["tensors"]) == 7  # qk has two

    class Three(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = (linear(8, 8) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q(x) + self.k(x) + self.v(x)

    p = Parametrization(Three())
    p.capture_initial(torch.randn(4, 8))
    assert len(p.state_dict()["measurement"]["z0"]["tensors"]) == 1


def test_the_keys_of_the_state_do_not_depend_on_the_runs_past() -> None:
    def keys(value: Any) -> Any:
        return {k: keys(v) for k, v in value.items()} if isinstance(value, dict) else None

    run = Run({}, seed=0)
    run.p.capture_initial(PROBE)
    before = keys(run.p.state_dict())
    run.train(1, 2)
    with torch.no_grad():
        run.p.weights["readout"].fill_(torch.nan)
    run.p.measure()
    assert run.p.refused
    assert keys(run.p.state_dict()) == before


def test_a_state_goes_through_a_distributed_checkpoint(tmp_path: Path) -> None:
    settings = {"c_ema": 0.5, "alignment_ema": 0.5}
    whole, state = uninterrupted(settings)
    dcp.save({"maxp": state["maxp"]}, checkpoint_id=tmp_path, no_dist=True)
    resumed = Run(settings, seed=1)
    resumed.p.capture_initial(PROBE)  # in place: the state to load into has all its keys
    loaded = {"maxp": resumed.p.state_dict()}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    resumed.load({**state, "maxp": loaded["maxp"]})
    resumed.train(SAVED_AFTER + 1, STEPS)
    assert_same_end(resumed, whole)


def test_a_state_of_another_model_is_refused() -> None:
    state = Parametrization(MLP(depth=1)).state_dict()
    with pytest.raises(ValueError, match=r"other sites: layers\.1"):
        Parametrization(MLP(depth=2)).load_state_dict(state)


def warnings_of_changes(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [m for m in caplog.messages if "since Parametrization drew them" in m]


@pytest.mark.parametrize("resumed", ["the model", "all"])
def test_capturing_trained_weights_as_initial_ones_is_reported(
    resumed: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = Run({}, seed=0)
    first.p.capture_initial(PROBE)
    first.train(1, 1)
    again = Run({}, seed=1)
    again.p.model.load_state_dict(first.p.model.state_dict())
    if resumed == "all":
        again.p.load_state_dict(first.p.state_dict())
    assert not warnings_of_changes(caplog)
    again.p.capture_initial(PROBE)
    (message,) = warnings_of_changes(caplog)
    assert "to resume, load p.state_dict() and do not call capture_initial" in message


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.3, 0.0])
def test_a_constant_factor_on_the_drawn_weights_is_not_reported(
    factor: float, dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    p = Parametrization(GPT(64, 1, tied=True), base=GPT(16, 1, tied=True), sample_input=tokens())
    with torch.no_grad():
        for weight in p.weights.values():
            weight.mul_(factor)
    p.model.to(dtype)
    p.capture_initial()
    assert not warnings_of_changes(caplog)
