"""Weight decay and eps follow the exponents: a step's decay and Adam's update keep their size."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import CLASSES, MLP, ViT, batch, linear
from torch import nn

from maxp import PARAMETRIZATIONS, Alignment, Depth, Parametrization
from scripts.bench.constants import Options, main
from scripts.study.mlp import build
from scripts.study.rank_one import kept_with_eps
from scripts.study.single_pass import fixed_input, forward_backward

WIDTHS = {"embedding": 16, "hidden": 16, "readout": 16}
CONSTANTS = {"weight_decay": 0.1, "eps": 1e-6}
NO = Alignment(0.5, 0.5, 0.5)


def groups(p: Parametrization) -> dict[str, dict[str, Any]]:
    return {group["name"]: group for group in p.param_groups}


# At the base


def train(model: nn.Module, optimizer: torch.optim.Optimizer, after: Callable[[], None]) -> Any:
    losses = []
    for step in range(30):
        x, y = batch(step)
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        after()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("ab", PARAMETRIZATIONS.values(), ids=PARAMETRIZATIONS.keys())
@pytest.mark.parametrize("depth", [None, Depth(1.0, 1.0, ["layers.1"])])
def test_at_the_base_a_run_is_adamws_bit_for_bit(ab: Any, depth: Depth | None) -> None:
    model = MLP(16, bias=True)
    p = Parametrization(
        model, base=WIDTHS, ab_overrides=ab, lr_prefactor=0.03, seed=0, depth=depth, **CONSTANTS
    )
    # As nanoGPT and torchtitan's users do it: matrices decay, and nothing else.
    plain = copy.deepcopy(model)
    matrices = [q for q in plain.parameters() if q.ndim >= 2]
    vectors = [q for q in plain.parameters() if q.ndim < 2]
    torchs = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.03, eps=1e-6,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(p.param_groups)
    expected = train(plain, torchs, lambda: None)
    assert train(model, optimizer, lambda: p.apply(optimizer)) == expected


# Decay


@pytest.mark.parametrize("alignment", ["full", "no"])
@pytest.mark.parametrize("width", [16, 64, 256])
def test_a_steps_decay_does_not_depend_on_exponents_or_width(alignment: str, width: int) -> None:
    p = Parametrization(
        MLP(width), base=WIDTHS, alignment=alignment, lr_prefactor=0.3, weight_decay=0.1,
        lr_multipliers={"readout": 3.0},
    )  # fmt: skip
    for _ in range(2):
        for name, group in groups(p).items():
            gamma = 3.0 if name == "readout" else 1.0
            assert group["lr"] * group["weight_decay"] == pytest.approx(0.3 * gamma * 0.1)
        p.set_measured(dict.fromkeys(p.measured, (0.7, 0.5, 0.9)))
        p.solve()
        p.apply()


def test_decay_follows_the_schedule_of_lr() -> None:
    p = Parametrization(MLP(64), base=WIDTHS, lr_prefactor=0.3, weight_decay=0.1)
    optimizer = torch.optim.AdamW(p.param_groups)
    p.lr_prefactor = 0.06
    for group in optimizer.param_groups:
        assert group["lr"] * group["weight_decay"] == pytest.approx(0.06 * 0.1)


def test_matrices_shrink_by_the_same_factor_at_every_width() -> None:
    for width in (16, 128):
        model = MLP(width)
        p = Parametrization(model, base=WIDTHS, lr_prefactor=0.1, weight_decay=0.5)
        before = {name: w.detach().clone() for name, w in p.weights.items()}
        optimizer = torch.optim.AdamW(p.param_groups)
        for w in p.weights.values():
            w.grad = torch.zeros_like(w)
        optimizer.step()
        for name, w in p.weights.items():
            torch.testing.assert_close(w.detach(), 0.95 * before[name])


def weights_after_500_steps(width: int, coupled: bool) -> dict[str, float]:
    """The norm of each weight relative to init."""
    model = MLP(width)
    decay = None if coupled else 0.7
    p = Parametrization(
        model, base=dict.fromkeys(WIDTHS, 64), lr_prefactor=0.003, seed=0, weight_decay=decay
    )
    optimizer = torch.optim.AdamW(p.param_groups, weight_decay=0.7)
    initial = {name: w.detach().norm() for name, w in p.weights.items()}
    for step in range(500):
        x, y = batch(step, 32)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {name: float(w.detach().norm() / initial[name]) for name, w in p.weights.items()}


@pytest.mark.slow
def test_weights_keep_their_size_relative_to_init_over_widths_where_b_is_c() -> None:
    widths = (64, 128, 256, 512)
    slopes = []
    for coupled in (False, True):
        runs = [weights_after_500_steps(width, coupled) for width in widths]
        slopes.append({n: slope(widths, [np.log(run[n]) for run in runs]) for n in runs[0]})
    independent, coupled_decay = slopes
    assert abs(independent["embed"]) < 0.05
    assert abs(independent["readout"]) < 0.05
    # Here c = b + 1/2: what is learned falls as m^-1/2 relative to init, and the rest is flat.
    assert -0.5 < independent["layers.0"] < 0.05
    assert coupled_decay["embed"] > 0.2
    assert coupled_decay["layers.0"] > 0.1


def test_biases_and_gains_do_not_decay() -> None:
    p = Parametrization(ViT(16, 1), weight_decay=0.1)
    decays = {id(q): g["weight_decay"] for g in p.param_groups for q in g["params"]}
    for q in p.model.parameters():
        assert (decays[id(q)] > 0) == (q.ndim >= 2)


class WithMatrix(nn.Module):
    """Sites, and a linear layer and a norm that are none."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([linear(8, 8), nn.LayerNorm(8)])
        self.plain = nn.Linear(8, 8)


def test_the_rest_is_split_only_if_decay_is_asked_for_and_it_is_mixed() -> None:
    p = Parametrization(WithMatrix(), weight_decay=0.1)
    plain = groups(p)["rest"]
    assert [q.ndim for q in plain["params"]] == [2]
    assert plain["weight_decay"] == 0.1
    none = groups(p)["rest.no_decay"]
    assert [q.ndim for q in none["params"]] == [1, 1, 1]
    assert none["weight_decay"] == 0.0
    assert list(groups(Parametrization(WithMatrix()))) == ["blocks.0", "rest"]
    assert "rest.no_decay" not in groups(Parametrization(ViT(16, 1), weight_decay=0.1))


def test_without_the_arguments_groups_leave_the_optimizers_constants() -> None:
    p = Parametrization(MLP(64), base=WIDTHS)
    optimizer = torch.optim.AdamW(p.param_groups, weight_decay=0.07, eps=1e-7)
    p.apply(optimizer)
    assert {(g["weight_decay"], g["eps"]) for g in optimizer.param_groups} == {(0.07, 1e-7)}
    assert all("weight_decay" not in g or g["weight_decay"] == 0.07 for g in p.param_groups)
    # The factors are there for those who apply them.
    assert p.factors()["layers.0"].weight_decay == pytest.approx(4.0)


# eps

FULL_GRADIENT = {"embed": -0.5, "layers.0": -1.0, "layers.1": -1.0, "readout": -0.5}


@pytest.mark.parametrize(
    ("ab", "overrides", "steps", "slopes"),
    [
        ("mup", {}, 0, FULL_GRADIENT),
        ("mup", {}, 20, FULL_GRADIENT),
        # The readout's updates, of size n^0, outgrow its initial weights, n^-1/2.
        ("mup", {"readout": NO}, 20,
         {"embed": 0.0, "layers.0": -0.5, "layers.1": -0.5, "readout": -0.5}),
        ("standard", {}, 0,
         {"embed": -0.5, "layers.0": -0.5, "layers.1": -0.5, "readout": 0.0}),
        ("standard", {"readout": NO}, 20,
         {"embed": -0.5, "layers.0": -0.5, "layers.1": -0.5, "readout": 0.0}),
    ],
)  # fmt: skip
def test_eps_scales_as_the_gradient_of_the_sites_weight(
    ab: str, overrides: Any, steps: int, slopes: dict[str, float]
) -> None:
    widths, seeds = (64, 128, 256, 512), range(3)
    sizes: dict[str, list[float]] = {name: [] for name in slopes}
    factors: dict[str, list[float]] = {name: [] for name in slopes}
    for width in widths:
        runs = []
        for seed in seeds:
            p = Parametrization(
                MLP(width), ab_overrides=PARAMETRIZATIONS[ab], alignment_overrides=overrides,
                lr_prefactor=0.1, seed=seed,
            )  # fmt: skip
            runs.append(gradients(p, seed, steps))
        for name in slopes:
            sizes[name].append(np.mean([np.log(run[name]) for run in runs]))
            factors[name].append(np.log(p.factors()[name].eps))
    for name, expected in slopes.items():
        assert slope(widths, factors[name]) == pytest.approx(expected, abs=1e-9)
        assert slope(widths, sizes[name]) == pytest.approx(expected, abs=0.1)


def slope(widths: Any, logs: list[float]) -> float:
    return float(np.polyfit(np.log(widths), logs, 1)[0])


def gradients(p: Parametrization, seed: int, steps: int) -> dict[str, float]:
    """The rms of each weight's gradient after steps of Adam, on losses linear in the output."""
    optimizer = torch.optim.Adam(p.param_groups, eps=1e-30)
    x, _ = batch(seed, 32)
    for step in range(steps + 1):
        generator = torch.Generator().manual_seed(100 * seed + step)
        loss = (p.model(x) * torch.randn(32, CLASSES, generator=generator)).mean()
        optimizer.zero_grad()
        loss.backward()
        if step < steps:
            optimizer.step()
    return {n: float(w.grad.double().square().mean().sqrt()) for n, w in p.weights.items()}  # type: ignore[union-attr]


def test_a_scaled_eps_takes_as_little_of_an_update_at_every_width() -> None:
    # The study's MLP of 32 layers: the least part, over layers, that eps leaves of a first step.
    kept: dict[str, list[float]] = {"fixed": [], "scaled": []}
    for width in (64, 1024):
        shape = {"width": width, "depth": 32, "inputs": 64, "outputs": 10, "lr": 1e-3, "seed": 0}
        model, p = build("mup", "adam", **shape)
        sites = forward_backward(model, fixed_input(64), dict.fromkeys(p.sites, 1.0))
        meta, _ = build("mup", "adam", **shape, device="meta")
        factors = Parametrization(meta, base=dict.fromkeys(WIDTHS, 64)).factors()
        parts = {name: kept_with_eps(site, 1e-8) for name, site in sites.items()}
        kept["fixed"].append(min(parts.values()))
        parts = {n: kept_with_eps(site, 1e-8 * factors[n].eps) for n, site in sites.items()}
        kept["scaled"].append(min(parts.values()))
    assert kept["fixed"][0] == kept["scaled"][0] > 0.9
    assert kept["fixed"][1] < kept["fixed"][0] - 0.05
    assert kept["scaled"][1] == pytest.approx(kept["scaled"][0], abs=0.02)


def test_the_command_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(Options(decay_widths=(64, 128), eps_widths=(64, 128), steps=2, seeds=1))
    decay, eps = capsys.readouterr().out.split("\n\n")
    assert [line.count("|") for line in decay.splitlines()] == [5, 5, 5]
    header, fixed, scaled = ([w.strip() for w in x.split("|")[2:4]] for x in eps.splitlines())
    assert header == ["64", "128"]
    assert fixed[0] == scaled[0]  # the base


def test_eps_follows_what_is_solved() -> None:
    p = Parametrization(MLP(64), base=WIDTHS, eps=1e-8)
    assert groups(p)["layers.0"]["eps"] == pytest.approx(1e-8 / 4)  # g = 1, m = 4
    p.set_measured({**p.measured, "readout": (0.6, 0.5, 0.6)})
    p.solve()
    p.apply()
    assert p.c["readout"] == pytest.approx(0.1)
    assert groups(p)["layers.0"]["eps"] == pytest.approx(1e-8 * 4**-0.6)
    assert groups(p)["embed"]["eps"] == pytest.approx(1e-8 * 4**-0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weight_decay": -0.1}, "weight_decay must be finite and not negative"),
        ({"eps": 0.0}, "eps must be positive"),
        ({"eps": 1e-8, "optimizer_type": "sgd"}, "eps: SGD has none"),
    ],
)
def test_a_wrong_constant_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(MLP(), **arguments)
