"""Alignment against its definition, token by token in float64, and against closed forms."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from maxp import alignment, compute_alignment
from maxp.alignment import Measured, bilinear_alignment

TOKENS, IN, OUT = 10, 16, 24


def rms(values: torch.Tensor) -> float:
    return math.sqrt(sum(float(v) ** 2 for v in values.flatten()) / values.numel())


def align(x: torch.Tensor, m: torch.Tensor, n: int) -> float | None:
    """The definition: x (tokens, in), m (out, in); a token without a product is left out."""
    exponents = []
    for token in x.double():
        product = m.double() @ token
        if rms(product):
            ratio = math.log(rms(product)) - math.log(rms(token)) - math.log(rms(m.double()))
            exponents.append(ratio / math.log(n))
    return sum(exponents) / len(exponents) if exponents else None


def by_definition(
    z0: torch.Tensor, w0: torch.Tensor, z: torch.Tensor, w: torch.Tensor, n: int
) -> Measured:
    dz, dw = z.double() - z0.double(), w.double() - w0.double()
    return align(z0, dw, n), align(dz, w0, n), align(dz, dw, n)


def random_site(
    seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(z0, w0, z, w), with a dW that is partly coherent with the tokens."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    z0, w0 = draw(TOKENS, IN), draw(OUT, IN)
    dw = 0.1 * draw(OUT, TOKENS) @ z0 + 0.2 * draw(OUT, IN)
    z, w = z0 + 0.3 * z0.roll(1, 0) + 0.1 * draw(TOKENS, IN), w0 + dw
    return z0.to(dtype), w0.to(dtype), z.to(dtype), w.to(dtype)


# Closed forms


def test_rank_one_products_add_up_coherently() -> None:
    u, v = torch.rand(OUT, dtype=torch.float64), torch.randn(IN, dtype=torch.float64)
    z0 = torch.linspace(1, 2, 5, dtype=torch.float64)[:, None] * v
    w0 = torch.outer(u, v)
    exponents = compute_alignment(z0, w0, 3 * z0, w0 + torch.outer(u.flip(0), v), IN)
    assert exponents == pytest.approx((1, 1, 1), abs=1e-12)


def test_independent_random_matrices_give_one_half_within_their_standard_error() -> None:
    n, tokens = 256, 128
    g = torch.Generator().manual_seed(1)
    z0, dz = (torch.randn(tokens, n, generator=g, dtype=torch.float64) for _ in range(2))
    w0, dw = (torch.randn(2 * n, n, generator=g, dtype=torch.float64) for _ in range(2))
    each = torch.tensor(
        [compute_alignment(z0[[t]], w0, (z0 + dz)[[t]], w0 + dw, n) for t in range(tokens)],
        dtype=torch.float64,
    )
    error = each.std(0) / math.sqrt(tokens)
    assert float(error.max()) < 1e-3
    assert ((each.mean(0) - 0.5).abs() < 3 * error).all(), (each.mean(0), error)


def test_a_permutation_matrix_gives_one_half_exactly() -> None:
    # It keeps the norm: rms(xM) = rms(x), and rms(M) = n^-1/2.
    w0 = torch.eye(IN, dtype=torch.float64)
    z0 = torch.randn(4, IN, dtype=torch.float64)
    exponents = compute_alignment(z0, w0, 2 * z0, w0 + w0.roll(1, 0), IN)
    assert exponents == pytest.approx((0.5, 0.5, 0.5), abs=1e-12)


def test_one_is_the_largest_value_there_is() -> None:
    for seed in range(20):
        exponents = compute_alignment(*random_site(seed), IN)
        assert all(value is not None and value <= 1 + 1e-12 for value in exponents)


# The definition


@pytest.mark.parametrize("fan_in", [IN, 5], ids=["n = in", "n other than in"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-5)]
)
def test_it_is_the_definition(dtype: torch.dtype, tolerance: float, fan_in: int) -> None:
    site = random_site(2, dtype)
    assert compute_alignment(*site, fan_in) == pytest.approx(
        by_definition(*site, fan_in), abs=tolerance
    )


def test_the_three_terms_are_told_apart() -> None:
    first, second, third = by_definition(*random_site(2), IN)
    assert first is not None
    assert second is not None
    assert third is not None
    assert min(abs(first - second), abs(second - third), abs(first - third)) > 0.01


def test_leading_dimensions_are_all_tokens() -> None:
    z0, w0, z, w = random_site(3)
    folded = compute_alignment(z0.view(2, 5, IN), w0, z.view(2, 5, IN), w, IN)
    assert folded == compute_alignment(z0, w0, z, w, IN)


def test_sizes_do_not_matter_only_directions() -> None:
    z0, w0, z, w = random_site(4)
    grown = compute_alignment(1e3 * z0, 1e-4 * w0, 1e3 * z, 1e-4 * w, IN)
    assert grown == pytest.approx(compute_alignment(z0, w0, z, w, IN), abs=1e-10)


@pytest.mark.parametrize("entries", [1, IN + 1, 5 * IN, 23 * IN])
def test_how_a_weight_is_read_in_chunks_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, entries: int
) -> None:
    site = random_site(5)
    whole = compute_alignment(*site, IN)
    monkeypatch.setattr(alignment, "_CHUNK", entries)
    assert compute_alignment(*site, IN) == pytest.approx(whole, abs=1e-12)


# What has no exponent


def test_without_an_update_only_the_changed_input_has_one() -> None:
    z0, w0, z, _ = random_site(6)
    first, second, third = compute_alignment(z0, w0, z, w0, IN)
    assert (first, third) == (None, None)
    assert second == pytest.approx(align(z - z0, w0, IN), abs=1e-12)


def test_with_a_frozen_input_only_the_update_has_one() -> None:
    z0, w0, _, w = random_site(6)
    first, second, third = compute_alignment(z0, w0, z0, w, IN)
    assert (second, third) == (None, None)
    assert first == pytest.approx(align(z0, w - w0, IN), abs=1e-12)


def test_a_token_without_a_term_is_left_out_of_that_term_alone() -> None:
    z0, w0, z, w = random_site(7)
    z[2] = z0[2]  # this token's input did not change
    others = [i for i in range(TOKENS) if i != 2]
    exponents = compute_alignment(z0, w0, z, w, IN)
    assert exponents[0] == pytest.approx(align(z0, w - w0, IN), abs=1e-12)
    assert exponents[1] == pytest.approx(align((z - z0)[others], w0, IN), abs=1e-12)
    assert exponents[2] == pytest.approx(align((z - z0)[others], w - w0, IN), abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_weight_gives_no_finite_number(bad: float) -> None:
    z0, w0, z, w = random_site(8)
    w[3, 4] = bad
    first, second, third = compute_alignment(z0, w0, z, w, IN)
    assert first is not None
    assert not math.isfinite(first)
    assert third is not None
    assert not math.isfinite(third)
    assert second == pytest.approx(align(z - z0, w0, IN), abs=1e-12)


def test_an_embeddings_look_up_is_refused() -> None:
    tokens, table = torch.tensor([0, 3, 1]), torch.randn(5, 4)
    with pytest.raises(ValueError, match="embedding"):
        compute_alignment(tokens, table, tokens, table + 1, 4)


def test_shapes_that_do_not_fit_are_refused() -> None:
    z0, w0, z, w = random_site()
    with pytest.raises(ValueError, match="equal shapes"):
        compute_alignment(z0[1:], w0, z, w, IN)
    with pytest.raises(ValueError, match="equal shapes"):
        compute_alignment(z0, w0[1:], z, w, IN)
    with pytest.raises(ValueError, match="does not fit"):
        compute_alignment(z0[:, 1:], w0, z[:, 1:], w, IN)
    with pytest.raises(ValueError, match="at least 2"):
        compute_alignment(z0, w0, z, w, 1)


# DTensors, on one process


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeviceMesh]:
    store: Path = tmp_path_factory.mktemp("gloo") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1, 1))
    dist.destroy_process_group()


PLACEMENTS: dict[str, list[Any]] = {
    "rows": [Shard(0), Replicate()],
    "columns": [Replicate(), Shard(1)],
    "both": [Shard(0), Shard(1)],
    "replicated": [Replicate(), Replicate()],
}


@pytest.mark.parametrize("placements", PLACEMENTS.values(), ids=PLACEMENTS.keys())
@pytest.mark.parametrize("whole_w0", [True, False])
def test_dtensors_give_what_plain_tensors_give(
    mesh: DeviceMesh, placements: list[Any], whole_w0: bool
) -> None:
    z0, w0, z, w = random_site(9)
    plain = compute_alignment(z0, w0, z, w, IN)
    sharded_w0 = w0 if whole_w0 else distribute_tensor(w0, mesh, placements)
    exponents = compute_alignment(z0, sharded_w0, z, distribute_tensor(w, mesh, placements), IN)
    assert exponents == pytest.approx(plain, abs=1e-12)


def test_inputs_may_be_dtensors(mesh: DeviceMesh) -> None:
    z0, w0, z, w = random_site(9)
    split = [Replicate(), Shard(1)]
    exponents = compute_alignment(
        distribute_tensor(z0, mesh, split), w0, distribute_tensor(z, mesh, split), w, IN
    )
    assert exponents == pytest.approx(compute_alignment(z0, w0, z, w, IN), abs=1e-12)


def test_weights_that_are_placed_in_two_ways_are_refused(mesh: DeviceMesh) -> None:
    z0, w0, z, w = random_site(9)
    rows, columns = (distribute_tensor(w0, mesh, PLACEMENTS[p]) for p in ("rows", "columns"))
    for present in (w, columns):
        with pytest.raises(ValueError, match="placed"):
            compute_alignment(z0, rows, z, present, IN)


# Operations without a weight


def random_pair(
    seed: int, *leading: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(q0, k0, q, k) of five queries and seven keys."""
    g = torch.Generator().manual_seed(seed)
    q0, dq = (torch.randn(*leading, 5, IN, generator=g, dtype=torch.float64) for _ in range(2))
    k0, dk = (torch.randn(*leading, 7, IN, generator=g, dtype=torch.float64) for _ in range(2))
    return q0, k0, q0 + 0.1 * dq, k0 + 0.2 * dk + 0.1 * k0


def bilinear_by_definition(
    q0: torch.Tensor, k0: torch.Tensor, q: torch.Tensor, k: torch.Tensor
) -> Measured:
    return align(q0, k - k0, IN), align(q - q0, k0, IN), align(q - q0, k - k0, IN)


def test_keys_are_the_matrix_of_an_operation_without_a_weight() -> None:
    pair = random_pair(1)
    expected = bilinear_by_definition(*pair)
    assert bilinear_alignment(*pair, IN) == pytest.approx(expected, abs=1e-12)


def test_each_head_has_its_own_keys_and_all_are_averaged() -> None:
    pair = random_pair(2, 2, 3)
    pair[2][1] *= 10  # so that heads differ
    q0, k0, q, k = pair
    heads = [
        bilinear_by_definition(q0[b, h], k0[b, h], q[b, h], k[b, h])
        for b in range(2)
        for h in range(3)
    ]
    expected = tuple(sum(column) / len(heads) for column in zip(*heads, strict=True))
    assert bilinear_alignment(*pair, IN) == pytest.approx(expected, abs=1e-12)


def test_keys_that_did_not_change_leave_the_terms_of_the_queries() -> None:
    q0, k0, q, _ = random_pair(3)
    first, second, third = bilinear_alignment(q0, k0, q, k0, IN)
    assert (first, third) == (None, None)
    assert second == pytest.approx(align(q - q0, k0, IN), abs=1e-12)
