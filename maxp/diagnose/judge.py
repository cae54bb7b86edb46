"""Judges what a coordinate check has observed: slopes, causes, and the sites after a cause."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from maxp.diagnose.faults import Facts, Fault, find_faults, wrong_mark, wrong_multiplier
from maxp.diagnose.shapes import ByShape
from maxp.diagnose.slopes import (
    NEVER,
    WRONG,
    Array,
    SiteStats,
    fit,
    fit_exponent,
    fit_slope,
    init_slopes,
)
from maxp.exponents import Alignment, Exponents, OptimizerType, change_exponents
from maxp.graph import Graph, JoinNode
from maxp.module import MUP_AB, Site

Seen = Mapping[str, Array]


def judge(
    graph: Graph,
    rule: OptimizerType,
    alignments: Mapping[str, Alignment],
    observed: Mapping[str, Seen],
    sites: Mapping[str, Site],
    shapes: Mapping[str, ByShape],
    widths: Sequence[int],
    tolerance: float,
) -> dict[str, SiteStats]:
    """The measurements of every site, with slopes and faults.

    Args:
        graph: of the sites.
        rule: of the optimizer.
        alignments: that derived slopes assume, by site.
        observed: what was observed, by site and name: (seeds, widths).
        sites: of one of the models.
        shapes: the weights that grow with the width, by site.
        widths: of the models.
        tolerance: the allowed distance of slopes and exponents.
    """
    exponents, contracted, c = {}, {}, {}
    for name, seen in observed.items():
        n, a, b, c[name] = (
            sign * fit_exponent(name, what, widths, seen[what])
            for what, sign in (("n", 1), ("scale", -1), ("weight", -1), ("lr", -1))
        )
        # That of an update's entries.
        c[name] -= fit_exponent(name, "entries", widths, seen["entries"])
        # The program uses powers of a site's width, the check powers of the model's.
        alignment = Alignment(*(n * exponent for exponent in alignments[name]))
        contracted[name], exponents[name] = n, Exponents(a, b, alignment, c[name])
    nodes = dict(graph.nodes)
    for node in graph.sites:
        if node.site in shapes:
            nodes[node.name] = replace(node, layer_type=shapes[node.site].layer_type)
    graph = Graph(nodes)
    at_init, wanted = init_slopes(graph, exponents, contracted)
    r = change_exponents(graph, exponents, c, rule)
    stats = {}
    for name, seen in observed.items():
        init = fit_slope(widths, seen["init"], at_init[name], wanted[name], tolerance)
        change = fit_slope(widths, seen["change"], -r[name], 0.0, tolerance)
        stats[name] = SiteStats(seen["init"], seen["change"], init, change)

    # Each site alone, as if it read data.
    apart = Graph({s.name: replace(s, operands=(None,) * len(s.operands)) for s in graph.sites})
    at_init, _ = init_slopes(apart, exponents, contracted)
    r = change_exponents(apart, exponents, c, rule)
    facts = {
        name: _facts(sites[name], shapes[name], observed[name], widths, tolerance)._replace(
            init=_offset(at_init[name], tolerance), update=_offset(-r[name], tolerance)
        )
        for name in sites
        if name in shapes
    }
    return _with_causes(graph, rule, facts, stats, tolerance)


def _offset(exponent: float, tolerance: float) -> float:
    return exponent if tolerance < abs(exponent) < NEVER / 2 else 0.0


def _facts(
    site: Site, shape: ByShape, seen: Seen, widths: Sequence[int], tolerance: float
) -> Facts:
    """The facts of a weight, still without the offsets of its output."""

    def slope(values: Array) -> float:
        mean, _ = fit(widths, values)
        return 0.0 if np.isnan(mean) else mean

    n, scale = slope(seen["n"]), slope(seen["scale"])
    extra = 0.0 if site.fixed_scale else scale + MUP_AB[shape.layer_type][0] * n
    with np.errstate(invalid="ignore"):  # of a weight without a gradient
        kept = seen["gradient"] / (seen["gradient"] + seen["eps"])
    lost = 1 - kept.mean(0)
    return Facts(
        marked_as=site.layer_type if shape.is_marked else None,
        layer_type=shape.layer_type,
        n=n,
        width_dim=slope(seen["width_dim"]),
        init=0.0,
        update=0.0,
        scale=scale,
        extra=_offset(extra, tolerance),
        weight=slope(seen["weight"]),
        lr=slope(seen["lr"]),
        eps=_offset(slope(kept), tolerance),
        lost=(float(lost[np.argmin(widths)]), float(lost[np.argmax(widths)])),
        decay=_offset(slope(seen["lr"] * seen["decay"]), tolerance),
        is_held=bool(seen["is_held"].all()),
    )


def _with_causes(
    graph: Graph,
    rule: OptimizerType,
    facts: Mapping[str, Facts],
    stats: Mapping[str, SiteStats],
    tolerance: float,
) -> dict[str, SiteStats]:
    """The measurements with the faults of each site, and the sites with faults that feed it."""
    is_sgd = rule == "sgd"
    faults = {n: find_faults(fact, tolerance, is_sgd=is_sgd) for n, fact in facts.items()}
    wrong = {n for n, f in facts.items() if f.layer_type == "readout" and faults[n]}
    if is_sgd and wrong:  # all gradients have passed the readouts
        for name in facts.keys() - wrong:
            faults[name] = find_faults(facts[name]._replace(update=0.0), tolerance, is_sgd=True)
    judged = dict(stats)
    causes: dict[str, set[str]] = {}  # of what a node receives, and of what it hands on
    for name, node in graph.nodes.items():
        feeds = node.parents if isinstance(node, JoinNode) else node.operands
        causes[name] = {cause for feed in feeds if feed is not None for cause in causes[feed]}
        if isinstance(node, JoinNode):
            continue
        if node.call_of:
            causes[name] |= causes[node.call_of]
            continue
        before = causes[name] | (wrong - {name} if is_sgd else set())
        own = faults.get(name, [])
        if not own and not before and stats[name].verdict == WRONG:
            own = [_by_slopes(stats[name], facts.get(name), tolerance)]
        after = tuple(site for site in stats if site in before)
        judged[name] = replace(stats[name], faults=tuple(own), after=after)
        if any(fault.kind != "decay" for fault in own):
            causes[name].add(name)
    return judged


def _by_slopes(stats: SiteStats, facts: Facts | None, tolerance: float) -> Fault:
    """The fault of a site whose slopes are wrong, though its exponents are allowed."""
    if facts is not None and facts.layer_type == "readout" and stats.change.grows:
        # The change of the input is aligned with the initial weights; theory allows for 1/2.
        if fault := wrong_mark(facts, tolerance):
            return fault
        if facts.extra > 0:
            return wrong_multiplier(facts)
    text = f"{stats.text}, though its multiplier, initial weights and updates are as expected"
    return Fault("unknown", text, "look at what the model computes before this site")
