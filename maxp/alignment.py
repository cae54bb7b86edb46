"""Measures alignment: how coherently a site's update and changed input add up.

With z = z0 + dZ and W = W0 + dW,

    z W^T = z0 W0^T + z0 dW^T + dZ W0^T + dZ dW^T,

and each of the last three terms x M^T has the log-alignment exponent

    align(x, M) = mean over tokens of (log rms(x M^T) - log rms(x) - log rms(M)) / log n .

It is 1 if the terms of the product add up coherently, and 1/2 if their signs are random. By
Cauchy-Schwarz, 1 is the largest possible value.

Source: Everett et al. 2024 (arXiv 2407.05872), "alignment ratio"; Kilian and Wojnar 2025.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch.distributed.tensor import DTensor

from maxp.shards import (
    local,
    region,
    splits_columns,
    sum_over_shards,
    sum_partial_products,
    whole,
)

# (align_z0_dW, align_dZ_w0, align_dZ_dW); None for a term that is exactly zero.
Measured = tuple[float | None, float | None, float | None]

# Weights are read in chunks of about this many entries, so that no whole copy is made.
_CHUNK = 1 << 24


class SiteState(NamedTuple):
    """What a measurement needs of one site.

    Attributes:
        z0: its input with the initial weights, (tokens, in).
        z: its input with the current weights, (tokens, in), for the same tokens.
        weight: the current weight, (out, in), possibly sharded.
        w0: returns rows ``start:stop`` of this rank's part of the initial weight.
        fan_in: n.
        block: the rows (start, stop) of the whole weight that are measured; None is all.
    """

    z0: torch.Tensor
    z: torch.Tensor
    weight: torch.Tensor
    w0: Callable[[int, int], torch.Tensor]
    fan_in: int
    block: tuple[int, int] | None = None


def compute_alignment(
    z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor, w: torch.Tensor, fan_in: int
) -> Measured:
    """The three exponents of one site.

    Args:
        z0: inputs with the initial weights, (..., in): a plain tensor that is the same on every
            rank, or a DTensor, which is gathered.
        w0: initial weight, (out, in): a whole tensor, or a DTensor with the placement of ``w``.
        z: inputs with the current weights, (..., in), for the same tokens as ``z0``.
        w: current weight, (out, in).
        fan_in: n, the base of the exponent.

    Returns:
        (align_z0_dW, align_dZ_w0, align_dZ_dW). A term that is exactly zero (before the first
            update, or with a frozen input) has no exponent and is None. Tokens for which a term is
            zero are left out of its mean.

    Raises:
        ValueError: the shapes do not match; the inputs are integers (an embedding contracts
            nothing, so it has no alignment); ``fan_in`` is less than 2; or ``w0`` and ``w`` are
            sharded differently.
    """
    if not (z0.is_floating_point() and z.is_floating_point()):
        raise ValueError("an embedding look-up contracts nothing and has no alignment")
    if z0.shape != z.shape or w0.shape != w.shape:
        raise ValueError(
            f"z0 {tuple(z0.shape)} and z {tuple(z.shape)}, and w0 {tuple(w0.shape)} and "
            f"w {tuple(w.shape)}, must have equal shapes"
        )
    if w.ndim != 2 or z.shape[-1] != w.shape[1]:
        raise ValueError(f"z {tuple(z.shape)} does not fit a weight {tuple(w.shape)}")
    if fan_in < 2:
        raise ValueError(f"fan_in must be at least 2, got {fan_in}")
    if isinstance(w0, DTensor):
        if not isinstance(w, DTensor) or _placed(w0) != _placed(w):
            raise ValueError("w0 is a DTensor: w must be placed on the same mesh in the same way")
        initial = w0.to_local()
    else:
        initial = w0[region(w)]
    z0, z = whole(z0), whole(z)
    state = SiteState(
        z0.reshape(-1, z0.shape[-1]), z.reshape(-1, z.shape[-1]), w,
        lambda start, stop: initial[start:stop], fan_in,
    )  # fmt: skip
    return measure([state])[0]


def _placed(tensor: DTensor) -> tuple[object, ...]:
    return tensor.device_mesh, tensor.placements


@torch.no_grad()
def measure(sites: Sequence[SiteState]) -> list[Measured]:
    """The exponents of many sites. Under sharding, it takes one small collective per mesh axis.

    Each rank multiplies by its own rows, and ranks exchange sums of squares only. If columns are
    split as well (row-wise tensor parallelism), one more collective sums the products.
    """
    weights = [site.weight for site in sites]
    inputs = [_inputs(site) for site in sites]
    outputs, squares = [], []
    split: list[tuple[int, torch.Tensor]] = []
    for i, (site, x) in enumerate(zip(sites, inputs, strict=True)):
        products, square, output = _products(site, x)
        outputs.append(output)
        squares.append(square)
        if products is not None:
            split.append((i, products))
    if split:
        sum_partial_products([p for _, p in split], [weights[i] for i, _ in split])
        for i, products in split:
            outputs[i] = products.double().square().sum(-1)
    sum_over_shards(outputs, squares, weights)
    return [
        _exponents(x, output, square, site.fan_in)
        for site, x, output, square in zip(sites, inputs, outputs, squares, strict=True)
    ]


def _inputs(site: SiteState) -> torch.Tensor:
    """z0 and dZ, (2, tokens, in), in float32, or in float64 if z is."""
    dtype = torch.promote_types(site.z.dtype, torch.float32)
    z0 = site.z0.to(dtype)
    return torch.stack([z0, site.z.to(dtype) - z0])


def _products(
    site: SiteState, x: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor]:
    """Of this rank's rows and columns, three tensors:

    x M^T, (3, tokens, rows), if columns are split, else None; the sums of squares of dW and W0,
    (2,); and the sums of squares of x M^T over rows, (3, tokens).
    """
    weight = local(site.weight)
    row, columns = region(site.weight)
    x = x[..., columns]
    first, end = (0, weight.shape[0]) if site.block is None else _within(site.block, row)
    keep = splits_columns(site.weight)
    kept: list[torch.Tensor] = []
    squares = x.new_zeros(2, dtype=torch.float64)
    outputs = x.new_zeros((3, x.shape[1]), dtype=torch.float64)
    rows = max(1, _CHUNK // max(1, weight.shape[1]))
    for start in range(first, end, rows):
        stop = min(start + rows, end)
        w0 = site.w0(start, stop).to(x.dtype)
        dw = weight[start:stop].to(x.dtype) - w0
        y = torch.stack([x[0] @ dw.T, x[1] @ w0.T, x[1] @ dw.T])
        squares += torch.stack([_sum_of_squares(dw), _sum_of_squares(w0)])
        if keep:
            kept.append(y)
        else:
            outputs += y.double().square().sum(-1)
    products = torch.cat(kept, -1) if kept else x.new_zeros((3, x.shape[1], 0)) if keep else None
    return products, squares, outputs


def _within(block: tuple[int, int], rows: slice) -> tuple[int, int]:
    """The part of a block of rows that a rank with ``rows`` has, counted from its first row."""
    first, end = (min(max(row, rows.start), rows.stop) - rows.start for row in block)
    return first, end


def _sum_of_squares(m: torch.Tensor) -> torch.Tensor:
    # Row sums in the working precision, their sum in float64: no float64 copy of a weight.
    return m.square().sum(-1).double().sum()


def _exponents(
    x: torch.Tensor, outputs: torch.Tensor, squares: torch.Tensor, fan_in: int
) -> Measured:
    """The exponents from sums of squares; the counts in the three rms leave a factor of ``in``."""
    inputs = x.double().square().sum(-1)
    z0, dz = inputs[0], inputs[1]
    dw, w0 = squares[0], squares[1]
    terms = ((outputs[0], z0, dw), (outputs[1], dz, w0), (outputs[2], dz, dw))
    first, second, third = (_exponent(y, xx, m, x.shape[-1], fan_in) for y, xx, m in terms)
    return first, second, third


def _exponent(
    y: torch.Tensor, x: torch.Tensor, m: torch.Tensor, contracted: int, fan_in: int
) -> float | None:
    there = y != 0
    if not bool(there.any()):
        return None
    logs = 0.5 * (y[there].log() - x[there].log() - m.log())
    return (float(logs.mean()) + math.log(contracted)) / math.log(fan_in)


@torch.no_grad()
def bilinear_alignment(
    q0: torch.Tensor, k0: torch.Tensor, q: torch.Tensor, k: torch.Tensor, width: int
) -> Measured:
    """The exponents of q0 dK, dQ k0 and dQ dK for an operation without a weight.

    Args:
        q0: queries with the initial weights, (..., tokens, width).
        k0: keys with the initial weights, (..., keys, width), with the leading dimensions (batch,
            heads) of q0.
        q: queries with the current weights.
        k: keys with the current weights.
        width: n.

    Returns:
        As `compute_alignment`, with K as the matrix. The mean is also over the leading dimensions.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q0, k0, q, k = (t.to(dtype) for t in (q0, k0, q, k))
    dq, dk = q - q0, k - k0

    def exponent(x: torch.Tensor, m: torch.Tensor) -> float | None:
        y = (x @ m.transpose(-1, -2)).double().square().mean(-1)
        xx = x.double().square().mean(-1)
        mm = m.double().square().mean((-1, -2)).unsqueeze(-1).expand_as(xx)
        there = y != 0
        if not bool(there.any()):
            return None
        logs = 0.5 * (y[there].log() - xx[there].log() - mm[there].log())
        return float(logs.mean()) / math.log(width)

    return exponent(q0, dk), exponent(dq, k0), exponent(dq, dk)
