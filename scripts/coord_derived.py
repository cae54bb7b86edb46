"""The slopes to expect from a coordinate check of LLaMA-3, and notes on why they may differ.

`maxp.diagnose` does not model norms, which matters if something grows.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from maxp import Graph
from maxp.diagnose.slopes import SiteStats, fit, init_slopes
from maxp.exponents import AdjustLrFn, Alignment, Exponents, change_exponents
from maxp.overrides import AB

# A change above this part of the output is not small: it is no longer linear in the lr.
_LARGE = 0.5
# With fewer seeds than this, a standard error may be far too small.
_FEW = 4


def derived_slopes(
    graph: Graph,
    ab: Mapping[str, AB],
    c: Mapping[str, float],
    muon: AdjustLrFn | None = None,
) -> dict[str, tuple[float, float]]:
    """Slopes of every site's rms against the model's width n, at init and of a small change.

        at init     embedding    -a - b
                    other        1/2 - a - b
                    attention    0
        change      embedding    s = -a - c
                    other        s = max(1 - a - c, 1/2 - a - b + s_in), with Muon sigma - a - c
                    attention    s = the largest of q, k (and v, which reads what they read)

    Every input of a site has slope 0 at init: it is the output of a norm or of attention, or a
    product of two hidden outputs. So norms, softmax and SwiGLU multiply a small change by a factor
    that does not depend on n, and keep its slope. dZ dW is of second order. This does not hold for
    changes that are not small: norms and softmax bound them, and dZ dW compounds.

    Args:
        graph: of the sites.
        ab: (a, b) by layer type.
        c: by site.
        muon: the scale of Muon, if it trains the hidden sites.
    """
    exponents = {}
    for site in graph.sites:
        if site.has_weight:
            exponents[site.name] = Exponents(
                *ab[site.layer_type],
                Alignment(1.0, 0.5, -math.inf),
                adjust_lr_fn=muon if site.layer_type == "hidden" else None,
            )
        else:  # it contracts head_dim, which is the same at every n
            exponents[site.name] = Exponents(0.0, 0.0, Alignment(0.0, 0.0, -math.inf))
    # Each site alone, as if it read data, which has slope 0.
    apart = {s.name: replace(s, operands=(None,) * len(s.operands)) for s in graph.sites}
    contracted = {site.name: float(site.has_weight) for site in graph.sites}
    at_init, _ = init_slopes(Graph(apart), exponents, contracted)
    r = change_exponents(graph, exponents, c)
    return {name: (s, -r[name]) for name, s in at_init.items()}


def with_derived(stats: SiteStats, at_init: float, change: float) -> SiteStats:
    """A site's stats with these derived slopes, instead of those without norms."""
    wanted = min(0.0, at_init)  # a readout may start smaller
    return replace(
        stats,
        init=replace(stats.init, derived=at_init, wanted=wanted),
        change=replace(stats.change, derived=change),
    )


class HeadSplit:
    """The two parts of the change of a head's output; at small widths one hides the other.

    ``rms`` contains, by width, one pair per model: the rms of the part from its own update,
    Z0 dW^T, and of the part from the change of its input, dZ W0^T. Changes are from a model's first
    forward pass to its last.
    """

    def __init__(self) -> None:
        self.rms: dict[int, list[tuple[float, float]]] = {}

    def watch(self, width: int, head: nn.Module) -> None:
        """Record the head of a new model of this width."""
        models = self.rms.setdefault(width, [])
        models.append((0.0, 0.0))
        initial: list[torch.Tensor] = []

        @torch.no_grad()
        def before(module: Any, args: tuple[torch.Tensor, ...]) -> None:
            z, w = args[0].detach(), module.weight.detach()
            if not initial:
                initial.extend((z.clone(), w.clone()))
            z0, w0 = initial
            parts = (F.linear(z0, w - w0), F.linear(z - z0, w0))
            own, read = (float(part.square().mean().sqrt()) * module.scale for part in parts)
            models[-1] = (own, read)

        head.register_forward_pre_hook(before)

    def slopes(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """(mean over seeds, standard error) of the slope of each part; NaN if a part is zero."""
        own, read = np.array(list(self.rms.values())).T  # (seeds, widths)
        return fit(list(self.rms), own), fit(list(self.rms), read)

    def ratio(self, width: int) -> float:
        """The ratio of the second part to the first, as a geometric mean over seeds."""
        logs = np.log(self.rms[width]).mean(0)
        return float(np.exp(logs[1] - logs[0]))


def footnotes(
    stats: Mapping[str, SiteStats],
    head: HeadSplit,
    tokens: int,
    *,
    every: bool,
    muon: bool = False,
) -> Iterable[str]:
    """Notes on the rows of the table, and on changes whose slopes differ from derived ones."""
    wrong = sum(s.affected for s in stats.values())
    if not every:
        yield (
            "each row is the layer of its kind that is furthest from the wanted slopes; "
            f"{wrong} of all {len(stats)} sites are wrong (--all-sites shows every site)"
        )
    seeds = min(len(s.init_rms) for s in stats.values())
    if wrong and seeds < _FEW:
        yield (
            f"standard errors from {seeds} seeds are themselves uncertain, so some sites may be "
            "called wrong by chance; use more --seeds"
        )
    off = {name: s for name, s in stats.items() if not s.change.near(s.change.derived)}
    if off.pop("lm_head", None):
        (own, own_error), (read, read_error) = head.slopes()
        first, last = min(head.rms), max(head.rms)
        yield (
            "lm_head's change is the sum of two parts: one from its own update, slope "
            f"{own:+.3f} +- {own_error:.3f}, and one from the change of its input, slope "
            f"{read:+.3f} +- {read_error:.3f}. The second is {head.ratio(first):.1f} times the "
            f"first at width {first}, and {head.ratio(last):.1f} times at width {last}. The sum "
            "has the slope of the larger part; at large widths, that is the steeper one"
        )
    ratios = {
        name: float((s.change_rms / s.init_rms).mean(0).max())
        for name, s in off.items()
        if s.init_rms.all()
    }
    large = [name for name, ratio in ratios.items() if ratio > _LARGE]
    if large:
        name = max(large, key=lambda name: ratios[name])
        yield (
            f"{len(large)} sites change by more than {_LARGE:g} of their output at init, {name} by "
            f"{ratios[name]:.2g} times. Derived slopes are for small changes: norms and softmax "
            "bound large ones, and products of changes count; use a lower --lr"
        )
    if len(off) > len(large):
        adams = (
            "The site's own update has a "
            f"coherent part, about n / sqrt({tokens}) for {tokens} tokens and less if signs differ "
            "between steps, and a random part, sqrt(n). "
        )
        yield (
            "a change is a sum of parts, and the part with the derived slope is the largest at "
            f"large widths only. One part comes from earlier sites. {'' if muon else adams}"
            "To come nearer to derived slopes, use larger --widths, or fewer --sequences and "
            "--steps"
        )
