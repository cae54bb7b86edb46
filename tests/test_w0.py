"""Initial weights: their distribution, their seeds, and who holds which part."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, zeros
from torch.testing._internal.distributed.fake_pg import FakeStore

from maxp import w0
from maxp.w0 import InitialWeights, draw_like, draw_rows, site_seed

CPU = torch.device("cpu")


def test_entries_have_the_standard_deviation_asked_for_within_its_error() -> None:
    std, rows, columns = 0.37, 700, 1024  # several blocks
    drawn = draw_rows(columns, 0, rows, 3, std, CPU).double()
    count = rows * columns
    assert abs(float(drawn.std()) - std) < 4 * std / math.sqrt(2 * count)
    assert abs(float(drawn.mean())) < 4 * std / math.sqrt(count)
    # A normal's fourth moment is 3 std^4, with a standard error of sqrt(96 / count).
    assert abs(float((drawn / std).pow(4).mean()) - 3) < 4 * math.sqrt(96 / count)


def test_a_seed_gives_one_weight_and_another_seed_another() -> None:
    first = draw_rows(8, 0, 4, 5, 1.0, CPU)
    assert torch.equal(first, draw_rows(8, 0, 4, 5, 1.0, CPU))
    assert not torch.equal(first, draw_rows(8, 0, 4, 6, 1.0, CPU))


def test_drawing_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    draw_rows(8, 0, 4, 5, 1.0, CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("block", [1 << 18, 64, 10, 1])
@pytest.mark.parametrize("cuts", [(0, 37), (0, 1, 2, 37), (0, 8, 16, 37), (0, 5, 29, 30, 37)])
def test_pieces_of_rows_are_the_rows_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, block: int, cuts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(w0, "_BLOCK", block)
    whole = draw_rows(7, 0, 37, 11, 0.5, CPU)
    pieces = [draw_rows(7, a, b, 11, 0.5, CPU) for a, b in pairwise(cuts)]
    assert torch.equal(torch.cat(pieces), whole)


def test_a_piece_in_the_middle_of_a_large_weight_is_that_of_the_whole() -> None:
    whole = draw_rows(1024, 0, 600, 2, 1.0, CPU)  # blocks of 256 rows
    assert torch.equal(draw_rows(1024, 250, 520, 2, 1.0, CPU), whole[250:520])


def test_blocks_do_not_repeat_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(w0, "_BLOCK", 16)
    rows = draw_rows(16, 0, 200, 2, 1.0, CPU)
    assert len(torch.unique(rows, dim=0)) == 200


def test_no_rows_are_no_rows() -> None:
    assert draw_rows(8, 3, 3, 0, 1.0, CPU).shape == (0, 8)


def test_sites_have_seeds_of_their_own_in_each_run() -> None:
    seeds = {site_seed(run, name) for run in range(50) for name in ("a", "b", "a.b", "")}
    assert len(seeds) == 200
    assert site_seed(7, "a") == site_seed(7, "a")


def test_a_weight_is_drawn_in_its_own_dtype_and_shape() -> None:
    reference = draw_rows(12, 0, 5, 9, 0.1, CPU)
    flat = draw_like(torch.empty(5, 12, dtype=torch.bfloat16), 9, 0.1)
    assert torch.equal(flat, reference.bfloat16())
    patch = draw_like(torch.empty(5, 3, 2, 2), 9, 0.1, 1, 4)
    assert torch.equal(patch, reference[1:4].view(3, 3, 2, 2))


def initial(weight: torch.Tensor, *, resample: bool, std: float = 0.1) -> InitialWeights:
    return InitialWeights({"a": weight}, {"a": 4}, {"a": std}, resample=resample)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_drawing_again_gives_the_stored_copy_to_the_bit(dtype: torch.dtype) -> None:
    weight = draw_like(torch.empty(9, 6, dtype=dtype), 4, 0.1)
    kept, again = (initial(weight, resample=resample).rows("a") for resample in (False, True))
    before = weight.clone()
    weight.add_(1.0)  # training
    for start, stop in ((0, 9), (2, 7)):
        assert torch.equal(kept(start, stop), before[start:stop])
        assert torch.equal(again(start, stop), before[start:stop])


def test_drawing_again_holds_no_copy() -> None:
    weight = torch.zeros(3, 2)
    assert initial(weight, resample=True).kept() is None
    kept: Any = initial(weight, resample=False).kept()
    assert list(kept) == ["a"]


@pytest.mark.parametrize("resample", [False, True])
@pytest.mark.parametrize("resampled_before", [False, True])
def test_a_resumed_run_has_the_first_runs_initial_weight(
    resample: bool, resampled_before: bool
) -> None:
    weight = draw_like(torch.empty(9, 6), 4, 0.1)
    before = weight.clone()
    saved = initial(weight, resample=resampled_before).kept()
    resumed = initial(weight.add(1.0), resample=resample)  # its weight is already a trained one
    resumed.restore(saved)
    assert torch.equal(resumed.rows("a")(1, 5), before[1:5])


def test_an_initial_weight_that_was_not_drawn_cannot_be_drawn_again() -> None:
    saved = initial(torch.ones(9, 6), resample=False).kept()
    with pytest.raises(ValueError, match="a: resample_w0 cannot draw"):
        initial(torch.ones(9, 6), resample=True).restore(saved)


# Ranks that share a weight


@contextmanager
def as_rank(rank: int, ranks: int) -> Iterator[None]:
    """This process as one of several; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("shape", "placements"),
    [
        ((4,), [Shard(0)]),
        ((2,), [Shard(1)]),
        ((2, 2), [Shard(0), Shard(1)]),
        ((2, 2), [Replicate(), Shard(0)]),
        ((2, 2), [Shard(0), Shard(0)]),
    ],
    ids=["rows", "columns", "rows and columns", "replicated rows", "rows twice"],
)
def test_what_ranks_draw_is_their_part_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], placements: list[Any]
) -> None:
    monkeypatch.setattr(w0, "_BLOCK", 12)  # two rows of six
    whole = draw_rows(6, 0, 11, 3, 1.0, CPU)  # eleven rows do not divide among the ranks
    ranks = math.prod(shape)
    for rank in range(ranks):
        with as_rank(rank, ranks):
            mesh = init_device_mesh("cpu", shape)
            weight = zeros(11, 6, device_mesh=mesh, placements=placements)
            expected = whole
            for axis, placement in enumerate(placements):
                if isinstance(placement, Shard):
                    parts = expected.chunk(shape[axis], placement.dim)
                    mine = mesh.get_local_rank(axis)
                    empty = expected.narrow(placement.dim, 0, 0)
                    expected = parts[mine] if mine < len(parts) else empty
            assert torch.equal(draw_like(weight, 3, 1.0), expected)


def test_the_kept_part_of_a_sharded_weight_is_placed_as_the_weight() -> None:
    # In a checkpoint a plain tensor would pass for a whole one, the same on every rank.
    with as_rank(1, 2):
        weight = zeros(10, 6, device_mesh=init_device_mesh("cpu", (2,)), placements=[Shard(0)])
        weight.to_local().copy_(draw_like(weight, 4, 0.1))
        saved = initial(weight, resample=False).kept()
        assert saved is not None
        kept = saved["a"]
        assert isinstance(kept, DTensor)
        assert kept.placements == weight.placements
        assert torch.equal(kept.to_local(), draw_rows(6, 5, 10, 4, 0.1, CPU))
        initial(weight, resample=True).restore(saved)
