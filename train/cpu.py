"""What torchtitan 0.3.0 needs on a machine without an accelerator.

With an accelerator, nothing here has an effect. Delete this module once torchtitan runs on
``torch.device("cpu")`` without changes.
"""

import os
import platform
import resource
import sys
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

_KIB = 1024


def has_accelerator() -> bool:
    """Whether torch sees a device other than the CPU."""
    return torch.accelerator.is_available()


def install() -> bool:
    """Make torchtitan use the CPU where there is no accelerator; returns whether it did.

    Call it after torchtitan's modules are imported: many copy the device's name and module at
    import, and these copies are replaced as well.
    """
    if has_accelerator():
        return False
    from torchtitan.tools import utils

    if utils.device_type == "cpu":
        return True
    copied = {"device_type": "cpu", "device_module": _device_module()}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "torchtitan":
            for attribute, value in copied.items():
                if attribute in vars(module):
                    setattr(module, attribute, value)
    utils.get_peak_flops = lambda device_name: float("nan")  # MFU has no meaning here
    dist.barrier = _barrier_without_device_ids(dist.barrier)
    return True


def use_sum_reductions(model: nn.Module) -> None:
    """Make FSDP reduce gradients by sums: gloo has no PREMUL_SUM, which it uses by default."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)


def _device_module() -> Any:
    """``torch.cpu`` with the queries that torchtitan's DeviceMemoryMonitor makes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

    def memory_stats(device: Any = None) -> dict[str, int]:
        # The peak of the process: a CPU has no allocator whose peak could be reset.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB
        return {"active_bytes.all.peak": peak, "reserved_bytes.all.peak": peak}

    nothing = lambda *args, **kwargs: None  # noqa: E731
    return SimpleNamespace(
        **{name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")},
        get_device_name=lambda device=None: platform.processor() or platform.machine(),
        get_device_properties=lambda device=None: SimpleNamespace(total_memory=total),
        memory_stats=memory_stats,
        reset_peak_memory_stats=nothing,
        empty_cache=nothing,
    )


def _barrier_without_device_ids(barrier: Any) -> Any:
    def without_device_ids(
        group: Any = None, async_op: bool = False, device_ids: Any = None
    ) -> Any:
        return barrier(group=group, async_op=async_op)

    return without_device_ids
