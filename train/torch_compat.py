"""Differences between torch versions, and a peculiarity of torchtitan 0.3.0.

With torch 2.13 and 2.14 unsupported, only `is_divergence` is still needed: torch 2.15 has
`set_timeout`, and its FSDP accepts torchtitan's default backend.
"""

from datetime import timedelta
from typing import Any

import torch.distributed as dist

_OLD = not hasattr(dist, "set_timeout")


def install() -> None:
    """Give torch.distributed a ``set_timeout``, which torchtitan calls after the first step."""
    if not hasattr(dist, "set_timeout"):

        def set_timeout(timeout: timedelta, group: Any = None) -> None:
            from torch.distributed.distributed_c10d import _set_pg_timeout

            _set_pg_timeout(timeout, group)

        dist.set_timeout = set_timeout  # type: ignore[attr-defined]


def spmd_backend() -> str:
    """The ``parallelism.spmd_backend`` that this torch's FSDP accepts."""
    return "partial_dtensor" if _OLD else "spmd_types"


def is_divergence(error: RuntimeError) -> bool:
    """Whether torchtitan stopped on a loss that is not finite; it has no exception of its own."""
    return str(error).startswith("Loss is not finite")
