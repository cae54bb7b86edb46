"""The coordinate check: how outputs, and their changes in training, scale with width.

For every site, two values are measured over widths and seeds: the root mean square of its output at
init, and that of the output's change after a few steps. The slopes of their logarithms are compared
with the slopes that the method derives for the model's exponents. These are fitted to the model
itself, as slopes against the checked width: a to the multipliers, b to the initial weights, c to
the learning rates of the param groups, and the number of contracted entries to the shapes. The
check therefore also covers param groups made by hand, and sites of another width.

Sources: Yang et al. 2022 (arXiv 2203.03466), appendix on coordinate checks. The derived slopes of
changes are -r of `maxp.exponents`.
"""

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils._pytree import tree_leaves

from maxp.checks import warn_of_not_held
from maxp.diagnose.judge import judge
from maxp.diagnose.shapes import Shapes
from maxp.diagnose.slopes import SiteStats
from maxp.exponents import PRESETS, Alignment, OptimizerType
from maxp.module import Site, find_sites, is_frozen
from maxp.muon import MuonAdamW, entries_per_lr, is_muons
from maxp.overrides import check_used, resolve_alignment
from maxp.trace import call_model, evaluating, trace

LossFn = Callable[[Any, Any], torch.Tensor]


def _muon(groups: Any) -> MuonAdamW:
    return MuonAdamW(groups, muon={"weight_decay": 0.0}, adamw={"weight_decay": 0.0})


_OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {"adam": Adam, "sgd": SGD, "muon": _muon}


class _Observed(NamedTuple):
    """One site of one model: the rms of its output, of the output's change, of its initial weight
    and that weight's first gradient, and the values that its exponents are fitted to. The lr of a
    weight in no group is 0; without a weight, what concerns it is 1. ``entries`` is the size of an
    update at lr 1."""

    init: float
    change: float
    weight: float
    gradient: float
    scale: float
    width_dim: float
    n: float
    lr: float
    entries: float
    decay: float
    eps: float
    is_held: bool


def diagnose_axis(
    make_model: Callable[[int], tuple[nn.Module, Iterable[Any]]],
    make_input: Callable[[int], Any],
    widths: Sequence[int],
    *,
    steps: int = 3,
    seeds: int = 8,
    optimizer: OptimizerType | Literal["muon"] | Callable[[Any], Optimizer] = "adam",
    loss_fn: LossFn | None = None,
    alignment_overrides: Mapping[str, tuple[float, float, float]] | None = None,
    tolerance: float = 0.1,
    progress: bool = True,
) -> tuple[list[str], list[str], dict[str, SiteStats]]:
    """Train a model for a few steps at each width, and fit how outputs and changes depend on it.

    The wanted slope is 0, at init and for changes, at every site. At init, a readout or a site
    without a weight may have a negative slope if it is derived (muP's readout: -1/2). A weight that
    grows with the width and is not marked is checked as well, as if it were a site.

    Each site gets one of three verdicts: ``"right"`` if the confidence intervals of its slopes are
    within the tolerance, ``"wrong"`` if one is outside or if the site has a fault, and otherwise
    ``"cannot tell at these widths"``, with the widths that would. A slope that falls only
    because widths are small is not called wrong. If the width is not much larger than tokens times
    outputs, the random part of an update still counts, and changes fall, the readout's first.

    A fault is a cause. Its site has a wrong multiplier, initial weight, learning rate, weight decay
    or eps, or is not marked as what its shapes tell. Other sites are wrong only after it.

    Args:
        make_model: takes a width and returns a model and the param groups of its optimizer, such
            as `Parametrization.param_groups`. Torch's generator is seeded before each call. A model
            with a fixed seed of its own makes the standard errors meaningless.
        make_input: takes a width and returns the probe: a tensor, or a tuple or dict of the model's
            arguments, with entries of order 1. The model is trained and measured on it. For one
            seed and shape, the probe is the same at every width.
        widths: at least two different widths.
        steps: the number of updates before the change is measured.
        seeds: the number of models per width, at least 2, for the standard errors.
        optimizer: ``"adam"``, ``"sgd"``, ``"muon"`` (`MuonAdamW`), or a function from param groups
            to an optimizer. `torch.optim.SGD` and its subclasses have SGD's derived slopes, groups
            with ``adjust_lr_fn`` Muon's, all others Adam's.
        loss_fn: takes the model's output and the probe and returns the loss. None is half the mean
            squared distance to an N(0, 1) target, drawn once per seed.
        alignment_overrides: (z0_dW, dZ_w0, dZ_dW) that derived slopes assume, by the keys of
            `Parametrization`. The default is (1, 1/2, 1), or 1/2 at sites without a weight and at
            those of Muon.
        tolerance: the allowed distance of a slope, or of an exponent, from the wanted one.
        progress: show a progress bar, if tqdm is installed.

    Returns:
        (all_ops, affected, act_stats): the names of the sites in order of definition, the names of
            those that are wrong, and the measurements by name, with ``verdict``, ``faults``,
            ``after`` (the sites whose faults reach this one) and ``widths`` (that would tell).

    Raises:
        ValueError: too few widths, steps or seeds; an unknown optimizer or override; sites that
            differ between widths, or shapes that do not; a weight or lr that is zero at some widths
            only; or SGD without a readout.
        TypeError: the model does not return a tensor, and there is no ``loss_fn``.
    """
    _check_arguments(widths, steps, seeds, optimizer)
    build = _OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    runs: list[dict[str, _Observed]] = []
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):

        def drawn(seed: int, width: int) -> tuple[Any, nn.Module, Iterable[Any]]:
            torch.manual_seed(seed)
            x = make_input(width)  # before the model, whose number of draws depends on the width
            return x, *make_model(width)

        first = {width: drawn(0, width) for width in widths}
        shapes = Shapes({width: model for width, (_, model, _) in first.items()})
        for seed, width in _bar([(s, w) for s in range(seeds) for w in widths], progress):
            x, model, groups = first.pop(width) if width in first else drawn(seed, width)
            shapes.mark(model, width)
            these, built = find_sites(model), build(groups)
            if not runs:
                sites, graph = these, trace(model, x)
                warn_of_not_held(model, built)
                rule: OptimizerType = "sgd" if isinstance(built, SGD) else "adam"
                muons = {id(w) for g in built.param_groups if is_muons(g) for w in g["params"]}
                alignments = _alignments(sites, alignment_overrides or {}, muons)
            if list(these) != list(sites):
                raise ValueError(f"make_model: other sites at width {width} than at {widths[0]}")
            n = {name: w.n[width] for name, w in shapes.weights.items()}
            runs.append(_train(model, these, n, built, x, loss_fn or _Distance(seed), steps))

    observed = {}
    for name in sites:
        rows = np.array([run[name] for run in runs]).reshape(seeds, len(widths), -1)
        observed[name] = dict(zip(_Observed._fields, np.moveaxis(rows, -1, 0), strict=True))
    stats = judge(graph, rule, alignments, observed, sites, shapes.weights, widths, tolerance)
    return list(sites), [name for name in sites if stats[name].affected], stats


def _check_arguments(widths: Sequence[int], steps: int, seeds: int, optimizer: object) -> None:
    if len(set(widths)) < 2:
        raise ValueError(f"widths: give at least two different ones, got {list(widths)}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if seeds < 2:
        raise ValueError(f"seeds must be at least 2, for a standard error, got {seeds}")
    if isinstance(optimizer, str) and optimizer not in _OPTIMIZERS:
        raise ValueError(
            f"optimizer must be one of {', '.join(_OPTIMIZERS)}, or a function from param groups "
            f"to an optimizer; got {optimizer!r}"
        )


def _bar(runs: list[tuple[int, int]], progress: bool) -> Iterable[tuple[int, int]]:
    try:
        from tqdm.auto import tqdm
    except ImportError:  # not one of maxp's dependencies
        return runs
    return tqdm(runs, desc="coordinate check", unit="model", disable=not progress)


def _alignments(
    sites: Mapping[str, Site],
    overrides: Mapping[str, tuple[float, float, float]],
    muons: Container[int],
) -> dict[str, Alignment]:
    """By site; ``muons`` are the ids of the weights that Muon trains."""
    check_used("alignment_overrides", overrides, sites)
    alignments = {name: resolve_alignment(name, site, overrides) for name, site in sites.items()}
    for name, alignment in alignments.items():
        if id(sites[name].weight) in muons:
            alignments[name] = Alignment(*map(min, alignment, PRESETS["no"]))
    return alignments


class _Distance:
    """Half the mean squared distance to an N(0, 1) target, fixed by the seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def __call__(self, output: Any, x: Any) -> torch.Tensor:
        if not isinstance(output, torch.Tensor):
            raise TypeError(f"loss_fn: needed for a model that returns {type(output).__name__}")
        target = torch.randn(output.shape, generator=torch.Generator().manual_seed(self._seed))
        return 0.5 * (output - target.to(output)).square().mean()


def _train(
    model: nn.Module,
    sites: dict[str, Site],
    n: Mapping[str, int],
    optimizer: Optimizer,
    x: Any,
    loss: LossFn,
    steps: int,
) -> dict[str, _Observed]:
    """What is observed at each site in a few steps; ``n`` is its width by its shapes, if known."""
    weights = {name: site.weight for name, site in sites.items() if site.weight is not None}
    group_of = {id(p): dict(g) for g in optimizer.param_groups for p in g["params"]}
    groups = {name: group_of.get(id(weight), {"lr": 0.0}) for name, weight in weights.items()}
    drawn = {name: _rms(weight) for name, weight in weights.items()}
    before = _outputs(model, sites, x)
    for step in range(steps):
        optimizer.zero_grad()
        loss(call_model(model, x), x).backward()
        if step == 0:
            gradients = {k: 0.0 if w.grad is None else _rms(w.grad) for k, w in weights.items()}
        optimizer.step()
    after = _outputs(model, sites, x)
    return {
        name: _Observed(
            init=_rms(before[name]),
            change=_rms(after[name] - before[name]),
            weight=drawn.get(name, 1.0),
            gradient=gradients.get(name, 1.0),
            scale=site.scale,
            width_dim=site.width_dim,
            n=n.get(name, site.width_dim),
            lr=float(groups[name]["lr"]) if name in groups else 1.0,
            entries=entries_per_lr(groups[name], weights[name]) if name in groups else 1.0,
            decay=_decay(groups.get(name, {})),
            eps=float(groups.get(name, {}).get("eps") or 0.0),
            is_held=is_frozen(site) or name not in weights or id(weights[name]) in group_of,
        )
        for name, site in sites.items()
    }


def _decay(group: Mapping[str, Any]) -> float:
    """The weight decay of a group, unless it is part of the gradient, as in `torch.optim.Adam`."""
    return float(group.get("weight_decay", 0.0)) * group.get("decoupled_weight_decay", True)


def _outputs(model: nn.Module, sites: Mapping[str, Site], x: Any) -> dict[str, torch.Tensor]:
    """The sites' outputs on the probe, in evaluation mode.

    The output of a parameter that is an embedding by itself is the parameter. That of another
    parameter, and of a module that is never called, is not observed: it is 0.
    """
    outputs = {name: torch.zeros(1, dtype=torch.float64) for name in sites}
    hooks = []
    for name, site in sites.items():
        if not isinstance(site, nn.Module):
            if site.layer_type == "embedding":
                outputs[name] = site.weight.detach().to("cpu", torch.float64, copy=True)
            continue

        def after(_: nn.Module, args: Any, out: Any, name: str = name) -> None:
            # A copy, as later operations may write into it; on the CPU, as MPS has no float64.
            outputs[name] = tree_leaves(out)[0].detach().to("cpu", torch.float64, copy=True)

        hooks.append(site.register_forward_hook(after))
    try:
        with evaluating(model), torch.no_grad():
            call_model(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _rms(x: torch.Tensor) -> float:
    return float(x.detach().to("cpu", torch.float64).square().mean().sqrt())
