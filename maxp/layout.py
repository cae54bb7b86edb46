"""How a layer stores its weight and reads its input, as the matrix product that it computes.

A convolution contracts (channels, kernel) at each position, in each of its groups; Conv1D of
transformers stores its weight as (fan_in, fan_out).
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Fused projections by the usual names: how many equal blocks of rows they have.
FUSED: Mapping[str, int] = {"qkv": 3, "c_attn": 3, "gate_up_proj": 2}

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Rows = Callable[[int, int], torch.Tensor]


def is_transposed(layer: object) -> bool:
    """Whether a layer stores its weight as (fan_in, fan_out): Conv1D of transformers."""
    return any(
        c.__name__ == "Conv1D" and c.__module__.startswith("transformers.")
        for c in type(layer).__mro__
    )


def groups_of(layer: object) -> int:
    """The number of groups of a convolution: equal parts of its rows and of its input."""
    layer = getattr(layer, "op", layer)
    return layer.groups if isinstance(layer, CONVOLUTIONS) else 1


def weight_matrix(layer: object, weight: torch.Tensor) -> torch.Tensor:
    """A layer's weight as (fan_out, fan_in)."""
    layer = getattr(layer, "op", layer)
    if is_transposed(layer):
        return weight.T
    return weight.flatten(1) if isinstance(layer, CONVOLUTIONS) else weight


def matrix_rows(layer: object, rows: Rows, stored: int) -> Rows:
    """A function that returns rows ``start:stop`` of a weight as (fan_out, fan_in).

    Args:
        layer: that has the weight.
        rows: the same function, of the weight as it is stored.
        stored: the number of its rows as it is stored.
    """
    layer = getattr(layer, "op", layer)
    if is_transposed(layer):
        return lambda start, stop: rows(0, stored).T[start:stop]
    if isinstance(layer, CONVOLUTIONS):
        return lambda start, stop: rows(start, stop).flatten(1)
    return rows


def row_blocks(name: str, rows: int, parts: int | Sequence[int]) -> list[tuple[int, int]]:
    """The blocks of rows (start, stop) of a fused projection.

    Args:
        name: of its site.
        rows: the number of its rows.
        parts: the number of equal blocks, or the number of rows of each.

    Raises:
        ValueError: ``parts`` do not make ``rows``; the message names the site.
    """
    sizes = [rows // max(parts, 1)] * parts if isinstance(parts, int) else list(parts)
    if sum(sizes) != rows or min(sizes, default=0) < 1:
        raise ValueError(f"fused: {name} has {rows} rows, which are not {parts} blocks")
    stops = list(accumulate(sizes))
    return list(zip([0, *stops], stops, strict=False))


def contracted_input(layer: object, x: torch.Tensor) -> torch.Tensor:
    """A layer's input as (..., fan_in): for a convolution, one row per position of the kernel."""
    layer = getattr(layer, "op", layer)
    return _patches(layer, x) if isinstance(layer, CONVOLUTIONS) else x


def _patches(conv: Any, x: torch.Tensor) -> torch.Tensor:
    """(batch, channels, *sizes) as (batch, *positions, channels times kernel entries)."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    dims = len(conv.kernel_size)
    first = x.ndim - dims
    steps = zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)
    for i, (size, step, gap) in enumerate(steps):
        # One window per position; its entries become the last dimension.
        x = x.unfold(first + i, gap * (size - 1) + 1, step)[..., ::gap]
    return x.movedim(first - 1, -dims - 1).flatten(-dims - 1)
