"""The single pass: what one step does to every layer, over widths, depths and seeds.

All models get the same fixed input; the loss is the sum of the outputs. The learning rates of maxP
are those after its first measurement: muP's step gives the alignments, the program is solved with
them, and the step is repeated from the same weights with the new c.
"""

from itertools import product
from typing import Any

import pandas as pd
import torch

from maxp import Parametrization
from maxp.bounds import POSSIBLE, bounded
from maxp.module import find_sites
from scripts.study.derived import TOTAL, Layer, derive_chain
from scripts.study.mlp import MLP, ab, build
from scripts.study.plan import OPTIMIZERS, Optimizer, SinglePass
from scripts.study.pool import run_all
from scripts.study.rank_one import (
    Site,
    Spread,
    first_step,
    kept_with_eps,
    largest_singular_value,
    measured,
    spread,
)

Row = dict[str, Any]

# The default of torch's Adam.
ADAM_EPS = 1e-8


def fixed_input(inputs: int) -> torch.Tensor:
    """The input of every model: (inputs,), drawn once from N(0, 1)."""
    return torch.randn(inputs, generator=torch.Generator().manual_seed(2024))


def forward_backward(model: MLP, x: torch.Tensor, norm_2: dict[str, float]) -> dict[str, Site]:
    """One forward and one backward pass of the sum of the outputs.

    Only gradients at outputs are computed: a weight's gradient is an outer product of two vectors.

    Args:
        x: (inputs,).
        norm_2: spectral norm of each site's weight.
    """
    model.requires_grad_(False)
    x = x[None].requires_grad_()
    outputs = model.outputs(x)
    for out in outputs:
        out.retain_grad()
    outputs[-1].sum().backward()
    inputs = [x, *(out.relu() for out in outputs[:-1])]
    sites = {}
    for (name, layer), z, y in zip(find_sites(model).items(), inputs, outputs, strict=True):
        assert y.grad is not None
        weight = layer.weight.detach()
        sites[name] = Site(
            z=z.detach()[0],
            y=y.detach()[0],
            delta=y.grad[0],
            weight=weight,
            scale=layer.scale,
            norm_f=float(torch.linalg.vector_norm(weight, dtype=torch.float64)),
            norm_2=norm_2[name],
            width=layer.width_dim,
        )
    return sites


def step_and_spread(
    sites: dict[str, Site], optimizer: Optimizer, lrs: dict[str, float]
) -> tuple[list[dict[str, float]], list[Spread]]:
    """The quantities of every layer after one step with these learning rates."""
    updates = [first_step(site, optimizer, lrs[name]) for name, site in sites.items()]
    spreads = spread(list(sites.values()), updates)
    quantities = [
        {
            **measured(site, update),
            TOTAL: s.total,
            "kept": kept_with_eps(site, ADAM_EPS) if optimizer == "adam" else 1.0,
        }
        for site, update, s in zip(sites.values(), updates, spreads, strict=True)
    ]
    return quantities, spreads


def exponents_only(
    method: str, optimizer: Optimizer, width: int, depth: int, plan: SinglePass, **more: Any
) -> Parametrization:
    """The Parametrization of a model of this size without memory for weights."""
    size = (width, depth, plan.inputs, plan.outputs)
    return build(method, optimizer, *size, plan.lr, seed=0, device="meta", **more)[1]


def derived_rows(method: str, optimizer: Optimizer, depth: int, plan: SinglePass) -> list[Row]:
    """The derived exponents of every layer of a chain. Those of maxP are muP's; see the report."""
    p = exponents_only("mup" if method == "maxP" else method, optimizer, 64, depth, plan)
    kinds = {name: site.layer_type for name, site in p.sites.items()}
    layers = [Layer(kind, *ab(method)[kind], p.c[name]) for name, kind in kinds.items()]
    derived = derive_chain(layers, optimizer)
    return [{"kind": layer.kind, **e} for layer, e in zip(layers, derived, strict=True)]


def measure(width: int, depth: int, seed: int, plan: SinglePass) -> list[Row]:
    """All rows of one model size and seed: one per method, optimizer and layer."""
    rows: list[Row] = []
    unit_norms: dict[str, float] = {}
    for init in ("standard", "mup"):
        model, p = build(init, "adam", width, depth, plan.inputs, plan.outputs, plan.lr, seed)
        # The two draw the same normals, so their spectral norms differ by a known power of n.
        stds = {name: width ** -ab(init)[site.layer_type][1] for name, site in p.sites.items()}
        if not unit_norms:
            unit_norms = {
                name: largest_singular_value(site.weight.detach()) / stds[name]
                for name, site in find_sites(model).items()
            }
        norm_2 = {name: unit * stds[name] for name, unit in unit_norms.items()}
        sites = forward_backward(model, fixed_input(plan.inputs), norm_2)
        for optimizer in OPTIMIZERS:
            lrs = exponents_only(init, optimizer, width, depth, plan).lrs()
            quantities, spreads = step_and_spread(sites, optimizer, lrs)
            by_method = {init: quantities}
            if init == "mup":
                alignment = {
                    name: bounded(s.alignment, POSSIBLE)
                    for name, s in zip(sites, spreads, strict=True)
                    if name != "embedding"
                }
                p = exponents_only(
                    "maxP", optimizer, width, depth, plan, alignment_overrides=alignment
                )
                by_method["maxP"] = step_and_spread(sites, optimizer, p.lrs())[0]
            for method, layers in by_method.items():
                where: Row = {"method": method, "optimizer": optimizer}
                where |= {"width": width, "depth": depth, "seed": seed}
                rows += [{**where, "layer": i, **layer} for i, layer in enumerate(layers)]
    return rows


def run(plan: SinglePass, workers: int) -> pd.DataFrame:
    """One row per method, optimizer, width, depth, seed and layer."""
    tasks = product(plan.widths[::-1], plan.depths[::-1], range(plan.seeds), [plan])
    return run_all(measure, tasks, workers=workers, label="single pass")
