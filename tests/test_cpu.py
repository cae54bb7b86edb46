"""torchtitan on a machine without an accelerator, and unchanged on one with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torchtitan.components.metrics
import torchtitan.components.validate
import torchtitan.distributed.utils
import torchtitan.trainer
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.tools import utils

from train import cpu, torch_compat
from train.config import Flags, make_config
from train.model.inner_attention import inner_attention_config
from train.trainer import MaxPTrainer  # installs what is tested here

ROOT = Path(__file__).parents[1]
without_accelerator = pytest.mark.skipif(
    torch.accelerator.is_available(), reason="this machine has an accelerator"
)


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


@without_accelerator
@pytest.mark.parametrize(
    "module",
    [
        utils,
        torchtitan.trainer.utils,
        torchtitan.components.metrics,
        torchtitan.distributed.utils,
    ],
)
def test_every_module_of_torchtitan_sees_the_cpu(module: object) -> None:
    assert getattr(module, "device_type", "cpu") == "cpu"
    assert getattr(module, "device_module", utils.device_module) is utils.device_module
    assert utils.device_type == "cpu"


@without_accelerator
def test_no_module_of_torchtitan_is_left_with_another_device() -> None:
    left = {
        name
        for name, module in sys.modules.items()
        if name.split(".")[0] == "torchtitan" and vars(module).get("device_type", "cpu") != "cpu"
    }
    assert not left


@without_accelerator
def test_the_memory_monitor_reports_this_process_of_this_machine() -> None:
    monitor = torchtitan.components.metrics.build_device_memory_monitor()
    stats = monitor.get_peak_stats()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert monitor.device_capacity_gib == pytest.approx(total / 2**30)
    # torch alone is more than 100 MB, and a peak is less than what there is.
    assert 0.1 < stats.max_reserved_gib < monitor.device_capacity_gib


@without_accelerator
def test_torchtitans_barrier_on_its_current_device_works_over_gloo(process_group: None) -> None:
    # torch.cpu's current device is the word "cpu", which no barrier takes for a device id.
    dist.barrier(device_ids=[utils.device_module.current_device()])


@without_accelerator
def test_attention_on_a_cpu_is_the_one_that_has_a_backward() -> None:
    assert isinstance(inner_attention_config(), ScaledDotProductAttention.Config)


def test_installing_changes_nothing_beside_an_accelerator(
    accelerator: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(utils, "device_type", "cuda")
    monkeypatch.setattr(torchtitan.components.metrics, "device_type", "cuda")
    before = (utils.device_module, utils.get_peak_flops, dist.barrier)
    assert cpu.install() is False
    assert utils.device_type == torchtitan.components.metrics.device_type == "cuda"
    assert (utils.device_module, utils.get_peak_flops, dist.barrier) == before


def test_beside_an_accelerator_a_run_keeps_torchtitans_defaults(accelerator: None) -> None:
    assert isinstance(inner_attention_config(), FlexAttention.Config)
    config = make_config(Flags("s1"))
    default = MaxPTrainer.Config()
    assert config.training.mixed_precision_param == default.training.mixed_precision_param
    assert config.training.disable_cuda_graphs == default.training.disable_cuda_graphs
    assert config.optimizer.implementation == default.optimizer.implementation
    assert config.compile.enable


@without_accelerator
def test_without_an_accelerator_a_run_computes_in_float32() -> None:
    config = make_config(Flags("s1"))
    assert config.training.mixed_precision_param == "float32"
    assert config.training.disable_cuda_graphs
    assert config.optimizer.implementation == "fused"
    assert not config.compile.enable


def test_torch_has_a_timeout_to_set(process_group: None) -> None:
    torch_compat.install()
    dist.set_timeout(timedelta(seconds=77))  # type: ignore[attr-defined]
    world: Any = dist.group.WORLD
    timeout = world._get_backend(torch.device("cpu")).options._timeout
    assert timeout == timedelta(seconds=77)


def test_the_errors_that_end_a_run_as_diverged_are_torchtitans_own() -> None:
    source = Path(torchtitan.trainer.__file__).read_text()
    assert 'f"Loss is not finite (' in source
    assert torch_compat.is_divergence(RuntimeError("Loss is not finite (global_avg_loss=nan)"))
    assert not torch_compat.is_divergence(RuntimeError("Expected all tensors on one device"))


@pytest.mark.slow
def test_a_fresh_process_with_an_accelerator_has_torchtitan_untouched() -> None:
    code = """
import torch, torch.distributed as dist
torch.accelerator.is_available = lambda: True
import torchtitan.trainer
from torchtitan.tools import utils
before = (utils.device_type, utils.device_module, utils.get_peak_flops, dist.barrier)
import train.__main__
assert before == (utils.device_type, utils.device_module, utils.get_peak_flops, dist.barrier)
assert utils.device_type != "cpu"
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
