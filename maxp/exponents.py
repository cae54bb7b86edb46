"""The method's formulas for r, the exponent of the change of a site's output.

``r_in`` is the r of the site's input, and ``u`` the exponent of the update's direct contribution:

    Adam      u = a + c
    Muon      u = a + c + 1/2 - sigma    (n^sigma its scale; align_z0_dW, align_dZ_dW <= 1/2)
    SGD       u = 2 a + c + g,   g = min(a_L + b_L, 2 a_L + c_L)     (L the readout)
              u = 2 a + c                                            (at L itself)

    embedding       r = u
    other           r = min( u - align_z0_dW,  u + r_in - align_dZ_dW,  a + b + r_in - align_dZ_w0 )
    no weight       r = min( a + r_k - align_z0_dW,  a + r_q - align_dZ_w0,
                             a + r_q + r_k - align_dZ_dW )

Source: Everett et al. 2024 (arXiv 2407.05872), alignment-general exponents; derived in
``docs/theory.md``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from maxp.graph import Graph, JoinNode, SiteNode

OptimizerType = Literal["adam", "sgd"]
OPTIMIZER_TYPES: tuple[str, ...] = get_args(OptimizerType)
AdjustLrFn = Literal["original", "match_rms_adamw"]
ADJUST_LR_FNS: tuple[str, ...] = get_args(AdjustLrFn)


class Alignment(NamedTuple):
    """Log-alignment exponents of a site's three terms: 1 adds up coherently, 1/2 at random.

    For a site without a weight the terms are q0 dK, dQ k0 and dQ dK, in this order.
    """

    z0_dW: float
    dZ_w0: float
    dZ_dW: float


PRESETS: dict[str, Alignment] = {
    "full": Alignment(1.0, 0.5, 1.0),
    "no": Alignment(0.5, 0.5, 0.5),
}


@dataclass(frozen=True)
class Exponents:
    """The exponents of a site. ``c`` is None if the program chooses it.

    ``adjust_lr_fn`` is that of `torch.optim.Muon`, if Muon trains the site, and else None.
    """

    a: float
    b: float
    alignment: Alignment
    c: float | None = None
    adjust_lr_fn: AdjustLrFn | None = None


class Term(NamedTuple):
    """One branch of a min: ``constant + own_c * c + sum of r over operands + own_g * g``."""

    label: str
    constant: float
    own_c: int = 0
    operands: tuple[str, ...] = ()
    own_g: int = 0


def terms(site: SiteNode, e: Exponents, optimizer_type: OptimizerType) -> list[Term]:
    """The branches whose minimum is the site's r, as in the formulas above.

    Branches with data as an operand are left out, since data does not change: its r is infinite.
    """
    a, b = e.a, e.b
    align_z0_dw, align_dz_w0, align_dz_dw = e.alignment
    if not site.has_weight:
        q, k = site.operands
        products = [
            ("a + r_k - align_q0_dK", a - align_z0_dw, (k,)),
            ("a + r_q - align_dQ_k0", a - align_dz_w0, (q,)),
            ("a + r_q + r_k - align_dQ_dK", a - align_dz_dw, (q, k)),
        ]
        return [
            Term(label, const, operands=tuple(o for o in ops if o))
            for label, const, ops in products
            if all(ops)
        ]

    if site.frozen:
        return [
            Term("a + b + r_in - align_dZ_w0", a + b - align_dz_w0, operands=(operand,))
            for operand in site.operands
            if operand is not None and site.layer_type != "embedding"
        ]

    # The update's contribution: its name in messages, its constant part, and whether it contains g.
    if optimizer_type == "adam":
        name, u, g = "a + c", a, 0
        if e.adjust_lr_fn is not None:
            # A larger alignment shows a lower rank, whose entries are smaller by the same power.
            align_z0_dw, align_dz_dw = min(align_z0_dw, 0.5), min(align_dz_dw, 0.5)
            if e.adjust_lr_fn == "original":
                name, u = "a + c + 1/2", a + 0.5
    elif site.layer_type == "readout":
        name, u, g = "2a + c", 2 * a, 0
    else:
        name, u, g = "2a + c + g", 2 * a, 1
    if site.layer_type == "embedding":
        return [Term(name, u, own_c=1, own_g=g)]
    (source,) = site.operands
    branches = [Term(f"{name} - align_z0_dW", u - align_z0_dw, own_c=1, own_g=g)]
    if source is not None:
        r_in = (source,)
        branches += [
            Term(f"{name} + r_in - align_dZ_dW", u - align_dz_dw, 1, r_in, g),
            Term("a + b + r_in - align_dZ_w0", a + b - align_dz_w0, operands=r_in),
        ]
    return branches


def gradient_terms(
    graph: Graph, exponents: Mapping[str, Exponents], optimizer_type: OptimizerType
) -> list[tuple[Term, str]]:
    """The branches of g, each with the site whose c it contains; none for Adam.

    Raises:
        ValueError: SGD on a graph without a readout, so that g is undefined.
    """
    if optimizer_type == "adam":
        return []
    if not graph.readouts:
        raise ValueError("SGD's exponents need a site of layer_type 'readout'; none was found")
    branches = []
    for site in graph.readouts:
        e = exponents[site.site]
        branches.append((Term("a_L + b_L", e.a + e.b), site.owner))
        if not site.frozen:
            branches.append((Term("2 a_L + c_L", 2 * e.a, own_c=1), site.owner))
    return branches


def gradient_exponent(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    c: Mapping[str, float],
    optimizer_type: OptimizerType,
) -> float:
    """g for given c; 0 for Adam, whose updates do not depend on the gradient's scale."""
    return min(
        (
            term.constant + (c[name] if term.own_c else 0.0)
            for term, name in gradient_terms(graph, exponents, optimizer_type)
        ),
        default=0.0,
    )


def gradient_size(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    c: Mapping[str, float],
    ratios: Mapping[str, float],
) -> float:
    """The size of the gradient at the outputs of sites before the readouts; with Adam.

    It has passed through a readout's weights, n^-a_L (W0_L + dW_L), so it is n^-g with
    g = min(a_L + b_L, a_L + c_L): the largest of all readouts counts. 1 without a readout.

    Args:
        ratios: n, or n / n_base, by site.
    """
    sizes = [
        ratios[site.site] ** -(e.a + min(e.b, c.get(site.owner, math.inf)))
        for site in graph.readouts
        for e in [exponents[site.site]]
    ]
    return max(sizes, default=1.0)


def change_exponents(
    graph: Graph,
    exponents: Mapping[str, Exponents],
    c: Mapping[str, float],
    optimizer_type: OptimizerType = "adam",
) -> dict[str, float]:
    """r of every node for given c, by the formulas; no program is solved.

    A node that reads only data has r = inf.
    """
    g = gradient_exponent(graph, exponents, c, optimizer_type)
    r: dict[str, float] = {}
    for name, node in graph.nodes.items():
        if isinstance(node, JoinNode):
            r[name] = min(r[parent] for parent in node.parents)
            continue
        branches = (
            t.constant
            + t.own_c * c.get(node.owner, 0.0)
            + sum(r[o] for o in t.operands)
            + t.own_g * g
            for t in terms(node, exponents[node.site], optimizer_type)
        )
        r[name] = min(branches, default=math.inf)
    return r


def bias_exponent(
    site: SiteNode, e: Exponents, optimizer_type: OptimizerType, g: float = 0.0
) -> float:
    """c of a site's bias, which is an embedding of the constant 1 before the site's multiplier.

    Its r is therefore u, and r = 0 gives c.
    """
    if optimizer_type == "adam":
        return -e.a
    return -2 * e.a - (0.0 if site.layer_type == "readout" else g)
