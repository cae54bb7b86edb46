"""Shards of weights, for measuring and for drawing weights. Plain tensors count as whole.

Placements are those of `torch.distributed.tensor`. FSDP2 and column-wise tensor parallelism split
rows (dim 0), and row-wise tensor parallelism splits columns (dim 1).
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a weight, (rows, ...); a plain tensor is returned as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a DTensor on every rank (a collective); a plain tensor is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rms(weight: torch.Tensor) -> float:
    """Root mean square of all entries of a weight, in float64; a collective for a DTensor."""
    return float(whole(weight.detach()).double().square().mean().sqrt())


def region(weight: torch.Tensor) -> tuple[slice, slice]:
    """The rows and columns of the weight, seen as (dim 0, others), that `local` returns."""
    rows, columns = weight.shape[0], weight.shape[1:].numel()
    if not isinstance(weight, DTensor):
        return slice(0, rows), slice(0, columns)
    shape, offset = compute_local_shape_and_global_offset(
        weight.shape, weight.device_mesh, weight.placements
    )
    row = slice(offset[0], offset[0] + shape[0])
    if weight.ndim != 2:  # only dim 0 of such a weight is ever split
        return row, slice(0, columns)
    return row, slice(offset[1], offset[1] + shape[1])


def _split_dim(weight: torch.Tensor, axis: int) -> int | None:
    """The tensor dimension that mesh axis ``axis`` splits; None if it splits none."""
    assert isinstance(weight, DTensor)
    return getattr(weight.placements[axis], "dim", None)


def splits_columns(weight: torch.Tensor) -> bool:
    """Whether any mesh axis splits the contracted dimension."""
    return isinstance(weight, DTensor) and any(
        _split_dim(weight, axis) == 1 for axis in range(weight.device_mesh.ndim)
    )


def whole_columns(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """All columns of a plain input, (tokens, in), on every rank.

    Under row-wise tensor parallelism a framework may pass a layer only the columns that the rank's
    part of the weight contracts, as a plain tensor; they are gathered (a collective).
    """
    if x.shape[1] == weight.shape[1] or not splits_columns(weight):
        return x
    assert isinstance(weight, DTensor)
    placements = [
        Shard(1) if _split_dim(weight, axis) == 1 else Replicate()
        for axis in range(weight.device_mesh.ndim)
    ]
    shape = torch.Size((x.shape[0], weight.shape[1]))
    part = DTensor.from_local(
        x, weight.device_mesh, placements, run_check=False, shape=shape, stride=(shape[1], 1)
    )
    return part.full_tensor()


def _axes(weights: list[torch.Tensor]) -> list[tuple[Any, int]]:
    """(mesh, axis) of every mesh axis that splits any of the weights, without duplicates."""
    axes: list[tuple[Any, int]] = []
    for weight in weights:
        if isinstance(weight, DTensor):
            for axis in range(weight.device_mesh.ndim):
                key = (weight.device_mesh, axis)
                if _split_dim(weight, axis) is not None and key not in axes:
                    axes.append(key)
    return axes


def sum_partial_products(products: list[torch.Tensor], weights: list[torch.Tensor]) -> None:
    """Sum products over columns that ranks split, in place: one collective per mesh axis.

    Args:
        products: x M^T over this rank's columns, one per weight, of one dtype and device.
        weights: the weights in the same order.
    """
    for mesh, axis in _axes(weights):
        mine = [
            product
            for product, weight in zip(products, weights, strict=True)
            if isinstance(weight, DTensor)
            and weight.device_mesh == mesh
            and _split_dim(weight, axis) == 1
        ]
        if mine:
            _all_reduce(mine, mesh.get_group(axis))


def sum_over_shards(
    outputs: list[torch.Tensor], squares: list[torch.Tensor], weights: list[torch.Tensor]
) -> None:
    """Sum over shards, in place: one collective per mesh axis.

    Args:
        outputs: per weight, sums over the rows of a rank. Ranks with the same rows have the same
            sums, whatever their columns.
        squares: per weight, sums over all entries of a rank.
        weights: the weights, in the same order.
    """
    for mesh, axis in _axes(weights):
        first = mesh.get_local_rank(axis) == 0
        mine: list[torch.Tensor] = []
        for output, square, weight in zip(outputs, squares, weights, strict=True):
            # A weight on another mesh has nothing to sum along this one.
            if not isinstance(weight, DTensor) or weight.device_mesh != mesh:
                continue
            split = _split_dim(weight, axis)
            # Only the first of several ranks with the same part counts.
            if split != 0 and not first:
                output.zero_()
            if split is None and not first:
                square.zero_()
            mine += [output, square]
        _all_reduce(mine, mesh.get_group(axis))


def _all_reduce(tensors: list[torch.Tensor], group: Any) -> None:
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat, group=group)
    sizes = [tensor.numel() for tensor in tensors]
    for tensor, part in zip(tensors, flat.split(sizes), strict=True):
        tensor.copy_(part.view_as(tensor))


def on_all_ranks(holds: bool, weight: torch.Tensor) -> bool:
    """Whether a condition holds on every rank of the weight's mesh; a collective per mesh axis."""
    if not isinstance(weight, DTensor):
        return holds
    answer = torch.tensor(holds, dtype=torch.int32, device=weight.to_local().device)
    for axis in range(weight.device_mesh.ndim):
        group = weight.device_mesh.get_group(axis)
        dist.all_reduce(answer, op=dist.ReduceOp.MIN, group=group)
    return bool(answer)


def _has_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def agreed(value: Any) -> Any:
    """The first rank's ``value``, without tensors, on every rank of the process group."""
    if not _has_ranks():
        return value
    sent = [value]
    dist.broadcast_object_list(sent, src=0)
    return sent[0]


def of_first_rank(value: Any, weights: Iterable[torch.Tensor]) -> Any:
    """The first rank's ``value`` on every rank of the weights' meshes; one broadcast per mesh axis.

    Plain weights in a process group are taken for replicas, as under DistributedDataParallel: then
    it is one broadcast to all ranks. Returned as it is if a tensor in it is a DTensor: that one is
    the same on every rank by itself.
    """
    weights = list(weights)
    axes = {
        (weight.device_mesh, axis): None
        for weight in weights
        if isinstance(weight, DTensor)
        for axis in range(weight.device_mesh.ndim)
        if weight.device_mesh.size(axis) > 1
    }
    mine, _ = tree_flatten(value)
    replicas = _has_ranks() and not any(isinstance(weight, DTensor) for weight in weights)
    if not (axes or replicas) or any(isinstance(leaf, DTensor) for leaf in mine):
        return value
    sent = [tree_map_only(torch.Tensor, torch.Tensor.cpu, value)]
    for mesh, axis in axes:
        dist.broadcast_object_list(sent, group=mesh.get_group(axis), group_src=0)
    if replicas:
        dist.broadcast_object_list(sent, src=0)
    leaves, structure = tree_flatten(sent[0])
    return tree_unflatten(
        [
            leaf.to(own.device) if isinstance(leaf, torch.Tensor) else leaf
            for leaf, own in zip(leaves, mine, strict=True)
        ],
        structure,
    )


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 has gathered, so that the next forward pass reads the shards again."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def reset_after_error(model: nn.Module) -> None:
    """Reshard, and end the forward pass that FSDP2 believes to be under way after an exception."""
    if isinstance(model, FSDPModule):
        model.reset_iter_state()
    else:
        for child in model.children():
            reset_after_error(child)
