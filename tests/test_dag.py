"""The graph of sites and joins: what it refuses, and what it holds."""

import pytest

from maxp.graph import Graph, JoinNode, Node, SiteNode, chain

EMBEDDING = SiteNode("embedding", "embedding", (None,))


def two_branches() -> Graph:
    """embedding -> (left -> deep, right) -> inner join -> outer join with the embedding."""
    return Graph(
        {
            "embedding": EMBEDDING,
            "left": SiteNode("left", "hidden", ("embedding",)),
            "deep": SiteNode("deep", "hidden", ("left",)),
            "right": SiteNode("right", "hidden", ("embedding",)),
            "inner": JoinNode("inner", ("deep", "right")),
            "outer": JoinNode("outer", ("embedding", "inner")),
        }
    )


def test_a_node_fed_by_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hidden is fed by ghost"):
        Graph({"hidden": SiteNode("hidden", "hidden", ("ghost",))})


def test_a_site_before_what_feeds_it_is_refused() -> None:
    fed = SiteNode("hidden", "hidden", ("embedding",))
    with pytest.raises(ValueError, match=r"hidden is fed by embedding, which does not come before"):
        Graph({"hidden": fed, "embedding": EMBEDDING})


def test_a_join_before_its_parents_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sum is fed by embedding"):
        Graph({"sum": JoinNode("sum", ("embedding",)), "embedding": EMBEDDING})


def test_a_site_that_feeds_itself_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loop is fed by loop.*shared across depth"):
        Graph({"loop": SiteNode("loop", "hidden", ("loop",))})


def test_a_cycle_through_a_join_is_refused() -> None:
    nodes: dict[str, Node] = {
        "embedding": EMBEDDING,
        "sum": JoinNode("sum", ("embedding", "hidden")),
        "hidden": SiteNode("hidden", "hidden", ("sum",)),
    }
    with pytest.raises(ValueError, match=r"sum is fed by hidden"):
        Graph(nodes)


def test_joins_are_no_sites() -> None:
    assert [s.name for s in two_branches().sites] == ["embedding", "left", "deep", "right"]


def test_sites_without_a_weight_are_sites_but_not_weighted() -> None:
    product = SiteNode("product", "hidden", ("embedding", "embedding"), has_weight=False)
    graph = Graph({"embedding": EMBEDDING, "product": product})
    assert [s.name for s in graph.sites] == ["embedding", "product"]
    assert [s.name for s in graph.weighted] == ["embedding"]


def test_in_a_chain_each_site_feeds_the_next() -> None:
    graph = chain([("e", "embedding", True), ("h", "hidden", True), ("r", "readout", True)])
    assert [(s.name, s.layer_type, s.operands) for s in graph.sites] == [
        ("e", "embedding", (None,)),
        ("h", "hidden", ("e",)),
        ("r", "readout", ("h",)),
    ]


def test_in_a_chain_the_first_site_reads_data() -> None:
    assert chain([("h", "hidden", True)]).sites[0].operands == (None,)


def test_in_a_chain_a_later_embedding_reads_data_and_feeds_the_next() -> None:
    graph = chain([("h", "hidden", True), ("e", "embedding", True), ("r", "readout", True)])
    assert [site.operands for site in graph.sites] == [(None,), (None,), ("e",)]


def test_in_a_chain_a_site_without_a_weight_takes_both_operands_from_the_one_before() -> None:
    graph = chain([("e", "embedding", True), ("qk", "readout", False), ("o", "hidden", True)])
    assert [site.operands for site in graph.sites] == [(None,), ("e", "e"), ("qk",)]
