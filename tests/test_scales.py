"""The scales: sizes against the table, the ladder of widths, and the graph of each."""

from __future__ import annotations

import math

import pytest
import torch
from models import sources as sources_of

from maxp import Parametrization
from maxp.graph import Graph
from train.model.decoders import decoder_graph, model_config, site_graph
from train.model.scales import SCALES, Scale, compute_steps, get_scale

# The sizes that were asked for: dim, layers, heads, key heads, non-embedding parameters.
TABLE = {
    "s1": (512, 6, 8, 4, 30e6),
    "s2": (768, 10, 12, 4, 100e6),
    "s3": (1024, 16, 16, 4, 300e6),
    "s4": (2048, 20, 16, 4, 1e9),
    "s5": (2560, 32, 32, 8, 3e9),
}
WIDTHS = (256, 512, 1024, 2048, 4096)
CPU_WIDTHS = (64, 128, 256, 512)

LAYER_SITES = {
    *("attention.qkv_linear.wq", "attention.qkv_linear.wk", "attention.qkv_linear.wv"),
    *("attention.inner_attention", "attention.wo"),
    *("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_scale_has_the_shape_of_the_table(name: str) -> None:
    scale = get_scale(name)
    shape = (scale.dim, scale.n_layers, scale.n_heads, scale.n_kv_heads)
    assert shape == TABLE[name][:4]
    assert scale.seq_len == 2048


@pytest.mark.parametrize("name", TABLE)
def test_a_scale_is_about_as_large_as_the_table_says(name: str) -> None:
    # "About 30M" for s1 is 23.6M, which LLaMA-3's width of the feed-forward gives.
    assert abs(math.log(get_scale(name).non_embedding_params / TABLE[name][4])) < math.log(1.3)


def test_the_debug_scale_is_under_a_million_parameters() -> None:
    assert get_scale("debug").non_embedding_params < 1e6


@pytest.mark.parametrize("name", SCALES)
def test_the_parameters_said_are_those_of_the_model_built(name: str) -> None:
    scale = get_scale(name)
    with torch.device("meta"):
        model = model_config(scale, vocab_size=10).build()
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == scale.non_embedding_params + 2 * 10 * scale.dim


@pytest.mark.parametrize(("prefix", "dims"), [("w", WIDTHS), ("cpu", CPU_WIDTHS)])
def test_along_a_ladder_only_the_width_varies(prefix: str, dims: tuple[int, ...]) -> None:
    ladder = [get_scale(f"{prefix}{dim}") for dim in dims]
    assert [scale.dim for scale in ladder] == list(dims)
    fixed = {
        (
            scale.n_layers,
            scale.head_dim,
            scale.n_heads / scale.n_kv_heads,
            scale.ffn_dim / scale.dim,
            scale.seq_len,
            scale.global_batch_size,
        )
        for scale in ladder
    }
    assert len(fixed) == 1


def test_the_ladder_of_widths_has_the_depth_and_head_that_were_asked_for() -> None:
    assert (get_scale("w256").n_layers, get_scale("w256").head_dim) == (12, 64)


def test_steps_are_twenty_tokens_a_parameter() -> None:
    # s1: 20 * 23,599,616 parameters / (256 * 2048 tokens per step) = 900.25.
    assert compute_steps(get_scale("s1")) == 900
    assert compute_steps(get_scale("s1"), tokens_per_step=23_599_616) == 20
    assert compute_steps(get_scale("s1"), tokens_per_step=10**12) == 1


def test_an_unknown_scale_is_told_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"--scale s9: unknown; choose one of debug, s1, .*cpu512"):
        get_scale("s9")


# The graph


@pytest.fixture(scope="module", params=["s1", "s5"])
def graph(request: pytest.FixtureRequest) -> tuple[int, Graph]:
    """Number of layers, and the graph of the sites."""
    return get_scale(request.param).n_layers, decoder_graph(request.param)


def test_each_layer_has_seven_sites_with_a_weight_and_one_without(
    graph: tuple[int, Graph],
) -> None:
    layers, sites = graph
    expected = {f"layers.{i}.{name}" for i in range(layers) for name in LAYER_SITES}
    assert {site.name for site in sites.sites} == expected | {"tok_embeddings", "lm_head"}
    assert len(sites.weighted) == 7 * layers + 2
    assert len(sites.sites) - len(sites.weighted) == layers


def sources(graph: Graph, name: str) -> list[set[str]]:
    """For each operand of a site, the sites that reach it, without the common ``layers.``"""
    node = next(site for site in graph.sites if site.name == name)
    return [{s.removeprefix("layers.") for s in sources_of(graph, feed)} for feed in node.operands]


# By hand from the residual stream x0 = embedding, x1 = x0 + wo, x2 = x1 + w2: the norms pass on
# what they are given, attention mixes v with the weights that q and k make, and w2 takes w1 * w3.
BEFORE = {
    "0": {"tok_embeddings"},
    "1": {"tok_embeddings", "0.attention.wo", "0.feed_forward.w2"},
}


@pytest.mark.parametrize("layer", BEFORE)
def test_a_block_is_fed_as_derived_by_hand(graph: tuple[int, Graph], layer: str) -> None:
    sites, attention, ff = graph[1], f"layers.{layer}.attention", f"layers.{layer}.feed_forward"
    before, inner = BEFORE[layer], f"{layer}.attention.inner_attention"
    wq, wk, wv = (f"{layer}.attention.qkv_linear.{name}" for name in ("wq", "wk", "wv"))
    for name in ("wq", "wk", "wv"):
        assert sources(sites, f"{attention}.qkv_linear.{name}") == [before]
    assert sources(sites, f"{attention}.inner_attention") == [{wq}, {wk}]
    assert sources(sites, f"{attention}.wo") == [{wv, inner}]
    after = before | {f"{layer}.attention.wo"}
    assert sources(sites, f"{ff}.w1") == sources(sites, f"{ff}.w3") == [after]
    gated = {f"{layer}.feed_forward.w1", f"{layer}.feed_forward.w3"}
    assert sources(sites, f"{ff}.w2") == [gated]


def test_the_head_is_fed_by_the_embedding_and_every_branch(graph: tuple[int, Graph]) -> None:
    layers, sites = graph
    ends = ("attention.wo", "feed_forward.w2")
    branches = {f"{i}.{name}" for i in range(layers) for name in ends}
    assert sources(sites, "tok_embeddings") == [set()]
    assert sources(sites, "lm_head") == [{"tok_embeddings"} | branches]


@pytest.mark.parametrize(
    ("alignment", "embedding", "hidden", "readout"), [("full", 0.5, 1, 0.5), ("no", 0.5, 0.5, 0)]
)
@pytest.mark.parametrize("name", ["s1", "s5"])
def test_a_preset_gives_its_exponents_exactly(
    name: str, alignment: str, embedding: float, hidden: float, readout: float
) -> None:
    config = model_config(get_scale(name), vocab_size=10)
    with torch.device("meta"):
        model = config.build()
    solved = Parametrization(model, sample_input=site_graph(config), alignment=alignment).c
    ends = {"tok_embeddings": embedding, "lm_head": readout}
    assert solved == {site: ends.get(site, hidden) for site in solved}
    assert len(solved) == 7 * get_scale(name).n_layers + 2


def test_the_graph_does_not_depend_on_the_attention_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = decoder_graph("debug", vocab_size=10)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    config = model_config(get_scale("debug"), vocab_size=10)
    kernel = type(config.layers[0].attention.inner_attention)._owner.__name__
    assert kernel == "ParametrizedFlexAttention"
    assert site_graph(config) == plain


def test_keys_grow_less_than_the_width_by_as_much_as_the_theory_says() -> None:
    def size(scale: Scale) -> float:
        return scale.dim * scale.n_kv_heads / scale.n_heads

    growth = {}
    for name, base in [(f"s{n}", "s1") for n in range(1, 6)] + [
        ("w4096", "w256"),
        ("cpu512", "cpu64"),
    ]:
        here, there = SCALES[name], SCALES[base]
        growth[name] = ((here.dim / there.dim) / (size(here) / size(there))) ** 0.5
    expected = {
        "s1": 1.0,
        "s2": 1.22,
        "s3": 1.41,
        "s4": 1.41,
        "s5": 1.41,
        "w4096": 1.0,
        "cpu512": 1.0,
    }
    assert {name: round(factor, 2) for name, factor in growth.items()} == expected
