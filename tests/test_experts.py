"""Experts are measured at the tokens that they read with the initial and the current weights."""

import copy
import logging
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers as hf
from moe_models import EXPERTS, FEATURES, MoE
from test_alignment import by_definition
from torch import nn

from maxp import Parametrization, mark
from maxp.matching import NO_TOKENS, UNMATCHED, common, sampled
from maxp.rows import UNKNOWN, RowTokens

WAYS = ("index", "mask", "sort", "product", "buffer", "choose")


def batch(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 13, FEATURES, generator=generator, dtype=torch.float64)


def built(kind: str = "index", **settings: Any) -> tuple[MoE, Parametrization, MoE]:
    """A model, and a twin that keeps its initial weights."""
    torch.manual_seed(0)
    model = MoE(kind=kind).double()
    p = Parametrization(model, base=MoE(8), seed=1, **{"sample_size": 1000, **settings})
    return model, p, copy.deepcopy(model)


@torch.no_grad()
def change(model: nn.Module, size: float = 0.3) -> None:
    """Change all weights, so that tokens move to other experts."""
    generator = torch.Generator().manual_seed(5)
    for weight in model.parameters():
        weight += size * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


@torch.no_grad()
def empty_the_first_expert(model: MoE) -> None:
    model.embed.weight.mul_(0.01)
    model.embed.bias.fill_(1.0)
    model.router.weight[0] = -100.0


@torch.no_grad()
def reads(model: MoE, x: torch.Tensor) -> dict[str, dict[int, torch.Tensor]]:
    """For both layers of each expert, the input by token; tokens are known by construction."""
    h = model.embed(x).flatten(0, 1)
    _, chosen = model.route(h)
    if model.kind == "choose":
        tokens = model.router(h).softmax(-1).T.topk(len(h) // 2).indices
        chosen = torch.zeros(len(h), EXPERTS).scatter(0, tokens.T, 1.0)
        chosen = torch.where(chosen > 0, torch.arange(EXPERTS), -1)
    inputs: dict[str, dict[int, torch.Tensor]] = {}
    for i, expert in enumerate(model.experts):
        tokens = (chosen == i).any(-1).nonzero()[:, 0].tolist()
        inputs[f"experts.{i}.up"] = {t: h[t] for t in tokens}
        inputs[f"experts.{i}.down"] = {t: F.silu(expert.up(h[t])) for t in tokens}
    return inputs


def expected(model: MoE, twin: MoE, x: torch.Tensor, name: str) -> tuple[float | None, ...] | None:
    """The definition on the tokens that an expert reads in both models; None if there are none."""
    before, now = reads(twin, x)[name], reads(model, x)[name]
    if not (tokens := sorted(before.keys() & now.keys())):
        return None
    z0, z = (torch.stack([of[t] for t in tokens]) for of in (before, now))
    w0, w = (m.get_submodule(name).weight.detach() for m in (twin, model))
    return by_definition(z0, w0, z, w, w.shape[1])


@pytest.mark.parametrize("probe", [True, False], ids=["a fixed probe", "any batch"])
@pytest.mark.parametrize("kind", WAYS)
def test_tokens_are_compared_by_identity_when_routing_moves(kind: str, probe: bool) -> None:
    model, p, twin = built(kind)
    x = batch()
    p.capture_initial(x if probe else None)
    change(model)
    measured = p.measure(x)
    before, now = reads(twin, x), reads(model, x)
    assert any(before[n].keys() != now[n].keys() for n in before)
    for name in before:
        values = expected(model, twin, x, name)
        assert values is not None
        assert measured[name] == pytest.approx(values, abs=1e-9), name
    assert not p.unmatched
    assert {"router", "after", "head"} <= measured.keys()


def test_positions_would_have_compared_other_tokens() -> None:
    """The number of rows can be equal although the tokens are others."""
    model, p, twin = built()
    x = batch()
    p.capture_initial(x)
    change(model)
    name = "experts.0.up"
    before, now = (list(reads(m, x)[name].values()) for m in (twin, model))
    count = min(len(before), len(now))
    z0, z = torch.stack(before[:count]), torch.stack(now[:count])
    w0, w = (m.experts[0].up.weight.detach() for m in (twin, model))
    by_position = by_definition(z0, w0, z, w, 16)
    assert by_position[1] != pytest.approx(p.measure(x)[name][1], abs=1e-3)


def test_an_expert_without_tokens_keeps_its_exponents_and_is_counted() -> None:
    model, p, twin = built()
    x = batch()
    p.capture_initial()
    change(model, 0.1)
    p.measure(x)
    kept = p.alignment["experts.0.up"]
    empty_the_first_expert(model)
    assert not reads(model, x)["experts.0.up"]
    measured = p.measure(x)
    assert measured["experts.0.up"] == (None, None, None)
    assert p.alignment["experts.0.up"] == kept
    assert {"experts.0.up", "experts.0.down"} <= p.without_tokens.keys()
    assert p.without_tokens["experts.0.up"] == 1
    assert p.zero_terms["experts.0.up"] == 0
    assert expected(model, twin, x, "experts.0.up") is None


def test_an_expert_that_no_token_reaches_at_the_start_is_measured_later() -> None:
    model, p, _ = built()
    x = batch()
    empty_the_first_expert(model)
    p.capture_initial(x)
    assert p.measure(x)["experts.0.up"] == (None, None, None)
    assert p.measure(x)["experts.1.up"][0] is None  # no update yet
    assert p.without_tokens["experts.0.up"] == 2


def test_rows_of_unknown_tokens_are_counted_and_not_compared(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, p, _ = built("slices")
    p.capture_initial(batch())
    change(model)
    kept = p.alignment["experts.1.up"]
    with caplog.at_level(logging.WARNING, logger="maxp"):
        measured = p.measure(batch())
    assert measured["experts.1.up"] == (None, None, None)
    assert p.alignment["experts.1.up"] == kept
    assert p.unmatched["experts.1.up"] == 1
    assert "experts.1.up: not measured" in caplog.text
    assert None not in measured["router"]


def test_activations_of_training_do_not_tell_tokens() -> None:
    model, p, _ = built(use_training_activations=True)
    x = batch()
    p.capture_initial(x)
    change(model)
    model(x)
    measured = p.measure()
    assert p.unmatched.keys() == {
        f"experts.{i}.{n}" for i in range(EXPERTS) for n in ("up", "down")
    }
    assert None not in measured["after"]


def test_what_selects_rows_of_a_weight_leaves_tokens_in_position() -> None:
    torch.manual_seed(0)
    table, silent, head = nn.Linear(5, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 4)
    nn.init.zeros_(silent.weight)
    numbers = torch.tensor([3, 3, 1])
    with torch.no_grad(), RowTokens() as rows:
        h = table(F.one_hot(numbers, 5).float())
        assert rows.of(h) is None
        assert rows.of(silent.weight[numbers]) is None
        assert rows.of(h + head(silent(h))[:, :1]) is None


def test_a_compiled_model_is_measured_as_it_is() -> None:
    x = batch()
    measured = []
    for compiles in (True, False):
        model, p, _ = built()
        if compiles:
            model.compile(backend="eager")
            model(x)
        p.capture_initial()
        change(model)
        measured.append(p.measure(x))
    for name, values in measured[0].items():
        assert values == pytest.approx(measured[1][name], abs=1e-12)


def test_counts_and_recorded_tokens_are_resumed() -> None:
    model, p, _ = built()
    x = batch()
    p.capture_initial(x)
    change(model)
    p.without_tokens["experts.0.up"] = 3
    state = copy.deepcopy(p.state_dict())
    again, resumed, _ = built()
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(state)
    assert resumed.without_tokens == {"experts.0.up": 3}
    assert resumed.measure(x) == p.measure(x)


# Samples


def test_a_sample_depends_on_the_tokens_alone() -> None:
    tokens = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    few = sampled(tokens, 20)
    assert set(tokens[few].tolist()) == set(sampled(torch.arange(500), 20).tolist())
    there = tokens[tokens % 3 > 0]
    kept = set(tokens[few][tokens[few] % 3 > 0].tolist())
    assert kept <= set(there[sampled(there, 20)].tolist())


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        ([3, 5, 8], [8, 3, 9], [3, 8]),
        ([3, 3, 5], [5, 3, 3], [5]),  # equal numbers that moved cannot be told apart
        ([3, 3, 5], [3, 3, 5], [3, 3, 5]),
        ([3, -1, 5], [-1, 5, -2], [5]),
        ([1, 2], [3], NO_TOKENS),
        ([1, 2], [], NO_TOKENS),
        ([-1], [1], UNMATCHED),
        (None, [1], NO_TOKENS),
    ],
)
def test_rows_are_matched_by_their_tokens(before: Any, now: Any, same: Any) -> None:
    def inputs(tokens: list[int] | None) -> Any:
        if tokens is None:
            return None
        numbers = torch.tensor(tokens, dtype=torch.long)
        return numbers[:, None].expand(-1, 2).double(), numbers

    matched = common(inputs(before), inputs(now))
    if isinstance(same, str):
        assert matched == same
    else:
        z0, z = matched
        assert z0[:, 0].tolist() == z[:, 0].tolist() == same


def test_rows_in_position_are_compared_only_if_there_are_as_many() -> None:
    x = torch.randn(3, 2)
    assert common((x,), (x[:2],)) == UNMATCHED
    assert common((x,), (x, torch.arange(3))) == UNMATCHED


# transformers


def fused(kind: str, implementation: str, width: int = 32) -> nn.Module:
    sizes = {
        "hidden_size": width, "num_hidden_layers": 2, "num_attention_heads": width // 16,
        "num_key_value_heads": width // 16, "head_dim": 16, "vocab_size": 24, "use_cache": False,
        "num_experts_per_tok": 2, "experts_implementation": implementation,
    }  # fmt: skip
    if kind == "mixtral":
        config = hf.MixtralConfig(**sizes, intermediate_size=2 * width, num_local_experts=EXPERTS)
        return hf.MixtralForCausalLM(config)
    config = hf.Qwen3MoeConfig(
        **sizes, intermediate_size=2 * width, moe_intermediate_size=width, num_experts=EXPERTS
    )
    return hf.Qwen3MoeForCausalLM(config)


@torch.no_grad()
def reads_fused(model: Any, x: torch.Tensor) -> dict[tuple[str, int], dict[int, torch.Tensor]]:
    """The input by token of each expert of the second layer, from plain products."""
    seen: list[Any] = []
    experts = model.model.layers[1].mlp.experts
    hook = experts.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(x)
    hook.remove()
    (h, chosen, _) = seen[0]
    inputs: dict[tuple[str, int], dict[int, torch.Tensor]] = {}
    for e in range(EXPERTS):
        tokens = (chosen == e).any(-1).nonzero()[:, 0].tolist()
        gate, up = (experts.gate_up_proj[e] @ h[tokens].T).chunk(2)
        inputs["gate_up_proj", e] = {t: h[t] for t in tokens}
        inner = (F.silu(gate) * up).T
        inputs["down_proj", e] = dict(zip(tokens, inner, strict=True))
    return inputs


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
@pytest.mark.parametrize("kind", ["mixtral", "qwen3 moe"])
def test_fused_experts_of_transformers_are_measured_one_by_one(
    kind: str, implementation: str
) -> None:
    torch.manual_seed(0)
    model = fused(kind, implementation).double()
    if implementation == "grouped_mm":  # which has no float64
        model.float()
    p = Parametrization(model, base=fused(kind, implementation, 16), seed=1, sample_size=1000)
    twin = copy.deepcopy(model)
    x = torch.randint(24, (3, 9))
    p.capture_initial()
    change(model, 0.1)
    measured = p.measure(x)
    before, now = reads_fused(twin, x), reads_fused(model, x)
    assert any(before[key].keys() != now[key].keys() for key in before)
    for parameter in ("gate_up_proj", "down_proj"):
        w0, w = (getattr(m.model.layers[1].mlp.experts, parameter).detach() for m in (twin, model))
        values = []
        for e in range(EXPERTS):
            one, two = before[parameter, e], now[parameter, e]
            tokens = sorted(one.keys() & two.keys())
            z0, z = (torch.stack([of[t] for t in tokens]) for of in (one, two))
            halves = 2 if parameter == "gate_up_proj" else 1
            blocks = zip(w0[e].chunk(halves), w[e].chunk(halves), strict=True)
            values += [by_definition(z0, a, z, b, w.shape[2]) for a, b in blocks]
        largest = [max(terms) for terms in zip(*values, strict=True)]
        name = f"model.layers.1.mlp.experts.{parameter}"
        tolerance = 1e-5 if implementation == "grouped_mm" else 1e-9
        assert measured[name] == pytest.approx(largest, abs=tolerance)


def test_routers_are_readouts() -> None:
    types = {w.name: w.layer_type for w in mark(MoE(16), MoE(8)).weights}
    assert types["router"] == "readout"
    assert types["experts.0.up"] == types["experts.3.down"] == "hidden"
    plan = mark(fused("mixtral", "eager"), fused("mixtral", "eager", 16))
    types = {w.name: w.layer_type for w in plan.weights}
    assert types["model.layers.0.mlp.gate"] == "readout"
    assert types["model.layers.0.mlp.experts.gate_up_proj"] == "hidden"


@pytest.mark.parametrize("order", ["sort", "topk"])
def test_rows_sorted_column_by_column_are_of_unknown_tokens(order: str) -> None:
    x = torch.randn(6, 4)
    with torch.no_grad(), RowTokens() as rows:
        h = x[torch.tensor([2, 0, 5])] * 2
        assert rows.of(h).tolist() == [2, 0, 5]  # type: ignore[union-attr]
        in_order = h.sort(dim=0).values if order == "sort" else h.topk(2, dim=0).values
        assert set(rows.of(in_order).tolist()) == {UNKNOWN}  # type: ignore[union-attr]
