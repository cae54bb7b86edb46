"""The graph of the program: which sites feed which.

A node is a site or a *join*, where several values are summed, multiplied or mixed. The program
follows one number per value: ``r``, the exponent of its change in training (change = width^-r). A
join's ``r`` is the smallest ``r`` of its parents.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from maxp.module import LayerType


@dataclass(frozen=True)
class SiteNode:
    """A site and what feeds it.

    Attributes:
        operands: for each tensor that the operation contracts, the node that it comes from, or
            None for data, which no update changes. A site with a weight has one operand, a site
            without a weight has two.
        has_weight: False for an operation of two activations, such as QK^T.
        weight_of: the site whose weight, and so whose c, this one shares (a tied weight).
        call_of: the site of which this node is a further call, with the same exponents.
        frozen: the weight is not trained, so the node has no c.
        is_called: False for a module that is never called, because other code reads its weight. Its
            input cannot be observed, so its alignment is not measured.
    """

    name: str
    layer_type: LayerType
    operands: tuple[str | None, ...]
    has_weight: bool = True
    weight_of: str | None = None
    call_of: str | None = None
    frozen: bool = False
    is_called: bool = True

    @property
    def site(self) -> str:
        """The name of the site, whose exponents this node has."""
        return self.call_of or self.name

    @property
    def owner(self) -> str:
        """The site whose c this node has."""
        return self.weight_of or self.site


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
        """The sites that have a c: those with a trained weight of their own."""
        own = (s for s in self._sites if s.has_weight and not s.frozen)
        return tuple(s for s in own if s.owner == s.name)

    @property
    def readouts(self) -> tuple[SiteNode, ...]:
        """The readouts with a weight."""
        return tuple(s for s in self._sites if s.has_weight and s.layer_type == "readout")


def chain(
    sites: Iterable[tuple[str, LayerType, bool]],
    owners: Mapping[str, str] | None = None,
    frozen: Collection[str] = (),
) -> Graph:
    """The graph in which each site feeds the next.

    Args:
        sites: (name, layer_type, has_weight) in order. An embedding reads data. A site without a
            weight takes both operands from the site before it.
        owners: for each site with a tied weight, the site that owns it.
        frozen: the sites whose weight is not trained.
    """
    nodes: dict[str, Node] = {}
    previous: str | None = None
    for name, layer_type, has_weight in sites:
        reads = None if layer_type == "embedding" else previous
        operands = (reads,) if has_weight else (reads, reads)
        owner = (owners or {}).get(name)
        nodes[name] = SiteNode(name, layer_type, operands, has_weight, owner, frozen=name in frozen)
        previous = name
    return Graph(nodes)
