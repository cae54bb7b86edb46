"""A fused projection is measured as its parts, and the most cautious of them counts."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from plain_models import GPT, tokens
from real_models import gpt2, text
from test_alignment import by_definition
from torch import nn

from maxp import Parametrization, ParametrizedModule
from maxp.layout import row_blocks

PARTS = ("q", "k", "v")


class Unfused(nn.Module):
    """The projections q, k and v of a `plain_models.Block`, as three layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in PARTS)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)


def gpt(width: int, *, fused: bool) -> nn.Module:
    model = GPT(width).double()
    for block in model.blocks if not fused else ():
        block.qkv = Unfused(width).double()
    return model


@torch.no_grad()
def copied(model: nn.Module, other: nn.Module) -> None:
    """Give the unfused model the weights of the fused one."""
    state = model.state_dict()
    for key in [key for key in state if ".qkv." in key]:
        head, _, kind = key.partition(".qkv.")
        parts = zip(PARTS, state.pop(key).chunk(3), strict=True)
        state |= {f"{head}.qkv.{name}.{kind}": part for name, part in parts}
    other.load_state_dict(state)


def built(*, fused: bool, **settings: Any) -> tuple[nn.Module, Parametrization]:
    torch.manual_seed(0)
    model = gpt(32, fused=fused)
    given = {"lr_prefactor": 1e-2, "seed": 1, "sample_input": tokens(), "sample_size": 1000}
    return model, Parametrization(model, base=gpt(16, fused=fused), **given, **settings)


def trained(model: nn.Module, p: Parametrization, steps: int) -> list[float]:
    optimizer, losses = torch.optim.Adam(p.param_groups), []
    for step in range(steps):
        x = tokens(step)
        loss = F.cross_entropy(model(x).flatten(0, 1), x.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        p.step(x, optimizer)
        losses.append(float(loss))
    return losses


def test_fused_is_unfused_whose_parts_have_the_most_cautious_c() -> None:
    model, p = built(fused=True, warmup_steps=3)
    other, q = built(fused=False, warmup_steps=3)
    copied(model, other)
    p.capture_initial(), q.capture_initial()
    losses = trained(model, p, 4)
    assert trained(other, q, 4) == pytest.approx(losses, abs=1e-6)
    for i in range(2):
        parts = [q.measured[f"blocks.{i}.qkv.{name}"] for name in PARTS]
        largest = [max(term) for term in zip(*parts, strict=True)]
        assert p.measured[f"blocks.{i}.qkv"] == pytest.approx(largest, abs=1e-6)
        assert len({term[0] for term in parts}) == 3
    # The first block reads the embedding, whose changes one reader or three may pay for.
    most = max(q.c[f"blocks.1.qkv.{name}"] for name in PARTS)
    assert p.c["blocks.1.qkv"] == pytest.approx(most, abs=1e-6)
    held = {f"blocks.{i}.qkv": p.c[f"blocks.{i}.qkv"] for i in range(2)}
    others = {name: c for name, c in p.c.items() if name not in held}
    each = {f"{name}.{part}": c for name, c in held.items() for part in PARTS}
    model, p = built(fused=True, c_overrides=held | others)
    other, q = built(fused=False, c_overrides=each | others)
    copied(model, other)
    p.capture_initial(), q.capture_initial()
    losses = trained(model, p, 4)
    assert trained(other, q, 4) == pytest.approx(losses, abs=1e-6)


@pytest.mark.parametrize(
    ("fused", "sizes"), [({"wide": 2}, [16, 16]), ({"wide": [8, 24]}, [8, 24])]
)
def test_blocks_can_be_given(fused: Any, sizes: list[int]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("wide", ParametrizedModule(nn.Linear(16, 32, bias=False), 16))
    model.double()
    p, x = Parametrization(model, seed=0, fused=fused), torch.randn(9, 16).double()
    w0 = p.weights["wide"].detach().clone()
    p.capture_initial(x)
    with torch.no_grad():
        for i, rows in enumerate(p.weights["wide"].split(sizes)):
            rows += (0.1 + i) * torch.randn(rows.shape[0], 1).double() * x[i]
    w = p.weights["wide"].detach()
    blocks = zip(w0.split(sizes), w.split(sizes), strict=True)
    first = max(by_definition(x, a, x, b, 16)[0] for a, b in blocks)
    assert p.measure(x)["wide"][0] == pytest.approx(first, abs=1e-9)
    assert first != pytest.approx(by_definition(x, w0, x, w, 16)[0], abs=1e-3)


def test_a_transposed_projection_is_split_by_its_outputs() -> None:
    torch.manual_seed(0)
    model = gpt2(64).double()
    p, x = Parametrization(model, base=gpt2(32), seed=0, sample_size=1000), text()
    twin = copy.deepcopy(model)
    p.capture_initial()
    with torch.no_grad():
        for weight in p.weights.values():
            weight += 0.02 * torch.randn_like(weight)
    inputs = []
    for each in (twin, model):
        each.transformer.h[1].attn.c_attn.register_forward_pre_hook(
            lambda _, args: inputs.append(args[0].detach().flatten(0, 1))
        )
        each.eval()(**x)
    columns = [m.transformer.h[1].attn.c_attn.weight.detach().T.chunk(3) for m in (twin, model)]
    model.transformer.h[1].attn.c_attn._forward_pre_hooks.clear()
    parts = [by_definition(inputs[0], a, inputs[1], b, 64) for a, b in zip(*columns, strict=True)]
    largest = [max(term) for term in zip(*parts, strict=True)]
    assert p.measure(x)["transformer.h.1.attn.c_attn"] == pytest.approx(largest, abs=1e-9)


@pytest.mark.parametrize("parts", [5, [8, 8], [0, 32], 0, []])
def test_blocks_that_are_not_all_rows_are_refused_by_name(parts: Any) -> None:
    with pytest.raises(ValueError, match="fused: a has 32 rows"):
        row_blocks("a", 32, parts)


def test_a_name_that_matches_no_site_is_refused() -> None:
    with pytest.raises(ValueError, match="fused for kv matches no site"):
        Parametrization(gpt(32, fused=True), base=gpt(16, fused=True), fused={"kv": 2})
