"""The graph of the program: which sites feed which.

A node is a site or a *join*, where several values are summed, multiplied or mixed. The program
follows one number per value: ``r``, the exponent of its change in training (change = width^-r). A
join's ``r`` is the smallest ``r`` of its parents.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from maxp.module import LayerType


@dataclass(frozen=True)
class SiteNode:
    """A site and what feeds it.

    Attributes:
        operands: for each tensor that the operation contracts, the node that it comes from, or
            None for data, which no update changes. A site with a weight has one operand, a site
            without a weight has two.
    """

    name: str
    layer_type: LayerType
    operands: tuple[str | None, ...]
    has_weight: bool = True


@dataclass(frozen=True)
class JoinNode:
    """A sum, product or mixture of values: ``r = min(r of parents)``."""

    name: str
    parents: tuple[str, ...]


Node = SiteNode | JoinNode


@dataclass(frozen=True)
class Graph:
    """The nodes by name, each after the nodes that feed it.

    Raises:
        ValueError: a node comes before one that feeds it.
    """

    nodes: Mapping[str, Node]
    _sites: tuple[SiteNode, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for name, node in self.nodes.items():
            feeds = node.parents if isinstance(node, JoinNode) else node.operands
            for feed in feeds:
                if feed is not None and feed not in seen:
                    raise ValueError(
                        f"{name} is fed by {feed}, which does not come before it; a site that "
                        "feeds itself (a layer shared across depth) is not supported"
                    )
            seen.add(name)
        sites = tuple(n for n in self.nodes.values() if isinstance(n, SiteNode))
        object.__setattr__(self, "_sites", sites)

    @property
    def sites(self) -> tuple[SiteNode, ...]:
        return self._sites

    @property
    def weighted(self) -> tuple[SiteNode, ...]:
        """The sites with a weight, which have a c."""
        return tuple(site for site in self._sites if site.has_weight)


def chain(sites: Iterable[tuple[str, LayerType, bool]]) -> Graph:
    """The graph in which each site feeds the next.

    Args:
        sites: (name, layer_type, has_weight) in order. An embedding reads data. A site without a
            weight takes both operands from the site before it.
    """
    nodes: dict[str, Node] = {}
    previous: str | None = None
    for name, layer_type, has_weight in sites:
        reads = None if layer_type == "embedding" else previous
        operands = (reads,) if has_weight else (reads, reads)
        nodes[name] = SiteNode(name, layer_type, operands, has_weight)
        previous = name
    return Graph(nodes)
