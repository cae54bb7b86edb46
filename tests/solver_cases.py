"""Programs that tests of the solver share: a LLaMA's, and small ones of sites written out."""

import random
from collections.abc import Mapping

from maxp.exponents import PRESETS, Alignment, Exponents, OptimizerType
from maxp.graph import Graph, JoinNode, Node, SiteNode
from scripts.bench.milp_oracle import PARAMETRIZATIONS

KINDS: tuple[OptimizerType, ...] = ("adam", "sgd")
FULL, HALF = PRESETS["full"], PRESETS["no"]
MUP = PARAMETRIZATIONS["mup"]


def total(c: Mapping[str, float]) -> float:
    return sum(c.values())


def random_kind(rng: random.Random) -> OptimizerType:
    return rng.choice(KINDS)


def llama(blocks: int) -> Graph:
    """Attention and SwiGLU on a residual stream, written out."""
    nodes: dict[str, Node] = {"embedding": SiteNode("embedding", "embedding", (None,))}
    stream = "embedding"
    for i in range(blocks):
        q, k, v, qk, o, w1, w3, w2 = (
            f"{i}.{name}" for name in ("q", "k", "v", "qk", "o", "w1", "w3", "w2")
        )
        mix, attended, product, out = (f"{i}.{name}" for name in ("mix", "attended", "gate", "out"))
        nodes |= {name: SiteNode(name, "hidden", (stream,)) for name in (q, k, v)}
        nodes[qk] = SiteNode(qk, "readout", (q, k), has_weight=False)
        nodes[mix] = JoinNode(mix, (qk, v))
        nodes[o] = SiteNode(o, "hidden", (mix,))
        nodes[attended] = JoinNode(attended, (stream, o))
        nodes |= {name: SiteNode(name, "hidden", (attended,)) for name in (w1, w3)}
        nodes[product] = JoinNode(product, (w1, w3))
        nodes[w2] = SiteNode(w2, "hidden", (product,))
        nodes[out] = JoinNode(out, (attended, w2))
        stream = out
    nodes["readout"] = SiteNode("readout", "readout", (stream,))
    return Graph(nodes)


def feature_case(
    sites: Mapping[str, tuple[str | None, Alignment, float | None]],
) -> tuple[Graph, dict[str, Exponents]]:
    """muP sites by name: what feeds each, its alignment and its fixed c."""
    nodes: dict[str, Node] = {}
    exponents = {}
    for name, (fed, alignment, c) in sites.items():
        layer_type = name if name in ("embedding", "readout") else "hidden"
        nodes[name] = SiteNode(name, layer_type, (fed,))  # type: ignore[arg-type]
        exponents[name] = Exponents(*MUP[layer_type], alignment, c)
    return Graph(nodes), exponents
