"""The single pass: what one step does to every layer, over widths, depths and seeds.

One fixed input for all models, the sum of the outputs as the loss. maxP's learning rates are those
after its first measurement: muP's step is taken, the alignments that it shows are given to the
program, and the step is taken again with the c that it answers.
"""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
import torch

from maxp import Parametrization
from maxp.module import find_sites
from scripts.study.derived import TOTAL, Layer, derive_chain
from scripts.study.mlp import MLP, ab, build, parametrize
from scripts.study.plan import OPTIMIZERS, Optimizer, SinglePass
from scripts.study.pool import run_all
from scripts.study.rank_one import (
    Site,
    Spread,
    first_step,
    kept_with_eps,
    largest_singular_value,
    norms,
    ratios,
    spread,
)

Row = dict[str, Any]

# What torch's Adam adds to the root of the second moment unless told otherwise.
ADAM_EPS = 1e-8


def fixed_input(inputs: int) -> torch.Tensor:
    """The input of every model: (inputs,), drawn once from N(0, 1)."""
    return torch.randn(inputs, generator=torch.Generator().manual_seed(2024))


def spectral_norms(model: MLP) -> dict[str, float]:
    """‖W‖_2 of every site."""
    return {
        name: largest_singular_value(site.weight.detach())
        for name, site in find_sites(model).items()
    }


def forward_backward(model: MLP, x: torch.Tensor, norm_2: dict[str, float]) -> dict[str, Site]:
    """One forward and one backward pass of the sum of the outputs.

    Only gradients at outputs are computed; a weight's is an outer product of two vectors.
    """
    sites = find_sites(model)
    inputs: dict[str, torch.Tensor] = {}
    outputs: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in sites.items():
        assert isinstance(module, torch.nn.Module)

        def after(_: Any, args: Any, out: torch.Tensor, name: str = name) -> None:
            inputs[name] = args[0].detach()[0]
            outputs[name] = out
            out.retain_grad()

        hooks.append(module.register_forward_hook(after))
    model.requires_grad_(False)
    model(x[None].requires_grad_()).sum().backward()
    for hook in hooks:
        hook.remove()
    found = {}
    for name, module in sites.items():
        out = outputs[name]
        assert out.grad is not None
        weight = module.weight.detach()
        norm_f = float(torch.linalg.vector_norm(weight, dtype=torch.float64))
        found[name] = Site(
            inputs[name],
            out.detach()[0],
            out.grad[0],
            weight,
            module.scale,
            norm_f,
            norm_2[name],
            module.width_dim,
        )
    return found


def step_and_spread(
    sites: dict[str, Site], optimizer: Optimizer, lrs: dict[str, float]
) -> tuple[list[dict[str, float]], list[Spread]]:
    """The quantities of every layer after one step with these learning rates."""
    updates = [first_step(site, optimizer, lrs[name]) for name, site in sites.items()]
    spreads = spread(list(sites.values()), updates)
    quantities = [
        {
            **ratios(site, update),
            TOTAL: s.total,
            **norms(site),
            "kept": kept_with_eps(site, ADAM_EPS) if optimizer == "adam" else 1.0,
        }
        for site, update, s in zip(sites.values(), updates, spreads, strict=True)
    ]
    return quantities, spreads


def exponents_only(
    method: str, optimizer: Optimizer, width: int, depth: int, plan: SinglePass, **more: Any
) -> Parametrization:
    """The Parametrization of a model of this size that has no memory: c and learning rates."""
    model = MLP(width, depth, plan.inputs, plan.outputs)
    return parametrize(model, method, optimizer, plan.lr, seed=0, **more)


def derived_rows(method: str, optimizer: Optimizer, depth: int, plan: SinglePass) -> list[Row]:
    """The derived exponents of every layer of a chain; maxP's are muP's, see the report."""
    p = exponents_only("mup" if method == "maxP" else method, optimizer, 64, depth, plan)
    kinds = {name: site.layer_type for name, site in p.sites.items()}
    layers = [Layer(kind, *ab(method)[kind], p.c[name]) for name, kind in kinds.items()]
    return [
        {"layer": i, "kind": layer.kind, **exponents}
        for i, (layer, exponents) in enumerate(
            zip(layers, derive_chain(layers, optimizer), strict=True)
        )
    ]


def measure(width: int, depth: int, seed: int, plan: SinglePass) -> list[Row]:
    """All rows of one model size and seed: one for each method, optimizer and layer."""
    x = fixed_input(plan.inputs)
    rows: list[Row] = []
    unit_norms: dict[str, float] = {}
    for init in ("standard", "mup"):
        model, p = build(init, "adam", width, depth, plan.inputs, plan.outputs, plan.lr, seed=seed)
        # The draws are the same, so the second norms are the first's times a ratio of n^-b.
        stds = {name: width ** -ab(init)[site.layer_type][1] for name, site in p.sites.items()}
        if not unit_norms:
            unit_norms = {n: s / stds[n] for n, s in spectral_norms(model).items()}
        sites = forward_backward(model, x, {n: u * stds[n] for n, u in unit_norms.items()})
        for optimizer in OPTIMIZERS:
            for method, quantities in _methods(init, optimizer, sites, width, depth, plan):
                about = {"method": method, "optimizer": optimizer, "width": width}
                about |= {"depth": depth, "seed": seed}
                rows += [{**about, "layer": i, **q} for i, q in enumerate(quantities)]
    return rows


def _methods(
    init: str,
    optimizer: Optimizer,
    sites: dict[str, Site],
    width: int,
    depth: int,
    plan: SinglePass,
) -> Iterator[tuple[str, list[dict[str, float]]]]:
    """(method, quantities by layer) of the methods that start from these weights."""
    lrs = exponents_only(init, optimizer, width, depth, plan).lrs()
    quantities, spreads = step_and_spread(sites, optimizer, lrs)
    yield init, quantities
    if init != "mup":
        return
    seen = {n: s.alignment for n, s in zip(sites, spreads, strict=True) if n != "embedding"}
    p = exponents_only("maxP", optimizer, width, depth, plan, alignment_overrides=seen)
    yield "maxP", step_and_spread(sites, optimizer, p.lrs())[0]


def cost(width: int, depth: int, seed: int, plan: SinglePass) -> float:
    """About how long `measure` takes, in no unit."""
    return width * width * depth + 1e6 * depth


def run(plan: SinglePass, workers: int) -> pd.DataFrame:
    """A row for each method, optimizer, width, depth, seed and layer."""
    sizes = product(plan.widths, plan.depths, range(plan.seeds))
    tasks = [(*size, plan) for size in sizes]
    return pd.DataFrame.from_records(
        run_all(measure, tasks, cost, workers=workers, label="single pass")
    )
