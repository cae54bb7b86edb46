"""Tracing: the sources of every site against sets derived by hand, on the CPU and on meta."""

from collections.abc import Callable
from typing import Any

import models
import pytest
import torch
import torch.nn.functional as F
from models import FEATURES, MLP, linear
from torch import nn
from torch.utils.checkpoint import checkpoint

from maxp import (
    Alignment,
    Graph,
    Parametrization,
    ParametrizedModule,
    diagnose_axis,
    mark,
    trace,
)
from maxp.module import LayerType

Sources = dict[str, list[set[str]]]
DEVICES = ["cpu", "meta"]


def sources(graph: Graph) -> Sources:
    """For each site the sources of each of its operands."""
    return {s.name: [models.sources(graph, o) for o in s.operands] for s in graph.sites}


class Wired(nn.Module):
    """Hidden sites a to d of width 8, wired by a function of (model, x)."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (linear(8, 8) for _ in range(4))
        self.forward = forward.__get__(self)


def wired(forward: Callable[[Any, torch.Tensor], Any], device: str = "cpu") -> Sources:
    with torch.device(device):
        return sources(trace(Wired(forward), torch.randn(2, 3, 8)))


# Single operations. Each returns what it computes, so that every site is used.


def in_place_sum(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h += m.b(x)
    return m.d(m.c(h))


def out_of_place_sum(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(m.c(m.a(x) + m.b(x)))


def sum_written_into_out(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    torch.add(m.a(x), m.b(x), out=out)
    return m.d(m.c(out))


def product(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(m.c(torch.sigmoid(m.a(x)) * m.b(x)))


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a * b

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError


def custom_autograd_function(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(m.c(Product.apply(m.a(x), m.b(x))))


def pieces_of_a_buffer(m: Any, x: torch.Tensor) -> torch.Tensor:
    buffer = x.new_empty(2, 6, 8)
    buffer[:, :3] = m.a(x)
    buffer[:, 3:].copy_(m.b(x))
    return m.d(m.c(buffer))


def concatenation(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(m.c(torch.cat([m.a(x), m.b(x)], 1)))


def scatter(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x)
    h[:, torch.tensor([0, 2], device=x.device)] = m.b(x)[:, :2]
    return m.d(m.c(h))


def foreach(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = [m.a(x)]
    torch._foreach_add_(h, [m.b(x)])
    return m.d(m.c(h[0]))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "forward",
    [
        in_place_sum,
        out_of_place_sum,
        sum_written_into_out,
        product,
        custom_autograd_function,
        pieces_of_a_buffer,
        concatenation,
        scatter,
        foreach,
    ],
)
def test_what_mixes_two_values_has_both_sources(forward: Any, device: str) -> None:
    assert wired(forward, device) == {"a": [set()], "b": [set()], "c": [{"a", "b"}], "d": [{"c"}]}


def views(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(m.c(m.b(m.a(x).transpose(0, 1)[1:].flip(0).reshape(2, 2, 8)[..., None, :])))


def view_whose_base_is_gone(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = m.a(x).transpose(0, 1)
    h = m.b(h.transpose(0, 1)).view(-1, 8)
    return m.d(m.c(h.unsqueeze(0)))


def write_through_a_view(m: Any, x: torch.Tensor) -> torch.Tensor:
    base = torch.zeros_like(x)
    base.view(-1)[:24] += m.a(x).flatten()[:24]
    return m.d(m.c(m.b(base)))


def complex_rotation(m: Any, x: torch.Tensor) -> torch.Tensor:
    h = torch.view_as_complex(m.a(x).unflatten(-1, (-1, 2)))
    turned = torch.view_as_real(h * torch.ones_like(h)).flatten(-2)
    return m.d(m.c(m.b(turned)))


def checkpointed(m: Any, x: torch.Tensor) -> torch.Tensor:
    return m.d(checkpoint(lambda z: m.c(m.b(z)), m.a(x), use_reentrant=False))


def buffer_filled_twice(m: Any, x: torch.Tensor) -> torch.Tensor:
    buffer = torch.empty_like(x)
    for site in (m.a, m.b, m.c):
        buffer.copy_(site(buffer if site is not m.a else x))
    return m.d(buffer)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "forward",
    [
        views,
        view_whose_base_is_gone,
        write_through_a_view,
        complex_rotation,
        checkpointed,
        buffer_filled_twice,
    ],
)
def test_what_passes_one_value_on_keeps_its_source(forward: Any, device: str) -> None:
    assert wired(forward, device) == {"a": [set()], "b": [{"a"}], "c": [{"b"}], "d": [{"c"}]}


def test_data_that_joins_a_value_is_no_source() -> None:
    wiring = wired(lambda m, x: m.d(m.c(m.b(m.a(x) + x) * x)))
    assert wiring == {"a": [set()], "b": [{"a"}], "c": [{"b"}], "d": [{"c"}]}


def test_a_site_deep_in_the_model_may_be_fed_by_data() -> None:
    wiring = wired(lambda m, x: m.d(m.a(x) + m.b(m.c(x)) + x))
    assert wiring["b"] == [{"c"}]
    assert wiring["c"] == [set()]
    assert wiring["d"] == [{"a", "b"}]


def test_a_value_that_is_overwritten_is_no_source() -> None:
    wiring = wired(lambda m, x: m.d(m.c(m.b(m.a(x).zero_()))))
    assert wiring["b"] == [set()]


def test_a_value_that_is_overwritten_in_part_still_is_a_source() -> None:
    def forward(m: Any, x: torch.Tensor) -> torch.Tensor:
        h = m.a(x)
        h[:, 0].copy_(m.b(x)[:, 0])
        return m.d(m.c(h))

    assert wired(forward)["c"] == [{"a", "b"}]


@pytest.mark.parametrize("device", DEVICES)
def test_values_given_to_an_attention_in_one_call_join_its_result(device: str) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.o = (linear(8, 8) for _ in range(4))
            self.mix = ParametrizedModule(
                lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=1.0), 8, a=0.0
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.o(self.mix(self.q(x), self.k(x), v=self.v(x)))

    with torch.device(device):
        wiring = sources(trace(Attention(), torch.randn(2, 3, 8)))
    assert wiring["mix"] == [{"q"}, {"k"}]
    assert wiring["o"] == [{"mix", "v"}]


# How the model is called, and what is left of it


@pytest.mark.parametrize(
    "sample",
    [
        (torch.randn(2, 8), torch.randn(2, 8)),
        [torch.randn(2, 8), torch.randn(2, 8)],
        {"y": torch.randn(2, 8), "x": torch.randn(2, 8)},
    ],
    ids=["tuple", "list", "dict"],
)
def test_a_sample_may_hold_several_arguments(sample: Any) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = linear(8, 8), linear(8, 8)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(x) + y)

    assert sources(trace(Two(), sample)) == {"a": [set()], "b": [{"a"}]}


def test_a_sample_on_the_cpu_does_for_a_model_on_meta() -> None:
    with torch.device("meta"):
        model = nn.Sequential(linear(8, 8), nn.LayerNorm(8), linear(8, 8))
    assert sources(trace(model, torch.randn(2, 8)))["2"] == [{"0"}]


def test_every_module_keeps_its_mode_its_hooks_and_its_gradients() -> None:
    model = nn.Sequential(linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8), linear(8, 8))
    model.train()
    model[2].eval()  # a layer that the user has frozen
    modes = [m.training for m in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    trace(model, torch.randn(4, 8))
    assert [m.training for m in model.modules()] == modes
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_modes_and_hooks_are_restored_after_a_forward_pass_that_fails() -> None:
    model = MLP()
    with pytest.raises(RuntimeError):
        trace(model, torch.randn(4, FEATURES + 1))
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_site_that_is_not_reached_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="does not reach b, d;"):
        wired(lambda m, x: m.c(m.a(x)))


def test_each_call_of_a_looped_site_is_a_node_with_the_first_ones_exponents() -> None:
    model = Wired(lambda m, x: m.d(m.c(m.b(m.b(m.b(m.a(x)))))))
    graph = trace(model, torch.randn(2, 3, 8))
    calls = {n.name: (n.operands, n.site, n.owner) for n in graph.sites if n.site == "b"}
    assert calls == {
        "b": (("a",), "b", "b"),
        "b (call 2)": (("b",), "b", "b"),
        "b (call 3)": (("b (call 2)",), "b", "b"),
    }
    assert [site.name for site in graph.weighted] == ["a", "b", "c", "d"]


def test_calls_with_the_same_operands_are_one_node() -> None:
    assert list(wired(lambda m, x: m.d(m.c(m.b(h := m.a(x)) + m.b(2 * h))))) == list("abcd")


def test_a_model_without_sites_is_refused() -> None:
    with pytest.raises(ValueError, match="no site found"):
        trace(nn.Linear(2, 2), torch.zeros(1, 2))


# Weights that are read outside their modules


class HeadByCall(nn.Module):
    """A head that is the embedding's weight, by a function call or by a module of its own."""

    def __init__(self, width: int, *, module: bool = False) -> None:
        super().__init__()
        self.embed, self.layer = nn.Embedding(24, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 24, bias=False) if module else None
        if self.head is not None:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.embed(tokens))
        return F.linear(x, self.embed.weight) if self.head is None else self.head(x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("module", [False, True])
def test_a_weight_that_is_read_outside_its_module_is_warned_of(
    module: bool, device: str, caplog: pytest.LogCaptureFixture
) -> None:
    with torch.device(device):
        model, base = (HeadByCall(width, module=module) for width in (64, 16))
    Parametrization(model, base=base, sample_input=torch.arange(8))
    messages = [m for m in caplog.messages if "outside its module" in m]
    assert len(messages) == (0 if module else 1)
    if not module:
        assert messages[0].startswith("embed: its weight is read outside its module")
        assert "head.weight = embed.weight" in messages[0]


class WeightByCall(nn.Module):
    """A hidden layer that is never called, as qkv in timm's BEiT and EVA."""

    def __init__(self, width: int, *, head_by_call: bool = False) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(FEATURES, width), nn.Linear(width, width, bias=False)
        self.out, self.head_by_call = nn.Linear(width, 3), head_by_call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(self.embed(x), self.qkv.weight, self.embed.bias).relu()
        return F.linear(x, self.out.weight) if self.head_by_call else self.out(x)


def by_call(width: int, x: Any, device: str = "cpu") -> Parametrization:
    torch.manual_seed(width)
    with torch.device(device):
        base, model = WeightByCall(16), WeightByCall(width)
    return Parametrization(model, base=base, lr_prefactor=1e-3, sample_input=x)


@pytest.mark.parametrize("device", DEVICES)
def test_a_hidden_layer_whose_weight_other_code_reads_feeds_what_follows(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    p = by_call(64, torch.zeros(2, FEATURES), device)
    assert sources(p.graph) == {"embed": [set()], "qkv": [{"embed"}], "out": [{"qkv"}]}
    (message,) = caplog.messages
    assert message.startswith("qkv: the module is never called, since other code reads its weight")


def test_its_alignment_stays_that_of_the_preset_while_others_are_measured() -> None:
    x = torch.randn(8, FEATURES)
    p = by_call(64, x)
    optimizer = torch.optim.Adam(p.param_groups)
    p.capture_initial()
    for _ in range(3):
        p.model(x).square().mean().backward()
        optimizer.step()
        p.step(x, optimizer)
    assert p.alignment["qkv"] == Alignment(1.0, 0.5, 1.0)
    assert p.alignment["out"] != Alignment(1.0, 0.5, 1.0)


def test_a_readout_that_is_never_called_has_no_multiplier_and_is_refused() -> None:
    models = [WeightByCall(width, head_by_call=True) for width in (64, 16)]
    with pytest.raises(ValueError, match="does not reach out;"):
        Parametrization(models[0], base=models[1], sample_input=torch.zeros(2, FEATURES))


def test_the_coordinate_check_judges_it_by_its_exponents() -> None:
    x = torch.randn(8, FEATURES)

    def make(width: int, factor: float) -> tuple[nn.Module, Any]:
        p = by_call(width, x)
        for group in p.param_groups:
            group["lr"] *= width**factor if group["name"] == "qkv" else 1
        return p.model, p.param_groups

    for factor, wrong in ((0.0, False), (1.0, True)):
        names, affected, _ = diagnose_axis(
            lambda width, factor=factor: make(width, factor),
            lambda _: x,
            [32, 64, 128],
            progress=False,
        )
        assert names == ["embed", "qkv", "out"]
        assert ("qkv" in affected) == wrong


class BareProjections(nn.Module):
    """Parameters of two dimensions, of which one grows: what is contracted is not in their names.

    Args:
        width: n.
        products: whether heads are contracted by a product of matrices.
    """

    def __init__(self, width: int, *, products: bool = True) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(8, width))
        self.layer = nn.Linear(width, width)
        self.into, self.head = (nn.Parameter(torch.randn(*s)) for s in ((width, 10), (10, width)))
        self.taps = nn.Parameter(torch.randn(width, 3))
        self.rows = nn.Parameter(torch.randn(64, width))  # square at width 64
        self.products = products

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(self.position + x + self.rows.new_ones(8, 64) @ self.rows)
        x = F.conv1d(x.mT, self.taps[:, None], padding=1, groups=len(self.taps)).mT
        if not self.products:
            return x + self.into.sum() + self.head.sum()
        return x @ self.into + F.linear(x, self.head)


@pytest.mark.parametrize("device", DEVICES)
def test_a_bare_parameter_whose_width_is_contracted_is_warned_of(
    device: str, caplog: pytest.LogCaptureFixture
) -> None:
    for products, names in ((True, ["head", "into"]), (False, [])):
        caplog.clear()
        with torch.device(device):
            model, base = (BareProjections(width, products=products) for width in (64, 16))
        Parametrization(model, base=base, sample_input=torch.zeros(2, 8, 1))
        messages = [m for m in caplog.messages if "the model contracts its width" in m]
        assert [m.partition(":")[0] for m in messages] == names
        assert all(f"rules={{'{n}': 'readout'}}" in m for n, m in zip(names, messages, strict=True))


def test_a_rule_for_a_bare_readout_needs_no_warning(caplog: pytest.LogCaptureFixture) -> None:
    rules: dict[str, LayerType | None]
    rules = {"into": "readout", "head": "readout", "taps": "embedding"}
    plan = mark(BareProjections(64), BareProjections(16), rules=rules)
    Parametrization(plan.model, base=plan, sample_input=torch.zeros(2, 8, 1))
    assert caplog.messages == []
