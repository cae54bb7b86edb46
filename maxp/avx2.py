"""Products of bfloat16 matrices on x86 CPUs without AVX-512, where torch's own are slow.

`torch.optim.Muon` multiplies in bfloat16 on every device. With torch 2.13 on a CPU with AVX2, this
takes tens of times as long as in float32 at width 512. Delete this module once torch is fast there.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)


def is_slow() -> bool:
    """Whether this CPU multiplies bfloat16 matrices without vector instructions."""
    return torch.backends.cpu.get_cpu_capability() == "AVX2"


def fast_products() -> AbstractContextManager[object]:
    """Multiply bfloat16 matrices on such a CPU in float32, and round the results to bfloat16.

    torch's own products also add up in float32 and round once, so only the order of the sums
    differs. On other CPUs and on other devices nothing changes.
    """
    return _InFloat32() if is_slow() else nullcontext()


class _InFloat32(TorchDispatchMode):
    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _PRODUCTS and all(map(_is_bfloat16_on_cpu, args)):
            return func(*(x.float() for x in args), **kwargs or {}).bfloat16()
        return func(*args, **kwargs or {})


def _is_bfloat16_on_cpu(x: torch.Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"
