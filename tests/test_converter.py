"""The sites of a LLaMA-3: torchtitan's own model, with multipliers where the method puts them."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
from torchtitan.models.common.attention import ScaledDotProductAttention
from torchtitan.models.llama3 import Llama3StateDictAdapter, _build_llama3_layers
from torchtitan.models.llama3.model import Llama3Model

from maxp import Parametrization
from maxp.module import find_sites
from train.method.methods import METHODS
from train.model.decoders import model_config, site_graph
from train.model.scales import Scale

VOCABULARY = 50
SCALE = Scale("tiny", dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=96)
TOKENS = torch.randint(VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def own_config(**layers: Any) -> Llama3Model.Config:
    """The same model as torchtitan itself configures it, its attention that of a CPU."""
    norm = partial(RMSNorm.Config, normalized_shape=SCALE.dim, param_init={"weight": nn.init.ones_})
    config = Llama3Model.Config(
        dim=SCALE.dim,
        vocab_size=VOCABULARY,
        tok_embeddings=Embedding.Config(num_embeddings=VOCABULARY, embedding_dim=SCALE.dim),
        norm=norm(),
        lm_head=Linear.Config(in_features=SCALE.dim, out_features=VOCABULARY),
        layers=_build_llama3_layers(
            n_layers=SCALE.n_layers,
            dim=SCALE.dim,
            n_heads=SCALE.n_heads,
            n_kv_heads=SCALE.n_kv_heads,
            hidden_dim=SCALE.ffn_dim,
            rope=ComplexRoPE.Config(
                dim=SCALE.head_dim, max_seq_len=131_072, theta=500_000, scaling="llama"
            ),
            attn_backend="flex",
            **{"fuse_qkv": False, **layers},
        ),
    )
    for layer in config.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    return config


def build(config: Llama3Model.Config, seed: int = 0) -> Llama3Model:
    """A model with random weights, in place of those that its configuration initialises."""
    model = config.build()
    model.init_weights(buffer_device=None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(autouse=True)
def cpu_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)


@pytest.fixture
def converted() -> Llama3Model:
    return build(model_config(SCALE, VOCABULARY))


def without_multipliers(model: Llama3Model) -> Llama3Model:
    for site in find_sites(model).values():
        if site.weight is not None:
            site.set_a(0)
    return model


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def test_names_and_shapes_are_those_of_torchtitans_own_model(converted: Llama3Model) -> None:
    assert shapes(converted) == shapes(build(own_config()))


def test_the_hugging_face_names_are_those_of_torchtitans_own_model(converted: Llama3Model) -> None:
    def hugging_face(model: Llama3Model, config: Llama3Model.Config) -> dict[str, torch.Size]:
        adapter = Llama3StateDictAdapter(config, hf_assets_path=None)
        return {k: v.shape for k, v in adapter.to_hf(model.state_dict()).items()}

    names = hugging_face(converted, model_config(SCALE, VOCABULARY))
    assert names == hugging_face(build(own_config()), own_config())
    assert "model.layers.1.self_attn.k_proj.weight" in names


def test_without_multipliers_it_is_torchtitans_own_model_bit_for_bit(
    converted: Llama3Model,
) -> None:
    own = build(own_config())
    converted.load_state_dict(own.state_dict())
    assert torch.equal(without_multipliers(converted)(TOKENS), own(TOKENS))


def test_every_layer_of_the_model_is_a_site_of_its_type(converted: Llama3Model) -> None:
    sites = {name: (s.width_dim, s.layer_type) for name, s in find_sites(converted).items()}
    block = {
        **dict.fromkeys(("attention.qkv_linear.wq", "attention.qkv_linear.wk"), (64, "hidden")),
        **dict.fromkeys(("attention.qkv_linear.wv", "attention.wo"), (64, "hidden")),
        "attention.inner_attention": (16, "readout"),
        **dict.fromkeys(("feed_forward.w1", "feed_forward.w3"), (64, "hidden")),
        "feed_forward.w2": (96, "hidden"),
    }
    ends = {"tok_embeddings": (64, "embedding"), "lm_head": (64, "readout")}
    blocks = {f"layers.{i}.{name}": what for i in range(2) for name, what in block.items()}
    assert sites == ends | blocks


WEIGHTED = {
    "tok_embeddings": lambda site, x: F.embedding(x, site.weight.double()),
    "layers.0.attention.qkv_linear.wk": lambda site, x: x.double() @ site.weight.double().T,
    "layers.1.feed_forward.w2": lambda site, x: x.double() @ site.weight.double().T,
    "lm_head": lambda site, x: x.double() @ site.weight.double().T,
}


@pytest.mark.parametrize("name", WEIGHTED)
def test_a_site_multiplies_its_output_by_n_to_the_minus_a(
    converted: Llama3Model, name: str
) -> None:
    site: Any = find_sites(converted)[name]
    site.set_a(0.75)
    called: list[tuple[torch.Tensor, torch.Tensor]] = []
    site.register_forward_hook(lambda _, args, out: called.append((args[0], out)))
    converted(TOKENS)
    ((x, out),) = called
    n = 96 if name.endswith("w2") else 64
    expected = n**-0.75 * WEIGHTED[name](site, x)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("a", [0.5, 1.0])
def test_attention_weighs_by_q_times_k_times_head_dim_to_the_minus_a(
    converted: Llama3Model, a: float
) -> None:
    site: Any = find_sites(converted)["layers.1.attention.inner_attention"]
    site.set_a(a)
    called: list[Any] = []
    site.register_forward_hook(lambda _, args, out: called.append((*args, out)))
    converted(TOKENS)
    ((q, k, v, out),) = called
    assert (q.shape[2], k.shape[2], q.shape[3]) == (4, 2, 16)
    expected = torch.empty(out.shape, dtype=torch.float64)
    for head in range(4):  # of four query heads, two share a key head
        qh, kh, vh = q[:, :, head], k[:, :, head // 2], v[:, :, head // 2]
        logits = 16**-a * qh.double() @ kh.double().transpose(1, 2)
        future = torch.ones(9, 9).triu(1).bool()
        weights = logits.masked_fill(future, -math.inf).softmax(-1)
        expected[:, :, head] = weights @ vh.double()
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_q_times_k_is_scaled_by_one_over_the_root_of_head_dim_under_every_method(
    method: str,
) -> None:
    config = model_config(SCALE, VOCABULARY)
    with torch.device("meta"):
        model = config.build()
    graph, ab = site_graph(config), METHODS[method].ab
    sites = Parametrization(model, sample_input=graph, ab_overrides=ab, alignment="full").sites
    assert sites["layers.0.attention.inner_attention"].scale == 16**-0.5


def test_mups_attention_is_an_override_by_name(converted: Llama3Model) -> None:
    graph = site_graph(model_config(SCALE, VOCABULARY))
    overrides = {"attention.inner_attention": (1.0, 0.0)}
    sites = Parametrization(converted, sample_input=graph, ab_overrides=overrides).sites
    assert sites["layers.0.attention.inner_attention"].scale == 1 / 16


def test_the_logits_of_one_token_are_those_of_the_formulas_under_mup(
    converted: Llama3Model,
) -> None:
    """With one token rotation is the identity and attention passes v on, so all is by hand."""
    w = {name: tensor.double() for name, tensor in converted.state_dict().items()}

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * (x.square().mean() + 1e-5).rsqrt() * w[f"{name}.weight"]

    x = 64**0.5 * w["tok_embeddings.weight"][7]
    for i in range(2):
        here = f"layers.{i}"
        z = norm(x, f"{here}.attention_norm")
        v = w[f"{here}.attention.qkv_linear.wv.weight"] @ z
        heads = v.reshape(2, 16).repeat_interleave(2, dim=0).reshape(-1)
        x = x + w[f"{here}.attention.wo.weight"] @ heads
        z = norm(x, f"{here}.ffn_norm")
        w1, w2, w3 = (w[f"{here}.feed_forward.w{k}.weight"] for k in (1, 2, 3))
        gate = w1 @ z
        x = x + w2 @ (gate * torch.sigmoid(gate) * (w3 @ z))
    logits = 64**-0.5 * (w["lm_head.weight"] @ norm(x, "norm"))
    ours = converted(torch.tensor([[7]]))[0, 0].double()
    torch.testing.assert_close(ours, logits, rtol=1e-4, atol=1e-4)


def test_torchtitan_leaves_a_sites_weight_to_be_drawn_by_maxp() -> None:
    model = model_config(SCALE, VOCABULARY).build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.init_weights(buffer_device=None)
    drawn = {name for name, p in model.named_parameters() if not bool((p == 7).all())}
    assert drawn == {name for name, _ in model.named_parameters() if "norm" in name}
