"""A rank of data-parallel training with `maxp`, with seeds and batches of its own."""

import hashlib
import json
import sys

import torch
import torch.distributed as dist
from plain_models import GPT, tokens
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maxp import Parametrization


def digest(model: nn.Module) -> str:
    values = [p.detach().numpy().tobytes() for p in model.parameters()]
    return hashlib.sha256(b"".join(values)).hexdigest()


def main() -> int:
    """Train for three steps; print what must be the same on all ranks, as JSON."""
    wrapped_first, seed = sys.argv[1] == "before", None if sys.argv[2] == "none" else 0
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    plain, base = GPT(32, 1), GPT(16, 1)
    model: nn.Module = DistributedDataParallel(plain) if wrapped_first else plain
    p = Parametrization(model, base=base, sample_input=tokens(), seed=seed, lr_prefactor=1e-2)
    if not wrapped_first:
        model = DistributedDataParallel(plain)
    start = digest(plain)
    optimizer = torch.optim.AdamW(p.param_groups)
    p.capture_initial()
    for step in range(3):
        x = tokens(10 * step + rank)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
        optimizer.step()
        p.step(x, optimizer)
    rows = {"start": start, "end": digest(plain), "c": p.c, "names": list(p.sites)}
    for turn in range(dist.get_world_size()):
        if rank == turn:
            print(json.dumps(rows), flush=True)
        dist.barrier()
    dist.destroy_process_group()
    return 0
