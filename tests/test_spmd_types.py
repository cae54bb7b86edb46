"""torchtitan's spmd_types backend, where ranks pass their parts of activations as plain tensors."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torchtitan.models.common.attention import ScaledDotProductAttention

from train.model import sites

BATCH, TOKENS, HEAD_DIM = 2, 5, 8


@pytest.fixture
def mesh(monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceMesh]:
    """The mesh of four ranks, in pairs that share their heads; nothing is sent."""
    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=4)
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    monkeypatch.setattr(sites, "current_spmd_mesh", lambda: mesh)
    monkeypatch.setattr(sites, "spmd_mesh_size", lambda axis: mesh[axis].size())
    yield mesh
    dist.destroy_process_group()


def test_a_ranks_heads_of_an_attention_are_a_part_of_all_heads(mesh: DeviceMesh) -> None:
    config = ScaledDotProductAttention.Config()
    site = sites.attention_site_config(config, HEAD_DIM).build()
    q, k = torch.randn(BATCH, TOKENS, 6, HEAD_DIM), torch.randn(BATCH, TOKENS, 2, HEAD_DIM)
    grouped = torch.stack([k[:, :, 0]] * 3 + [k[:, :, 1]] * 3, dim=2)
    for part, local in zip(site.site_layout((q, k)), (q, grouped), strict=True):
        assert isinstance(part, DTensor)
        assert part.device_mesh == mesh["tp"]
        assert part.shape == (BATCH, 12, TOKENS, HEAD_DIM)
        assert torch.equal(part.to_local(), local.transpose(1, 2))
