"""Judges what a coordinate check has observed: slopes, causes, and what comes after a cause."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from maxp.diagnose.faults import Facts, Fault, find_faults, wrong_mark, wrong_multiplier
from maxp.diagnose.shapes import ByShape
from maxp.diagnose.slopes import (
    NEVER,
    Array,
    SiteStats,
    fit,
    fit_exponent,
    fit_slope,
    init_slopes,
)
from maxp.exponents import Alignment, Exponents, OptimizerType, change_exponents, gradient_exponent
from maxp.graph import Graph, JoinNode
from maxp.module import MUP_AB, Site

# By site, then by what was observed: (seeds, widths).
Observed = Mapping[str, Mapping[str, Array]]


def judge(
    graph: Graph,
    rule: OptimizerType,
    alignments: Mapping[str, Alignment],
    observed: Observed,
    sites: Mapping[str, Site],
    shapes: Mapping[str, ByShape],
    widths: Sequence[int],
    tolerance: float,
) -> dict[str, SiteStats]:
    """The measurements of every site with its slopes, its faults and the sites that cause its own.

    Args:
        graph: of the sites.
        rule: whose derived slopes hold.
        alignments: that derived slopes assume, by site.
        observed: the values of all models.
        sites: of one model.
        shapes: the weights that grow with the width, by site.
        widths: of the models.
        tolerance: the allowed distance of slopes and exponents.
    """
    graph = _by_shapes(graph, shapes)
    exponents, contracted, c = {}, {}, {}
    for name, seen in observed.items():
        n, a, b, c[name] = (
            sign * fit_exponent(name, what, widths, seen[what])
            for what, sign in (("n", 1), ("scale", -1), ("weight", -1), ("lr", -1))
        )
        # The program uses powers of a site's width, the check powers of the model's.
        alignment = Alignment(*(n * exponent for exponent in alignments[name]))
        contracted[name], exponents[name] = n, Exponents(a, b, alignment, c[name])
    at_init, wanted = init_slopes(graph, exponents, contracted)
    r = change_exponents(graph, exponents, c, rule)
    stats = {}
    for name, seen in observed.items():
        init = fit_slope(widths, seen["init"], at_init[name], wanted[name], tolerance)
        change = fit_slope(widths, seen["change"], -r[name], 0.0, tolerance)
        stats[name] = SiteStats(seen["init"], seen["change"], init, change)
    facts = {
        name: _facts(name, sites[name], shapes[name], observed[name], exponents[name], widths)
        for name in stats
        if name in shapes
    }
    if rule == "sgd":
        g = gradient_exponent(graph, exponents, c, rule)
        facts = {name: _sgd_update(fact, g) for name, fact in facts.items()}
    return _with_causes(graph, rule, facts, stats, tolerance)


def _by_shapes(graph: Graph, shapes: Mapping[str, ByShape]) -> Graph:
    """The graph with the layer types that the shapes tell."""
    nodes = dict(graph.nodes)
    for node in graph.sites:
        if node.site in shapes:
            nodes[node.name] = replace(node, layer_type=shapes[node.site].layer_type)
    return Graph(nodes)


def _facts(
    name: str,
    site: Site,
    shape: ByShape,
    seen: Mapping[str, Array],
    exponents: Exponents,
    widths: Sequence[int],
) -> Facts:
    def slope(values: Array) -> float | None:
        mean, _ = fit(widths, values)
        return None if np.isnan(mean) else mean

    def unless_never(exponent: float | None) -> float | None:
        return None if exponent is None or abs(exponent) > NEVER / 2 else -exponent

    with np.errstate(invalid="ignore", divide="ignore"):
        lost = (seen["eps"] / (seen["eps"] + seen["gradient"])).mean(0)
    return Facts(
        marked_as=site.layer_type if shape.is_marked else None,
        layer_type=shape.layer_type,
        n=fit_exponent(name, "width", widths, seen["n"]),
        width_dim=fit_exponent(name, "width_dim", widths, seen["width_dim"]),
        align=exponents.alignment.z0_dW,
        scale=None if site.fixed_scale else -exponents.a,
        weight=unless_never(exponents.b),
        lr=unless_never(exponents.c),
        update=slope(seen["update"]),
        decay=slope(seen["lr"] * seen["decay"]),
        is_held=bool(seen["is_held"].all()),
        lost=(float(lost[np.argmin(widths)]), float(lost[np.argmax(widths)])),
    )


def _sgd_update(facts: Facts, g: float) -> Facts:
    """With the update that SGD makes of a gradient n^-(a + g), as the measured one is noisy."""
    if facts.lr is None:
        return facts
    passed = 0.0 if facts.layer_type == "readout" else g
    return facts._replace(update=facts.lr + (facts.scale or 0.0) - passed)


def _with_causes(
    graph: Graph,
    rule: OptimizerType,
    facts: Mapping[str, Facts],
    stats: dict[str, SiteStats],
    tolerance: float,
) -> dict[str, SiteStats]:
    """The measurements with faults, in the order of the forward pass, and what comes after them."""
    is_sgd = rule == "sgd"
    readouts = [name for name, fact in facts.items() if fact.layer_type == "readout"]
    faults = {n: list(find_faults(facts[n], tolerance, is_sgd=is_sgd)) for n in readouts}
    wrong = {name for name, listed in faults.items() if listed}
    # SGD's updates follow the gradient, which has passed the readouts.
    for name in facts.keys() - faults.keys():
        listed = find_faults(
            facts[name], tolerance, is_sgd=is_sgd, judge_update=not (is_sgd and wrong)
        )
        faults[name] = list(listed)
    causes: dict[str, set[str]] = {}  # of what a node receives or hands on
    judged = dict(stats)
    for node_name, node in graph.nodes.items():
        feeds = node.parents if isinstance(node, JoinNode) else node.operands
        before = set().union(*(causes[feed] for feed in feeds if feed is not None))
        causes[node_name] = before
        if isinstance(node, JoinNode):
            continue
        name = node.site
        before |= (wrong - {name}) if is_sgd else set()
        own = faults.setdefault(name, [])
        if not own and not before and stats[name].verdict == "wrong":
            own.append(_by_slopes(stats[name], facts.get(name), tolerance))
        judged[name] = replace(
            stats[name], faults=tuple(own), after=tuple(n for n in stats if n in before)
        )
        if any(fault.kind != "decay" for fault in own):
            causes[node_name] = before | {name}
    return judged


def _by_slopes(stats: SiteStats, facts: Facts | None, tolerance: float) -> Fault:
    """The fault of a site whose slopes are wrong, though its exponents are not."""
    if facts is not None and facts.layer_type == "readout" and stats.change.grows:
        # A change of the input is aligned with the initial weights, so it is not a random sum.
        if (fault := wrong_mark(facts, tolerance)) is not None:
            return fault
        if facts.scale is not None and facts.scale + MUP_AB["readout"][0] * facts.n > tolerance:
            return wrong_multiplier(facts)
    return Fault(
        "unknown",
        f"{stats.text}, expected n^{stats.init.wanted:g} at init and n^0 for the change, though "
        "its multiplier, initial weights and updates scale as they should",
        "look at what the model computes between this site and the ones before it",
    )
