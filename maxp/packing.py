"""Recorded inputs as a state to save, and whether two batches are the same."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from maxp.capture import Inputs


def pack(inputs: Inputs) -> dict[str, Any]:
    """`Inputs` in which a tensor that several sites share is stored once."""
    tensors: list[torch.Tensor] = []
    index: dict[str, list[int]] = {}
    for name, group in inputs.items():
        index[name] = []
        for z in group:
            known = [i for i, tensor in enumerate(tensors) if tensor is z]
            index[name].append(known[0] if known else len(tensors))
            if not known:
                tensors.append(z)
    return {"tensors": tensors, "index": index}


def unpack(packed: Mapping[str, Any]) -> Inputs:
    return {
        name: tuple(packed["tensors"][i] for i in indices)
        for name, indices in packed["index"].items()
    }


def same(x: Any, probe: Any) -> bool:
    """Whether two nested structures contain equal tensors, in order."""
    mine, theirs = (
        [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        for value in (x, probe)
    )
    return len(mine) == len(theirs) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
        for a, b in zip(mine, theirs, strict=True)
    )
