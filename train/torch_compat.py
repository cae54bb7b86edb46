"""Differences between the torch versions that torchtitan 0.3.0 meets.

Everything here can go with support for torch 2.13 and 2.14: torch 2.15 has `set_timeout`, and its
FSDP takes torchtitan's default backend.
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
    """Whether torchtitan stopped on a loss that is not finite; it has no exception for it."""
    return str(error).startswith("Loss is not finite")
