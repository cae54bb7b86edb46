"""Depth: residual branches are scaled down, and lr, decay and eps inside blocks follow."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, FEATURES, Llama, batch, linear
from torch import nn

from maxp import Depth, Parametrization, ParametrizedModule

WIDTH, BASE_DEPTH = 64, 2
BASE = dict.fromkeys(("embedding", "hidden", "readout"), WIDTH)
DEPTHS = (2, 4, 8, 16, 32)


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1, self.fc2 = linear(width, width, bias=True), linear(width, width, bias=True)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.fc2(F.relu(self.fc1(self.norm(h))))


class Residual(nn.Module):
    """A residual MLP with a norm before each block and one before the readout."""

    def __init__(self, depth: int, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Linear(FEATURES, width), width, "embedding")
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.readout = ParametrizedModule(nn.Linear(width, CLASSES), width, "readout")

    def stream(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream after the last block."""
        h = self.embed(x)
        for block in self.blocks:
            h = block(h)
        return h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.norm(self.stream(x)))


def deep(
    depth: int, exponent: float | None, *, width: int = WIDTH, **arguments: Any
) -> Parametrization:
    scaled = None
    if exponent is not None:
        scaled = Depth(depth / BASE_DEPTH, exponent, branches=["fc2"])
    return Parametrization(Residual(depth, width), base=BASE, depth=scaled, **arguments)


# Factors


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_branches_are_scaled_down_at_their_last_site(exponent: float) -> None:
    p = deep(8, exponent)
    for name, site in p.sites.items():
        assert site.scale == (4**-exponent if name.endswith("fc2") else 1.0)
    assert deep(8, exponent, width=128).sites["readout"].scale == 2**-0.5


def test_completep_keeps_lr_and_decay_and_divides_eps_by_the_depth() -> None:
    p = deep(8, 1.0, weight_decay=0.1, eps=1e-8, lr_prefactor=0.3)
    for group in p.param_groups:
        inside = group["name"].startswith("blocks") or "inside" in group["name"]
        assert group["lr"] == 0.3
        assert group["eps"] == (1e-8 / 4 if inside else 1e-8)
        assert group["weight_decay"] == (0.1 if group["params"][0].ndim == 2 else 0.0)


@pytest.mark.parametrize(("optimizer_type", "factor"), [("adam", 0.5), ("sgd", 1.0)])
def test_depth_mup_divides_adams_lr_inside_blocks_by_the_root_of_the_depth(
    optimizer_type: Any, factor: float
) -> None:
    p = deep(8, 0.5, optimizer_type=optimizer_type, lr_prefactor=1.0, weight_decay=0.1)
    groups = {group["name"]: group for group in p.param_groups}
    names = {id(q): name for name, q in p.model.named_parameters()}
    for group in groups.values():
        for q in group["params"]:
            assert group["lr"] == (factor if names[id(q)].startswith("blocks.") else 1.0)
        if group["weight_decay"]:
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.1)


def test_depth_and_width_multiply() -> None:
    p = deep(8, 0.5, width=4 * WIDTH, lr_prefactor=1.0, eps=1.0)
    (fc1,) = (g for g in p.param_groups if g["name"] == "blocks.0.fc1")
    assert fc1["lr"] == pytest.approx(0.5 / 4)
    assert fc1["eps"] == pytest.approx(0.5 / 4)


def test_norms_and_biases_inside_blocks_have_a_group_of_their_own() -> None:
    p = deep(4, 0.5)
    names = {id(q): name for name, q in p.model.named_parameters()}
    groups = {g["name"]: {names[id(q)] for q in g["params"]} for g in p.param_groups}
    # muP's readout and embedding have biases with a group of their own.
    assert groups["rest"] == {"norm.weight", "norm.bias"}
    assert groups["rest.inside"] == {
        f"blocks.{i}.{name}"
        for i in range(4)
        for name in ("norm.weight", "norm.bias", "fc1.op.bias", "fc2.op.bias")
    }
    assert "rest.inside" not in {g["name"] for g in deep(4, None).param_groups}


def test_inside_can_be_given_by_prefixes() -> None:
    depth = Depth(4.0, 1.0, ["wo", "w2"], inside=["blocks.1"])
    p = Parametrization(Llama(depth=2), depth=depth)
    eps = {name: factors.eps for name, factors in p.factors().items()}
    assert eps["blocks.1.wq"] == eps["blocks.0.wq"] / 4
    assert p.sites["blocks.0.wo"].scale == p.sites["blocks.1.w2"].scale == 0.25


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_base_may_have_fewer_blocks(device: str) -> None:
    with torch.device(device):
        base = Residual(2, 32)
    if device == "cpu":
        with torch.no_grad():
            base.blocks[1].fc1.weight.normal_(0, 0.3)  # type: ignore[union-attr, operator]
    p = Parametrization(Residual(4), base=base, depth=Depth(2.0, 1.0, ["fc2"]), lr_prefactor=1.0)
    lrs = p.lrs()
    assert all(lrs[f"blocks.{i}.{name}"] == 0.5 for i in range(4) for name in ("fc1", "fc2"))
    # Blocks that the base lacks start as its last one.
    stds = [p._stds[f"blocks.{i}.fc1"] for i in range(4)]
    assert stds[1] == stds[2] == stds[3]
    assert stds[1] == pytest.approx(0.3 / 2**0.5 if device == "cpu" else 1 / 8, rel=0.1)


def test_a_base_with_more_blocks_or_without_depth_is_refused() -> None:
    depth = Depth(0.5, 1.0, ["fc2"])
    with pytest.raises(ValueError, match=r"base: its sites are not the model's: blocks\.2\.fc1"):
        Parametrization(Residual(2), base=Residual(3), depth=depth)
    with pytest.raises(ValueError, match="needs the argument depth"):
        Parametrization(Residual(3), base=Residual(2))


# Coordinate check


@cache
def stream(
    depth: int, exponent: float | None, seed: int, optimizer_type: Any = "adam"
) -> tuple[float, dict[str, float]]:
    """The rms of the stream's change after five steps, and that of each first gradient."""
    # Branches that start small: at 2 layers their sum would be a visible part of the stream.
    p = deep(
        depth, exponent, seed=seed, optimizer_type=optimizer_type, std_multipliers={"fc2": 0.5},
        lr_prefactor=1e-3 if optimizer_type == "adam" else 0.03,
    )  # fmt: skip
    build = torch.optim.SGD if optimizer_type == "sgd" else torch.optim.Adam
    optimizer = build(p.param_groups)
    model, (x, y) = p.model, batch(seed, 32)
    assert isinstance(model, Residual)
    before, first = model.stream(x).detach(), {}
    for step in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        if step == 0:
            first = {
                name: rms(q.grad) for name, q in model.named_parameters() if q.grad is not None
            }
        optimizer.step()
    return rms(model.stream(x) - before), first


def rms(x: torch.Tensor | None) -> float:
    assert x is not None
    return float(x.detach().double().square().mean().sqrt())


def slope(values: list[list[float]]) -> float:
    """Of the logarithm, over `DEPTHS`; (seeds, depths)."""
    return float(np.polyfit(np.log(DEPTHS), np.log(values).mean(0), 1)[0])


@pytest.mark.parametrize("optimizer_type", ["adam", "sgd"])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_changes_of_the_stream_do_not_depend_on_depth(exponent: float, optimizer_type: Any) -> None:
    changes = [[stream(d, exponent, seed, optimizer_type)[0] for d in DEPTHS] for seed in range(3)]
    assert abs(slope(changes)) < 0.1


def test_without_scaling_changes_of_the_stream_grow_with_depth() -> None:
    changes = [[stream(depth, None, seed)[0] for depth in DEPTHS] for seed in range(3)]
    assert slope(changes) > 0.5


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_gradients_inside_blocks_fall_as_eps_does(exponent: float) -> None:
    runs = [[stream(depth, exponent, seed, "adam")[1] for depth in DEPTHS] for seed in range(3)]
    for name, expected in (
        ("blocks.0.fc1.op.weight", -exponent),
        ("blocks.1.fc2.op.weight", -exponent),
        ("blocks.1.fc1.op.bias", -exponent),
        ("embed.op.weight", 0.0),
        ("readout.op.weight", 0.0),
        ("norm.weight", 0.0),
    ):
        assert slope([[run[name] for run in row] for row in runs]) == pytest.approx(
            expected, abs=0.1
        )


# Bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1.0, ["fc2"]), "depth: ratio must be positive"),
        ((2.0, -1.0, ["fc2"]), "depth: exponent must be finite and >= 0"),
        ((2.0, float("nan"), ["fc2"]), "depth: exponent must be finite and >= 0"),
        ((2.0, 1.0, []), "depth: branches must list"),
        ((2.0, 1.0, "fc2"), "depth: branches must list"),
        ((2.0, 1.0, ["fc2", "proj"]), "depth: branches proj match no site"),
    ],
)
def test_a_wrong_depth_is_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(Residual(2), depth=Depth(*arguments))


class Sequential(nn.Module):
    """Stages of blocks whose MLP is an `nn.Sequential`, so that its layers have numbers too."""

    def __init__(self, width: int, *depths: int) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleList(
                nn.Sequential(nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n))
                for _ in range(depth)
            )
            for n, depth in zip((width, 2 * width), depths, strict=True)
        )


def test_a_block_that_the_base_lacks_is_compared_layer_by_layer_in_its_stage() -> None:
    depth = Depth(2.0, 1.0, ["2"])
    p = Parametrization(Sequential(64, 3, 6), base=Sequential(16, 1, 3), depth=depth)
    assert p.plan is not None
    wide = {f"stages.{s}.{b}.{i}" for s, n in ((0, 3), (1, 6)) for b in range(n) for i in (0, 2)}
    assert {w.name for w in p.plan.weights} == wide
    assert {(w.layer_type, w.n / w.n_base) for w in p.plan.weights} == {("hidden", 4.0)}


def test_layers_with_numbers_outside_the_blocks_keep_their_learning_rates() -> None:
    def make(width: int, depth: int) -> nn.Module:
        def block() -> nn.Module:
            return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width))

        embed = nn.Sequential(nn.Linear(8, width), nn.LayerNorm(width))
        head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3))
        blocks = nn.ModuleList(block() for _ in range(depth))
        return nn.ModuleDict({"embed": embed, "blocks": blocks, "head": head})

    branches = [f"blocks.{i}.1" for i in range(4)]
    scaled, plain = (
        Parametrization(
            make(64, 4),
            base=make(32, 2),
            lr_prefactor=1.0,
            depth=Depth(ratio, 0.5, branches),
        )
        for ratio in (4.0, 1.0)
    )

    def lr_of(p: Parametrization) -> dict[str, float]:
        names = {id(q): name for name, q in p.model.named_parameters()}
        return {names[id(q)]: g["lr"] for g in p.param_groups for q in g["params"]}

    wanted = {n: lr * (0.5 if n.startswith("blocks") else 1.0) for n, lr in lr_of(plain).items()}
    assert lr_of(scaled) == pytest.approx(wanted)
