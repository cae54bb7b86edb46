"""What a coordinate check of LLaMA-3 should find, and why it may find something else.

`maxp.diagnose` derives slopes without knowing of norms, which matters where something grows.
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
from maxp.exponents import Alignment, Exponents, change_exponents
from maxp.overrides import AB

# A change above this part of what it changes is not small: it is no longer linear in the lr.
_LARGE = 0.5
# Fewer seeds than this leave a standard error that may be far too small.
_FEW = 4


def derived_slopes(
    graph: Graph, ab: Mapping[str, AB], c: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """Slopes of every site's rms in the model's width n, at init and of a small change.

        at init     embedding    -a - b
                    other        1/2 - a - b
                    attention    0
        change      embedding    s = -a - c
                    other        s = max(1 - a - c, 1/2 - a - b + s_in)
                    attention    s = the largest of q, k (and v, which reads what they read)

    All that a site reads has a slope of 0 at init: a norm's output, attention's, or a product of
    two hidden outputs; so norms, softmax and SwiGLU multiply a small change by what does not depend
    on n, and pass its slope on. dZ dW is of second order. A change that is not small is another
    matter: norm and softmax bound it, and dZ dW compounds.

    Args:
        graph: of the sites; its joins sum, multiply or mix.
        ab: (a, b) by layer type.
        c: by site.
    """
    exponents = {}
    for site in graph.sites:
        if site.has_weight:
            exponents[site.name] = Exponents(*ab[site.layer_type], Alignment(1.0, 0.5, -math.inf))
        else:  # what it contracts, head_dim, is the same at every n
            exponents[site.name] = Exponents(0.0, 0.0, Alignment(0.0, 0.0, -math.inf))
    # Each site by itself, as if it read data: of slope 0 at init.
    apart = {s.name: replace(s, operands=(None,) * len(s.operands)) for s in graph.sites}
    contracted = {site.name: float(site.has_weight) for site in graph.sites}
    at_init, _ = init_slopes(Graph(apart), exponents, contracted)
    r = change_exponents(graph, exponents, c)
    return {name: (s, -r[name]) for name, s in at_init.items()}


def with_derived(stats: SiteStats, at_init: float, change: float) -> SiteStats:
    """A site's stats beside these slopes; `maxp.diagnose` derives some that know of no norms."""
    wanted = min(0.0, at_init)  # a readout may start smaller
    return replace(
        stats,
        init=replace(stats.init, derived=at_init, wanted=wanted),
        change=replace(stats.change, derived=change),
    )


class HeadSplit:
    """The two parts of the change of a head's output, of which one hides the other for long.

    ``rms`` holds, by width, one pair a model: of its own update, Z0 dW^T, and of what the change of
    its input gives through the initial weights, dZ W0^T. Both from a model's first forward pass to
    its last.
    """

    def __init__(self) -> None:
        self.rms: dict[int, list[tuple[float, float]]] = {}

    def watch(self, width: int, head: nn.Module) -> None:
        """Follow the head of a new model of this width."""
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
        """(mean over seeds, standard error) of the slope of each part; NaN where one is zero."""
        own, read = np.array(list(self.rms.values())).T  # (seeds, widths)
        return fit(list(self.rms), own), fit(list(self.rms), read)

    def ratio(self, width: int) -> float:
        """How many times the second part is the first, as a geometric mean over seeds."""
        logs = np.log(self.rms[width]).mean(0)
        return float(np.exp(logs[1] - logs[0]))


def footnotes(
    stats: Mapping[str, SiteStats], head: HeadSplit, tokens: int, *, every: bool
) -> Iterable[str]:
    """What the rows are, and why changes have other slopes than derived, where they have."""
    wrong = sum(s.affected for s in stats.values())
    if not every:
        yield (
            "each row is the layer of its kind that is furthest from what is wanted; not right are "
            f"{wrong} of all {len(stats)} sites (--all-sites shows every one)"
        )
    seeds = min(len(s.init_rms) for s in stats.values())
    if wrong and seeds < _FEW:
        yield (
            f"standard errors from {seeds} seeds are themselves uncertain, so some sites may be "
            "called wrong by chance; more --seeds"
        )
    off = {name: s for name, s in stats.items() if not s.change.near(s.change.derived)}
    if off.pop("lm_head", None):
        (own, own_error), (read, read_error) = head.slopes()
        first, last = min(head.rms), max(head.rms)
        yield (
            f"lm_head's change is that of its own update, slope {own:+.3f} +- {own_error:.3f}, "
            f"plus that of its input through its initial weights, {read:+.3f} +- {read_error:.3f}; "
            f"the second is {head.ratio(first):.1f} times the first at width {first}, "
            f"{head.ratio(last):.1f} times at {last}. The sum has the slope of the larger part; at "
            "large widths the steeper one is the larger"
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
            f"{len(large)} sites change by more than {_LARGE:g} of what they are at init, {name} "
            f"by {ratios[name]:.2g} times: there norms and softmax bound changes, and products of "
            "changes count, while derived slopes are of small changes; lower --lr"
        )
    if len(off) > len(large):
        yield (
            "a change is a sum of parts, of which the one of the derived slope is the largest at "
            "large widths only: what is inherited, from the embedding on, and each own update's; "
            f"of that the coherent part, about n / sqrt({tokens}) for {tokens} tokens and less "
            "where signs differ from step to step, and the random part, sqrt(n). Nearer to "
            "derived: larger --widths, fewer --sequences and --steps"
        )
