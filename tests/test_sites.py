"""Kinds of sites: tied, fused, frozen, with a padding row; and what is refused."""

import logging
from typing import Any

import pytest
import torch
from plain_models import GPT, tokens
from torch import nn

from maxp import PARAMETRIZATIONS, Parametrization, ParametrizedModule, mark


def rms(x: torch.Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


def tied(width: int) -> GPT:
    return GPT(width, 1, tied=True)


# Tied weights


def test_a_tied_weight_has_two_multipliers_one_std_and_one_learning_rate() -> None:
    model, base = tied(64), tied(16)
    p = Parametrization(model, base=base, lr_prefactor=1.0)
    assert (model.embed.scale, model.head.scale) == pytest.approx((2.0, 0.5))
    assert rms(model.embed.weight) == pytest.approx(rms(base.embed.weight) / 2, rel=0.1)
    assert model.head.weight is model.embed.weight
    assert "head" not in p.weights
    assert p.lrs()["embed"] == pytest.approx(0.5)
    groups = [g["name"] for g in p.param_groups if any(q is model.head.weight for q in g["params"])]
    assert groups == ["embed"]


def test_the_bias_of_a_tied_head_starts_at_zero() -> None:
    def make(width: int) -> nn.Module:
        model = nn.ModuleDict({"embed": nn.Embedding(32, width), "head": nn.Linear(width, 32)})
        model["head"].weight = model["embed"].weight
        return model

    model = make(64)
    Parametrization(model, base=make(16))
    assert not model.get_parameter("head.bias").any()


@pytest.mark.parametrize("ab", PARAMETRIZATIONS)
def test_the_roles_of_a_tied_weight_keep_their_own_sums_of_a_and_b(ab: str) -> None:
    model, base = tied(64), tied(16)
    Parametrization(model, base=base, ab_overrides=PARAMETRIZATIONS[ab])
    m, sigma = 4, rms(model.embed.weight) / rms(base.embed.weight)
    sums = {kind: a + b for kind, (a, b) in PARAMETRIZATIONS[ab].items()}
    assert model.embed.scale * sigma == pytest.approx(m ** -sums["embedding"], rel=0.1)
    assert model.head.scale * sigma == pytest.approx(m ** -sums["readout"], rel=0.1)


def test_a_tied_weight_takes_the_smaller_learning_rate_and_says_what_it_costs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Alone, a readout without alignment would ask for c = 0; the embedding asks for 1/2.
    with caplog.at_level(logging.INFO):
        p = Parametrization(tied(64), base=tied(16), alignment="no", lr_prefactor=1.0)
    assert p.lrs()["embed"] == pytest.approx(0.5)
    assert "head shares its weight with embed" in caplog.text
    assert "smaller of the learning rates" in caplog.text


def test_a_tied_readout_is_measured_and_stepped() -> None:
    torch.manual_seed(0)
    model = tied(64)
    p = Parametrization(model, base=tied(16), sample_input=tokens(), lr_prefactor=1e-2)
    optimizer = torch.optim.AdamW(p.param_groups)
    p.capture_initial(tokens())
    for seed in range(2):
        logits = model(tokens(seed))
        nn.functional.cross_entropy(logits.flatten(0, 1), tokens(seed).flatten()).backward()
        optimizer.step()
        p.step(tokens(seed), optimizer)
    assert None not in p.measured["head"]
    assert all(r >= -1e-9 for r in p.r.values())


def test_a_c_for_the_second_role_of_a_tied_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="head has the weight of embed; give c for embed"):
        Parametrization(tied(64), base=tied(16), c_overrides={"head": 1.0})


# Fused projections


class Projections(nn.Module):
    """q, k and v of one size, separate or fused, between an embedding and a readout."""

    def __init__(self, width: int, *, fused: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, width), nn.Linear(width, 4)
        if fused:
            self.qkv = nn.Linear(width, 3 * width)
        else:
            self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.embed(x)
        q, k, v = self.qkv(z).chunk(3, -1) if hasattr(self, "qkv") else [
            layer(z) for layer in (self.q, self.k, self.v)
        ]  # fmt: skip
        return self.head(torch.softmax(q @ k.mT, -1) @ v)


@pytest.mark.parametrize("alignment", ["full", "no"])
@pytest.mark.parametrize("optimizer_type", ["adam", "sgd"])
@pytest.mark.parametrize("ab", PARAMETRIZATIONS)
def test_a_fused_projection_has_the_exponents_of_its_parts(
    ab: str, optimizer_type: Any, alignment: str
) -> None:
    def c(fused: bool) -> dict[str, float]:
        model, base = Projections(64, fused=fused), Projections(16, fused=fused)
        return Parametrization(
            model, base=base, ab_overrides=PARAMETRIZATIONS[ab], optimizer_type=optimizer_type,
            alignment=alignment, sample_input=torch.zeros(5, 6),
        ).c  # fmt: skip

    one, parts = c(True), c(False)
    assert [parts[n] for n in "qkv"] == pytest.approx([one["qkv"]] * 3, abs=1e-6)
    assert (one["embed"], one["head"]) == pytest.approx((parts["embed"], parts["head"]), abs=1e-6)


# Frozen weights and padding


def test_a_frozen_site_keeps_its_weight_and_has_no_c_and_no_learning_rate() -> None:
    model = GPT(64, 1)
    model.embed.requires_grad_(False)
    model.blocks[0].fc.requires_grad_(False)
    kept = [model.embed.weight.clone(), model.blocks[0].fc.weight.clone()]
    bias = model.blocks[0].fc.bias.clone()
    p = Parametrization(model, base=GPT(16, 1), sample_input=tokens())
    torch.testing.assert_close(
        [model.embed.weight, model.blocks[0].fc.weight], kept, rtol=0, atol=0
    )
    torch.testing.assert_close(model.blocks[0].fc.bias, bias, rtol=0, atol=0)
    assert model.embed.scale == model.blocks[0].fc.scale == 1.0
    assert not {"embed", "blocks.0.fc"} & {*p.c, *p.weights, *p.measured}
    assert {"embed", "blocks.0.fc"} <= p.graph.nodes.keys()
    named = {g["name"]: g["params"] for g in p.param_groups}
    assert not {"embed", "blocks.0.fc"} & named.keys()
    assert all(q.requires_grad for params in named.values() for q in params)
    assert "frozen" in str(p.plan)


def test_a_weight_that_is_frozen_or_not_any_more_after_a_resume_has_its_own_c() -> None:
    def trained(frozen: str | None, state: Any = None) -> tuple[nn.Module, Parametrization, Any]:
        model = nn.Sequential(nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 4))
        base = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 4))
        if frozen is not None:
            model.get_submodule(frozen).requires_grad_(False)
        p = Parametrization(model, base=base)
        optimizer = torch.optim.AdamW(p.param_groups)
        if state is None:
            p.capture_initial()
        else:
            model.load_state_dict(state["model"])
            p.load_state_dict(state["maxp"])
            p.apply(optimizer)
        x = torch.randn(16, 8)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            p.step(x, optimizer)
        return model, p, {"model": model.state_dict(), "maxp": p.state_dict()}

    _, p, state = trained("1")
    assert p.c.keys() == {"0", "2"}
    _, p, state = trained(None, state)
    assert p.c.keys() == p.measured.keys() | {"0"} == {"0", "1", "2"}
    assert p.c["1"] != 1.0
    _, p, _ = trained("1", state)
    assert p.c.keys() == {"0", "2"}


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_row_for_padding_stays_zero(wrapped: bool) -> None:
    class Padded(GPT):
        def __init__(self, width: int) -> None:
            super().__init__(width, 1)
            table = nn.Embedding(24, width, padding_idx=3)
            self.embed = ParametrizedModule(table, width, "embedding") if wrapped else table  # type: ignore[assignment]

    model = nn.ModuleList([Padded(64).embed]) if wrapped else Padded(64)
    p = Parametrization(model, base=None if wrapped else Padded(16))
    weight = p.weights["0" if wrapped else "embed"]
    assert not weight[3].any()
    assert weight[2].all()


# What is refused


@pytest.mark.parametrize("n", [999, 64.5, float("nan")])
def test_a_width_that_is_no_dimension_of_the_weight_is_refused(n: Any) -> None:
    with pytest.raises(ValueError, match=r"width_dim (must be a whole number|999 is no dimension)"):
        Parametrization(nn.Sequential(ParametrizedModule(nn.Linear(64, 64), n)))


def test_a_gain_as_a_site_is_refused_by_name() -> None:
    model = nn.Sequential(ParametrizedModule(nn.LayerNorm(64), 64))
    with pytest.raises(ValueError, match=r"0: a weight of shape 64 is a gain or bias.*LayerNorm"):
        Parametrization(model)


def test_a_matrix_that_grows_and_is_not_marked_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Half(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed = ParametrizedModule(nn.Linear(6, width), width, "embedding")
            self.forgotten, self.fixed = nn.Linear(width, width), nn.Linear(5, 5)

    with caplog.at_level(logging.WARNING):
        Parametrization(Half(64), base=Half(16))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("forgotten.weight grows with the width and is not marked")


def test_a_head_that_is_not_marked_and_tied_to_an_embedding_that_is_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def tied(width: int) -> nn.Module:
        embed = ParametrizedModule(nn.Embedding(6, width), width, "embedding")
        head = nn.Linear(width, 6, bias=False)
        head.weight = embed.op.weight
        return nn.ModuleDict({"embed": embed, "head": head})

    Parametrization(tied(64), base=tied(16))
    (message,) = caplog.messages
    assert message.startswith("head.weight grows with the width and is not marked")


def test_an_optimizer_without_a_sites_group_is_refused_by_name() -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1))
    optimizer = torch.optim.AdamW([g for g in p.param_groups if g["name"] != "blocks.0.fc"])
    with pytest.raises(ValueError, match=r"the optimizer has no group of blocks\.0\.fc; build it"):
        p.apply(optimizer)


def test_an_optimizer_without_the_rest_is_warned_of_once_by_the_names_of_its_parameters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1))
    optimizer = torch.optim.AdamW([g for g in p.param_groups if g["name"] != p.rest])
    p.apply(optimizer)
    p.apply(optimizer)
    (message,) = caplog.messages
    assert message.startswith("no param group holds blocks.0.norm1.weight, blocks.0.norm1.bias, ")


def test_parameters_of_the_rest_may_be_frozen_and_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1))
    *groups, rest = p.param_groups
    for parameter in rest["params"]:
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(groups)
    p.apply(optimizer)
    assert not caplog.messages


@pytest.mark.parametrize("values", [(1.2, 0.5, 1.0), (1.0, -0.1, 1.0), (float("nan"), 0.5, 0.5)])
def test_an_alignment_out_of_range_is_refused_by_its_key(values: Any) -> None:
    with pytest.raises(
        ValueError, match=r"alignment_overrides: fc must be three numbers in \[0, 1"
    ):
        Parametrization(GPT(64, 1), base=GPT(16, 1), alignment_overrides={"fc": values})


def test_a_plan_of_another_model_is_refused() -> None:
    plan = mark(GPT(64, 1), GPT(16, 1))
    with pytest.raises(ValueError, match="the plan is of another model"):
        Parametrization(GPT(64, 1), base=plan)


def test_a_state_with_other_multipliers_is_refused_by_name() -> None:
    p = Parametrization(GPT(64, 1), base=GPT(16, 1))
    other = Parametrization(GPT(64, 1), base=GPT(32, 1))
    with pytest.raises(ValueError, match=r"embed: the state is of a model whose multiplier is 2,"):
        other.load_state_dict(p.state_dict())
    state = {key: value for key, value in p.state_dict().items() if key != "scales"}
    other.load_state_dict(state)  # of an earlier version


@pytest.mark.parametrize("kinds", [("adam", "sgd"), ("sgd", "adam")])
def test_a_state_of_another_type_of_optimizer_is_refused(kinds: tuple[str, str]) -> None:
    one, other = (
        Parametrization(GPT(64, 1), base=GPT(16, 1), optimizer_type=kind)  # type: ignore[arg-type]
        for kind in kinds
    )
    with pytest.raises(ValueError, match="a run with another optimizer_type"):
        other.load_state_dict(one.state_dict())
    one.load_state_dict(one.state_dict())


def test_a_model_without_sites_and_without_a_base_is_refused() -> None:
    with pytest.raises(ValueError, match="no site found: pass a base, wrap layers"):
        Parametrization(GPT(64, 1))
