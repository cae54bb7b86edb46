"""Products of bfloat16 matrices on x86 CPUs without AVX-512."""

from __future__ import annotations

import pytest
import torch
from models import FEATURES, MLP
from torch.optim import Muon

from maxp import MuonAdamW, Parametrization, avx2


@pytest.fixture
def slow_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avx2, "is_slow", lambda: True)


def matrix(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(shape[0])).bfloat16()


def test_products_are_the_exact_ones_rounded_once(slow_cpu: None) -> None:
    x, y, z = matrix(48, 64), matrix(64, 32), matrix(48, 32)
    exact = x.double() @ y.double()
    with avx2.fast_products():
        product, sum_ = x @ y, torch.addmm(z, x, y, beta=-4.0, alpha=2.0)
    assert product.dtype == sum_.dtype == torch.bfloat16
    # Sums in float32 round the other way where they are next to the middle of two bfloat16.
    assert (product != exact.bfloat16()).float().mean() < 0.005
    assert (sum_ != (2 * exact - 4 * z.double()).bfloat16()).float().mean() < 0.005


def test_other_types_are_multiplied_as_before(slow_cpu: None) -> None:
    x, y = torch.randn(8, 16), torch.randn(16, 8)
    with avx2.fast_products():
        assert torch.equal(x @ y, torch.mm(x, y))
        assert (x.double() @ y.double()).dtype == torch.float64


def test_other_cpus_multiply_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avx2, "is_slow", lambda: False)
    seen = []
    monkeypatch.setattr(avx2, "_is_bfloat16_on_cpu", seen.append)
    with avx2.fast_products():
        matrix(4, 4) @ matrix(4, 4)
    assert seen == []


def test_a_step_of_muon_is_that_of_torch_and_uses_them(
    slow_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def record(x: torch.Tensor) -> bool:
        asked.append(x)
        return x.dtype == torch.bfloat16

    monkeypatch.setattr(avx2, "_is_bfloat16_on_cpu", record)
    p = Parametrization(MLP(64), optimizer_type="muon", lr_prefactor=1e-2)
    p.model(torch.randn(3, FEATURES)).square().sum().backward()
    weight = p.weights["layers.0"]
    alone = torch.nn.Parameter(weight.detach().clone())
    assert weight.grad is not None
    alone.grad = weight.grad.clone()
    before = weight.detach().clone()
    MuonAdamW(p.param_groups, muon={"weight_decay": 0.0}).step()
    assert len(asked) > 0
    (lr,) = [g["lr"] for g in p.param_groups if g["name"] == "layers.0"]
    Muon([alone], lr=lr, weight_decay=0.0).step()
    update, torchs = weight.detach() - before, alone.detach() - before
    assert (update - torchs).norm() < 0.02 * torchs.norm()
