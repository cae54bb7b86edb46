"""The sites of torchtitan's other decoders: their types, what each computes, and the scales."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import AuxRequest, create_block_mask, flex_attention
from torchtitan.models.common.attention import get_sliding_window_mask_mod
from torchtitan.models.common.linear import Linear
from torchtitan.models.deepseek_v3 import deepseekv3_configs
from torchtitan.models.gpt_oss import gptoss_configs
from torchtitan.models.gpt_oss.model import apply_attention_sink_rescale
from torchtitan.models.qwen3 import qwen3_configs

from maxp import Parametrization
from maxp.module import bias_of, find_sites
from train.cli import _plain
from train.model import costs, gptoss, qwen3
from train.model.converter import layer_type
from train.model.decoders import check_all_marked, model_config, plain_model_config, site_graph
from train.model.inner_attention import WindowAttention
from train.model.kinds import base_model, branch_ends
from train.model.scales import DECODERS, base_of, get_scale

VOCABULARY = 50
DEBUG = ("qwen3-debug", "qwen3-moe-debug", "deepseek-debug", "gptoss-debug")
PUBLISHED = [name for name, scale in DECODERS.items() if not scale.on_corpus]
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cpu_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


def on_meta(name: str) -> Any:
    with torch.device("meta"):
        return model_config(get_scale(name), VOCABULARY).build()


def drawn(name: str) -> Any:
    """A model with random weights, biases and sinks."""
    model = model_config(get_scale(name), VOCABULARY).build()
    model.init_weights(buffer_device=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


# The types, at width 128 and heads of 16

QUERIES_KEYS = {
    "attention.qkv_linear.wq": (128, "hidden"),
    "attention.qkv_linear.wk": (128, "hidden"),
    "attention.qkv_linear.wv": (128, "hidden"),
    "attention.inner_attention": (16, "readout"),
    "attention.wo": (128, "hidden"),
}
ROUTER = {"moe.router.gate": (128, "readout")}
EXPERTS = {f"moe.routed_experts.inner_experts.{w}": (128, "hidden") for w in ("w1_EFD", "w2_EDF")}
EXPERTS |= {"moe.routed_experts.inner_experts.w3_EFD": (128, "hidden")}
LATENT = {
    "attention.wq_a": (128, "hidden"),
    "attention.wq_b": (64, "hidden"),
    "attention.wkv_a": (128, "hidden"),
    "attention.wkv_b": (64, "hidden"),
    "attention.inner_attention": (24, "readout"),
    "attention.wo": (128, "hidden"),
}
FEED_FORWARD = {"w1": (128, "hidden"), "w2": (448, "hidden"), "w3": (128, "hidden")}
GPTOSS = {
    "moe.routed_experts.inner_experts.mlp1_weight_EGD": (128, "hidden"),
    "moe.routed_experts.inner_experts.mlp2_weight_EDF": (128, "hidden"),
}
# The sites of the last block.
BLOCKS = {
    "qwen3-debug": QUERIES_KEYS | {f"feed_forward.{w}": s for w, s in FEED_FORWARD.items()},
    "qwen3-moe-debug": QUERIES_KEYS | ROUTER | EXPERTS,
    "deepseek-debug": LATENT
    | ROUTER
    | EXPERTS
    | {f"moe.shared_experts.w{i}": (128, "hidden") for i in (1, 2, 3)},
    "gptoss-debug": QUERIES_KEYS | ROUTER | GPTOSS,
}


@pytest.mark.parametrize("name", DEBUG)
def test_every_layer_is_a_site_of_its_type(name: str) -> None:
    sites = {n: (s.width_dim, s.layer_type) for n, s in find_sites(on_meta(name)).items()}
    ends = {"tok_embeddings": (128, "embedding"), "lm_head": (128, "readout")}
    last = {f"layers.1.{site}": what for site, what in BLOCKS[name].items()}
    assert {n: s for n, s in sites.items() if not n.startswith("layers.0.")} == ends | last


@pytest.mark.parametrize("name", DECODERS)
def test_every_matrix_is_a_site(name: str) -> None:
    scale = get_scale(name)
    dense = scale.experts.dense_layers if scale.experts else 0
    config = model_config(replace(scale, n_layers=dense + 1), VOCABULARY)
    with torch.device("meta"):
        model = config.build()
    sites = find_sites(model).values()
    of_sites = {id(tensor) for site in sites for tensor in (site.weight, bias_of(site))}
    matrices = {n: p for n, p in model.named_parameters() if p.ndim > 1}
    assert [n for n, p in matrices.items() if id(p) not in of_sites] == []


@pytest.mark.parametrize(
    ("one", "other", "logits", "expected"),
    [
        ((8, 4), (16, 8), False, "hidden"),
        ((8, 5), (16, 5), False, "embedding"),
        ((5, 4), (5, 8), True, "readout"),
        ((5, 4), (5, 8), False, "hidden"),  # to a latent of fixed rank, which has size one
        ((8, 4), (16, 8), True, "hidden"),
        ((8, 4), (8, 4), True, None),
    ],
)
def test_what_grows_tells_the_type(one: Any, other: Any, logits: bool, expected: Any) -> None:
    assert layer_type(one, other, logits=logits) == expected


def test_a_matrix_of_an_unknown_layer_is_refused_by_name() -> None:
    config = model_config(get_scale("qwen3-debug"), VOCABULARY)
    plain = plain_model_config(get_scale("qwen3-debug"), VOCABULARY)
    other = plain_model_config(get_scale("qwen3-debug").widened(), VOCABULARY)
    for layer, unmarked in zip(config.layers, plain.layers, strict=True):
        layer.feed_forward.w2 = unmarked.feed_forward.w2
    with pytest.raises(
        ValueError, match=r"^layers\.0\.feed_forward\.w2\.weight, layers\.1.*converter\.py"
    ):
        check_all_marked(config, other)


@pytest.mark.parametrize("name", DEBUG)
def test_the_head_and_the_router_read_the_blocks(name: str) -> None:
    graph = site_graph(model_config(get_scale(name), VOCABULARY))
    nodes = {node.name: node for node in graph.sites}
    assert nodes["lm_head"].operands != (None,)
    assert nodes["lm_head"].weight_of == ("tok_embeddings" if name == "qwen3-debug" else None)
    if get_scale(name).experts:
        assert nodes["layers.1.moe.router.gate"].operands != (None,)


def test_a_branch_ends_at_the_experts_and_at_the_shared_experts() -> None:
    config = model_config(get_scale("deepseek-debug"), VOCABULARY)
    ends = ["attention.wo", "feed_forward.w2", "inner_experts.w2_EDF", "shared_experts.w2"]
    assert branch_ends(config) == ends


# What a site computes


def test_experts_are_those_of_torchtitan_up_to_its_bfloat16() -> None:
    for name in ("qwen3-moe-debug", "gptoss-debug"):
        experts = drawn(name).layers["0"].moe.routed_experts.inner_experts
        x = torch.randn(12, 128, generator=torch.Generator().manual_seed(1))
        counts = torch.tensor([5, 0, 4, 3])
        own = type(experts).__mro__[1].forward(experts, x, counts)
        assert float((experts(x, counts) - own).norm() / own.norm()) < 0.02


def test_an_expert_is_a_swiglu_of_its_own_tokens() -> None:
    experts = drawn("qwen3-moe-debug").layers["0"].moe.routed_experts.inner_experts
    x = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    out = experts(x, torch.tensor([3, 0, 4, 0]))
    for expert, rows in ((0, slice(0, 3)), (2, slice(3, 7))):
        w1, w2, w3 = (getattr(experts, w)[expert].double() for w in ("w1_EFD", "w2_EDF", "w3_EFD"))
        z = x[rows].double()
        expected = (F.silu(z @ w1.T) * (z @ w3.T)) @ w2.T
        torch.testing.assert_close(out[rows].double(), expected, rtol=1e-4, atol=1e-4)


def test_the_multiplier_of_experts_is_that_of_their_output() -> None:
    experts = drawn("gptoss-debug").layers["0"].moe.routed_experts.inner_experts
    x, counts = torch.randn(4, 128), torch.tensor([1, 1, 1, 1])
    before = experts(x, counts)
    for site in experts.parameter_sites:
        site.scale = 1.0 if site.fixed_scale else 0.25
    torch.testing.assert_close(experts(x, counts), before / 4)


@pytest.mark.parametrize("window", [None, 4])
def test_attention_on_a_cpu_is_flex_attention_with_sinks(window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 9, heads, 16, generator=generator) for heads in (4, 2, 2))
    sinks = torch.randn(4, generator=generator)
    sees = get_sliding_window_mask_mod(9 if window is None else window)
    mask = create_block_mask(
        lambda b, h, i, j: (i >= j) & sees(b, h, i, j), None, None, 9, 9, device="cpu"
    )
    out, aux = flex_attention(
        *(x.transpose(1, 2) for x in (q, k, v)),
        block_mask=mask, scale=0.3, enable_gqa=True, return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    expected = apply_attention_sink_rescale(out.transpose(1, 2), aux.lse.transpose(1, 2), sinks)
    ours = WindowAttention.Config(window=window).build()(
        q, k, v, scale=0.3, out_transform=lambda o, lse: apply_attention_sink_rescale(o, lse, sinks)
    )
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["deepseek-debug", "gptoss-debug"])
def test_q_times_k_keeps_the_models_own_scale(name: str) -> None:
    model = drawn(name)
    Parametrization(model, seed=0)
    seen: list[float] = []
    site = model.layers["1"].attention.inner_attention
    parent = type(site).__mro__[2]

    def watched(self: Any, *operands: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["scale"])
        return original(self, *operands, **kwargs)

    original = parent.forward
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parent, "forward", watched)
        model(TOKENS)
    assert seen[-1] == pytest.approx(model.layers["1"].attention.softmax_scale)
    assert seen[-1] > site.width_dim**-0.5  # YaRN's


# Base models


@pytest.mark.parametrize("name", [*DEBUG, "qwen3-1.7b", "deepseek-671b", "gptoss-120b"])
def test_a_base_has_the_sites_of_the_model(name: str) -> None:
    small = replace(get_scale(name), n_layers=4)
    config = model_config(small, VOCABULARY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DECODERS, name, small)
        base = base_model(config, name, base_of(name) or "")
        with torch.device("meta"):
            model = config.build()
    types = [{n: s.layer_type for n, s in find_sites(m).items()} for m in (model, base)]
    assert types[0] == types[1]


@pytest.mark.parametrize("base", ["debug-base", "qwen3-moe-debug-base", "vit-debug-base"])
def test_a_base_of_another_kind_is_refused(base: str) -> None:
    config = model_config(get_scale("qwen3-debug"), VOCABULARY)
    with pytest.raises(ValueError, match=rf"^--maxp.base_scale {base}: another kind of model"):
        base_model(config, "qwen3-debug", base)


def test_a_tied_weight_starts_as_a_head_and_has_two_multipliers() -> None:
    model = model_config(get_scale("qwen3-debug"), VOCABULARY).build()
    base = base_model(model.config, "qwen3-debug", "qwen3-debug-base")
    p = Parametrization(model, base=base, base_std={"tok_embeddings": 32**-0.5}, seed=0)
    assert model.tok_embeddings.weight is model.lm_head.weight
    assert model.lm_head.weight.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert (p.sites["tok_embeddings"].scale, p.sites["lm_head"].scale) == (2.0, 0.5)
    assert "lm_head" not in p.c


def test_the_biases_of_experts_do_not_decay() -> None:
    p = Parametrization(drawn("gptoss-debug"), seed=0)
    groups = {id(t): g["name"] for g in p.param_groups for t in g["params"]}
    biases = [t for n, t in p.model.named_parameters() if "bias" in n or n.endswith("sinks")]
    assert {p.factors()[groups[id(bias)]].weight_decay for bias in biases} == {0.0}
    assert any(bias.ndim == 2 for bias in biases)
    assert p.factors()["layers.0.moe.router.gate"].weight_decay > 0


# Scales


def published(name: str) -> Any:
    """torchtitan's own configuration."""
    family, _, size = name.partition("-")
    if family == "qwen3":
        return qwen3_configs[size.replace("b", "B").replace("-a", "-A")](attn_backend="flex")
    configs = deepseekv3_configs if family == "deepseek" else gptoss_configs
    flavor = size.upper() if family == "deepseek" else size
    return configs[flavor](attn_backend="flex", moe_comm_backend="standard")


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_scale_is_torchtitans_configuration(name: str) -> None:
    theirs, scale = published(name), get_scale(name)
    plain: Any = {"qwen3": qwen3.plain_config, "gptoss": gptoss.plain_config}.get(scale.family)
    fused = {"fuse_qkv": True} if plain else {}
    ours = (plain or plain_model_config)(scale, theirs.vocab_size, **fused)
    for config in (ours, theirs):
        for layer in config.layers:
            layer.attention.inner_attention = None
            layer.attention.rope.max_seq_len = 0
            if scale.family == "deepseek":
                layer.attention.kv_norm.eps = layer.attention.q_norm.eps = 0
    assert len(ours.layers) == len(theirs.layers)
    for i in (0, -1):
        assert _plain(ours.layers[i].to_dict()) == _plain(theirs.layers[i].to_dict())
    ours.layers = theirs.layers = []
    assert _plain(ours.to_dict()) == _plain(theirs.to_dict())


@pytest.mark.parametrize("name", DEBUG)
def test_the_parameters_said_are_those_of_the_model_built(name: str) -> None:
    scale = get_scale(name)
    built = sum(parameter.numel() for parameter in on_meta(name).parameters())
    tables = 1 if scale.tied else 2
    assert built == scale.non_embedding_params + tables * VOCABULARY * scale.dim
    assert costs.memory(scale).parameters == 4 * sum(costs.parameters(scale))


@pytest.mark.parametrize("name", [*DEBUG, "qwen3-30b-a3b", "deepseek-671b", "gptoss-20b"])
def test_the_flops_of_a_step_are_those_that_torchtitan_counts(name: str) -> None:
    scale = get_scale(name)
    config = model_config(scale, costs.vocabulary(scale))
    with torch.device("meta"):
        model = config.build()
    _, per_token = config.get_nparams_and_flops(model, scale.seq_len)
    tokens = scale.global_batch_size * scale.seq_len
    assert costs.step_flops(scale) == pytest.approx(per_token * tokens, rel=0.02)


def test_the_linear_layers_keep_torchtitans_names() -> None:
    plain = plain_model_config(get_scale("deepseek-debug"), VOCABULARY)
    with torch.device("meta"):
        own = plain.build()
    assert [n for n, _ in own.named_parameters()] == [
        n for n, _ in on_meta("deepseek-debug").named_parameters()
    ]
    assert any(plain.traverse(Linear.Config))
