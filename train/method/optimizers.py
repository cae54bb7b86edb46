"""The optimizers of a run: AdamW; or Muon for the matrices of hidden sites and AdamW for all else.

`docs/theory.md`, "Muon", derives the learning rates.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Muon, Optimizer
from torchtitan.components.optimizer import OptimizersContainer, ParamGroupConfig
from torchtitan.distributed.flex_shard import BucketConfig, ComputeLayout, Owned
from torchtitan.distributed.flex_shard.dist_muon import DistMuon

from maxp import Graph, Parametrization, avx2
from maxp.exponents import AdjustLrFn
from maxp.factors import Factors
from maxp.muon import is_muons
from train.run.identity import ADJUST_LR_FN


class SiteDistMuon(DistMuon):
    """torchtitan's Muon for sharded weights, with a learning rate and a decay for each site.

    Its one group cannot be split, since its communication is planned when it is built. A site's
    values are therefore those of the group times `factors`.
    """

    site_of: Mapping[str, str] = MappingProxyType({})
    """The site of each parameter, by the parameter's name."""
    factors: Mapping[str, Factors] = MappingProxyType({})
    """By site."""

    def _group(self, compute_layout: Any) -> dict[str, Any]:
        group = super()._group(compute_layout)
        site = self.site_of.get(compute_layout.fqn)
        if site is None:
            return group
        factors = self.factors[site]
        decay = group["weight_decay"] * factors.weight_decay
        return {**group, "lr": group["lr"] * factors.lr, "weight_decay": decay}


def sharded_axes(weight: torch.Tensor) -> list[str]:
    """The names of the mesh axes that a weight is divided over; none if it is whole."""
    if not isinstance(weight, DTensor):
        return []
    mesh = weight.device_mesh
    names = mesh.mesh_dim_names or ()
    axes = zip(names, weight.placements, mesh.shape, strict=True)
    return [name for name, placement, size in axes if placement.is_shard() and size > 1]


def build_muon(groups: list[dict[str, Any]]) -> Optimizer:
    """Muon for the groups that torchtitan has made: `SiteDistMuon` if a weight is sharded."""
    named = {n: p for g in groups for n, p in zip(g["param_names"], g["params"], strict=True)}
    axes = {name: sharded_axes(weight) for name, weight in named.items()}
    if not any(axes.values()):
        return Muon(groups)
    blocks: dict[str, list[str]] = {}
    for name in named:
        blocks.setdefault(re.sub(r"(\.\d+)\..*$", r"\1", name), []).append(name)
    return SiteDistMuon(
        groups,
        # One rank has the whole of a matrix while it computes its update.
        compute_sharding_by_fqn={
            name: ComputeLayout(dict.fromkeys(over, Owned())) for name, over in axes.items()
        },
        bucket_configs=[BucketConfig(tuple(names), block) for block, names in blocks.items()],
    )


class MuonOptimizers(OptimizersContainer[Optimizer]):
    """torchtitan's container, with `build_muon` under the name ``Muon``.

    Muon and AdamW stay two optimizers. torchtitan schedules both, and saves the states of both in
    one checkpoint, by the names of the parameters.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(OptimizersContainer.Config):
        pass

    @staticmethod
    def _resolve_optimizer_factory(name: str) -> Callable[..., Optimizer]:
        return (
            build_muon if name == "Muon" else OptimizersContainer._resolve_optimizer_factory(name)
        )

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        with avx2.fast_products():
            return super().step(closure)


def with_muon(
    config: OptimizersContainer.Config,
    model: nn.Module,
    graph: Graph,
    *,
    lr: float,
    adjust_lr_fn: AdjustLrFn = ADJUST_LR_FN,
) -> MuonOptimizers.Config:
    """``config`` with a group for Muon in front.

    Muon has the weight decay of the last group, which is for all parameters that no other matches.

    Args:
        config: the run's optimizers, without Muon.
        model: on any device; its weights have the shapes of the run's.
        graph: of the model's sites. Muon trains the weights of the hidden ones.
        lr: the learning rate of the group before the method multiplies it by site.
        adjust_lr_fn: Muon's scale.

    Raises:
        ValueError: one line: a hidden site has a weight that is no matrix.
    """
    hidden = [s.name for s in graph.sites if s.layer_type == "hidden" and s.has_weight]
    weights = dict(model.named_parameters())
    for name in hidden:
        weight = weights[name] if name in weights else weights[f"{name}.weight"]
        if (dimensions := weight.ndim) != 2:
            raise ValueError(
                f"--optimizer muon: the weight of {name} has {dimensions} dimensions, and Muon "
                "takes matrices only; pass --optimizer adamw"
            )
    # Without the layer's number: torchtitan matches the names that wrappers of blocks have changed.
    kinds = sorted({re.sub(r"^.*\.\d+\.", "", name) for name in hidden})
    settings: dict[str, Any] = {
        "lr": lr,
        "momentum": 0.95,
        "weight_decay": config.param_groups[-1].optimizer_kwargs.get("weight_decay", 0.1),
        "adjust_lr_fn": adjust_lr_fn,
        "fused": False,
        "foreach": False,
    }
    pattern = rf"(?:^|\.)(?:{'|'.join(map(re.escape, kinds))})\.weight$"
    muon = ParamGroupConfig(pattern=pattern, optimizer_name="Muon", optimizer_kwargs=settings)
    return MuonOptimizers.Config(
        param_groups=[muon, *config.param_groups],
        implementation=config.implementation,
        optimizer_factory_kwargs_by_name=config.optimizer_factory_kwargs_by_name,
    )


def check_muon(optimizers: Iterable[Optimizer], parametrization: Parametrization) -> None:
    """Check that Muon trains the weights whose learning rates are Muon's, and no others.

    Raises:
        ValueError: one line that names the flag, and a site.
    """
    weights = {id(weight): name for name, weight in parametrization.weights.items()}
    trained = {
        weights.get(id(parameter), "a parameter of no site")
        for optimizer in optimizers
        for group in filter(is_muons, optimizer.param_groups)
        for parameter in group["params"]
    }
    solved = {group["name"] for group in parametrization.param_groups if is_muons(group)}
    if apart := sorted(trained ^ solved):
        raise ValueError(
            f"--optimizer.param_groups: the optimizer of {apart[0]} is not the one that its "
            "learning rate is for; leave the groups out, and choose with --optimizer"
        )
