"""Measuring over shards: four processes give what one gives, however the weights are placed."""

import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_alignment import IN, random_site
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from maxp import ParametrizedModule, compute_alignment
from maxp.alignment import SiteState, measure
from maxp.measurement import Measurement
from maxp.shards import region
from maxp.w0 import InitialWeights
from scripts.torture.ranks import run_ranks

PLACEMENTS: list[list[Any]] = [
    [Shard(0), Replicate()],
    [Replicate(), Shard(0)],
    [Replicate(), Shard(1)],
    [Shard(0), Shard(1)],
    [Shard(1), Shard(0)],
    [Shard(0), Shard(0)],
    [Shard(1), Shard(1)],
    [Replicate(), Replicate()],
]


def main() -> None:
    """One of four processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    {"compare": _compare, "capture": _capture}[sys.argv[1]]()
    dist.destroy_process_group()


def _compare() -> None:
    two, one = init_device_mesh("cpu", (2, 2)), init_device_mesh("cpu", (4,))
    states, expected = [], []

    def add(out: int, mesh: Any, placements: list[Any]) -> None:
        z0, w0, z, w = random_site(out)
        w0, w = w0[:out], w[:out]
        sharded, initial = (distribute_tensor(t, mesh, placements) for t in (w, w0))
        mine = initial.to_local()
        states.append(SiteState(z0, z, sharded, lambda start, stop: mine[start:stop], IN))
        expected.append(compute_alignment(z0, w0, z, w, IN))
        block = (out // 3, out - 1)
        states.append(states[-1]._replace(block=block))
        expected.append(compute_alignment(z0, w0[slice(*block)], z, w[slice(*block)], IN))
        for first in (w0, initial):
            assert compute_alignment(z0, first, z, sharded, IN) == pytest.approx(expected[-2])

    for out in (24, 11, 5):  # 11 rows do not divide among four ranks; of 5 the last has none
        for placements in PLACEMENTS:
            add(out, two, placements)
        add(out, one, [Shard(0)])
    z0, w0, z, w = random_site(0)
    states.append(SiteState(z0, z, w, lambda start, stop: w0[start:stop], IN))
    expected.append(compute_alignment(z0, w0, z, w, IN))
    # All in one call: two meshes and a plain weight.
    for exponents, value in zip(measure(states), expected, strict=True):
        assert exponents == pytest.approx(value, abs=1e-12)


@pytest.mark.slow
def test_shards_give_what_whole_weights_give() -> None:
    done = run_ranks("test_shards", "compare", processes=4)
    assert done.returncode == 0, done.stderr[-3000:]


def _capture() -> None:
    mesh = init_device_mesh("cpu", (2, 2))
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(6, 9, generator=generator), torch.randn(3, 5, 9, generator=generator)
    for placements in PLACEMENTS:
        sharded = distribute_tensor(weight, mesh, placements)
        # What FSDP and a framework's own tensor parallelism make of it: a plain, local product.
        local = nn.Linear(sharded.to_local().shape[1], 6, bias=False)
        local.forward = torch.clone  # type: ignore[method-assign]
        site = ParametrizedModule(local, 9)
        for given in (x[..., region(sharded)[1]], x):
            measurement = Measurement(
                site,
                {"site": site},
                {"site": sharded},
                initial_weights=lambda: InitialWeights({}, {}, {}, resample=False),
                forward=site,
                sample_size=15,
                from_training=False,
            )
            measurement.capture(given)
            assert measurement.z0 is not None
            assert torch.equal(measurement.z0["site"][0], x.reshape(15, 9))


@pytest.mark.slow
def test_an_input_that_is_a_ranks_columns_is_gathered() -> None:
    done = run_ranks("test_shards", "capture", processes=4)
    assert done.returncode == 0, done.stderr[-3000:]
