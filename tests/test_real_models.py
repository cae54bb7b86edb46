"""Other libraries' models: what is marked, checkpoints, and folding."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from real_models import MODELS, gpt2, llama, output, qwen3
from torch import nn

from maxp import Parametrization, mark
from maxp.module import find_sites

hf.logging.set_verbosity_error()

TRANSFORMERS = ("llama", "qwen3", "mixtral", "gpt2", "vit")

# The layer type of each matrix by the last parts of its name.
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TYPES: dict[str, dict[str, tuple[str, ...]]] = {
    "llama": {"embedding": ("embed_tokens",), "hidden": LINEAR, "readout": ("lm_head",)},
    "qwen3": {"embedding": ("embed_tokens",), "hidden": LINEAR, "readout": ("lm_head",)},
    "mixtral": {
        "embedding": ("embed_tokens",),
        "hidden": (*LINEAR[:4], "experts.gate_up_proj", "experts.down_proj"),
        "readout": ("mlp.gate", "lm_head"),
    },
    "gpt2": {
        "embedding": ("wte", "wpe"),
        "hidden": ("c_attn", "c_proj", "c_fc"),
        "readout": ("lm_head",),
    },
    "vit": {
        "embedding": ("cls_token", "position_embeddings", "projection"),
        "hidden": (*LINEAR[:4], "fc1", "fc2"),
        "readout": ("classifier",),
    },
    "timm vit": {
        "embedding": ("cls_token", "pos_embed", "patch_embed.proj"),
        "hidden": ("attn.qkv", "attn.proj", "fc1", "fc2"),
        "readout": ("head",),
    },
    "timm convnext": {
        "embedding": ("stem.0", "conv_dw"),
        "hidden": ("downsample.1", "fc1", "fc2"),
        "readout": ("head.fc",),
    },
    "torch's encoder": {
        "embedding": ("embed",),
        "hidden": ("in_proj_weight", "out_proj", "linear1", "linear2"),
        "readout": ("head",),
    },
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_matrix_is_classified_and_every_parameter_is_listed(kind: str) -> None:
    model = MODELS[kind].make(64)
    plan = mark(model, MODELS[kind].make(32))
    expected = {end: layer_type for layer_type, ends in TYPES[kind].items() for end in ends}
    for weight in plan.weights:
        (layer_type,) = {t for end, t in expected.items() if f".{weight.name}".endswith(f".{end}")}
        assert (weight.name, weight.layer_type) == (weight.name, layer_type)
    named = dict(model.named_parameters(remove_duplicate=False))
    assert all(named[name].ndim < 2 for name in plan.others)
    assert len(plan.weights) + len(plan.others) == len(named)
    assert all(
        f"\n{name} " in f"\n{plan}" for name in [*plan.others, *(w.name for w in plan.weights)]
    )


@pytest.mark.parametrize("kind", MODELS)
def test_training_changes_what_the_exponents_say_and_every_site_is_traced(kind: str) -> None:
    torch.manual_seed(0)
    model, batch = MODELS[kind].make(64), MODELS[kind].batch()
    p = Parametrization(model, base=MODELS[kind].make(32), sample_input=batch, lr_prefactor=1e-3)
    assert {site.site for site in p.graph.sites} == p.sites.keys()
    optimizer = torch.optim.AdamW(p.param_groups)
    p.capture_initial(batch)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = output(model, batch).square().mean()
        loss.backward()
        optimizer.step()
        p.step(batch, optimizer)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    measured = [n for n, s in p.sites.items() if isinstance(s, nn.Module) or ".experts." in n]
    measured = [n for n in measured if p.sites[n].layer_type != "embedding"]
    assert p.measured.keys() == set(measured)
    assert all(0.2 < term < 1.05 for terms in p.measured.values() for term in terms if term)
    assert all(r >= -1e-9 for r in p.r.values())


@pytest.mark.parametrize("kind", MODELS)
def test_a_plain_checkpoint_loads_into_a_marked_model(kind: str) -> None:
    plain, model, batch = MODELS[kind].make(64), MODELS[kind].make(64), MODELS[kind].batch()
    mark(model, MODELS[kind].make(32)).apply()
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    assert find_sites(model)
    model.eval(), plain.eval()
    torch.testing.assert_close(output(model, batch), output(plain, batch), rtol=0, atol=0)


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_a_folded_model_is_saved_and_loaded_by_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = MODELS[kind].make(64)
    batch = MODELS[kind].batch()
    p = Parametrization(model, base=MODELS[kind].make(32))
    model.eval()
    expected = output(model, batch)
    p.fold()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert type(model).__module__.startswith("transformers.")
    torch.testing.assert_close(output(again, batch), expected, rtol=1e-5, atol=1e-5)


def bert(width: int) -> Any:
    """The bias of its head is tied as well."""
    config = hf.BertConfig(
        vocab_size=64, hidden_size=width, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=width, max_position_embeddings=16,
    )  # fmt: skip
    return hf.BertForMaskedLM(config)


def bart(width: int) -> Any:
    """Two other tables are tied to the embedding, beside the head."""
    config = hf.BartConfig(
        vocab_size=64, d_model=width, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=width,
        decoder_ffn_dim=width, encoder_attention_heads=2, decoder_attention_heads=2,
        max_position_embeddings=16,
    )  # fmt: skip
    return hf.BartForConditionalGeneration(config)


@pytest.mark.parametrize("make", [bert, bart])
def test_all_that_is_tied_with_a_folded_head_is_saved(
    make: Callable[[int], Any], tmp_path: Path
) -> None:
    model = make(64)
    p = Parametrization(model, base=make(32))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tokens = {"input_ids": torch.randint(4, 64, (2, 8))}
    expected = output(model.eval(), tokens)
    p.fold()
    torch.testing.assert_close(output(model, tokens), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(output(again, tokens), expected, rtol=1e-4, atol=1e-4)


def test_a_pretrained_checkpoint_is_loaded_into_a_model_that_is_then_marked(tmp_path: Path) -> None:
    plain: Any = llama(64)
    plain.save_pretrained(tmp_path)
    model = hf.LlamaForCausalLM.from_pretrained(tmp_path)
    mark(model, llama(32)).apply()
    model.load_state_dict(plain.state_dict())
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_a_head_that_transformers_replaces_when_it_resizes_is_refused_by_name() -> None:
    model: Any = llama(64)
    p = Parametrization(model, base=llama(32))
    model.resize_token_embeddings(50)
    with pytest.raises(ValueError, match="lm_head: replaced since Parametrization"):
        p.capture_initial()


def test_a_tied_head_keeps_its_multiplier_when_transformers_resizes() -> None:
    model: Any = qwen3(64)
    p = Parametrization(model, base=qwen3(32))
    model.resize_token_embeddings(50)
    p.capture_initial()
    assert model.lm_head is p.sites["lm_head"]
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_fused_transposed_projection_is_measured_as_its_matrix() -> None:
    torch.manual_seed(0)
    model, batch = gpt2(64), MODELS["gpt2"].batch()
    p = Parametrization(model, base=gpt2(32), sample_input=batch)
    p.capture_initial(batch)
    with torch.no_grad():
        for weight in p.weights.values():
            weight += 0.01 * torch.randn_like(weight)
    z0_dw, dz_w0, dz_dw = p.measure()["transformer.h.1.mlp.c_proj"]
    assert z0_dw is not None
    assert abs(z0_dw - 0.5) < 0.05  # a random dW
    assert dz_w0 is not None
    assert dz_dw is not None


def test_a_tied_head_of_transformers_stays_tied_in_training() -> None:
    model: Any = qwen3(64)
    p = Parametrization(model, base=qwen3(32))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert p.sites["lm_head"].scale == pytest.approx(2**-0.5)
    assert p.sites["model.embed_tokens"].scale == pytest.approx(2**0.5)
