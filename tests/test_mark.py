"""Marking by comparing two models: what becomes a site, and what is kept."""

import copy
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from plain_models import GPT, HEAD_DIM, VOCABULARY, ConvNet, Encoder, Looped, tokens
from torch import nn

from maxp import Parametrization, ParametrizedModule, mark
from maxp.depth import Depth
from maxp.module import find_sites


def on_meta(make: Any, *args: Any, **kwargs: Any) -> Any:
    with torch.device("meta"):
        return make(*args, **kwargs)


def types(plan: Any) -> dict[str, str]:
    return {weight.name: weight.layer_type for weight in plan.weights}


BLOCK = dict.fromkeys(("qkv", "proj", "fc", "out"), "hidden")
GPT_TYPES = {
    "position": "embedding",
    "embed": "embedding",
    **{f"blocks.0.{name}": kind for name, kind in BLOCK.items()},
    "head": "readout",
}


def rms(x: torch.Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


# What is a site


def test_shapes_tell_the_layer_types_of_a_gpt() -> None:
    plan = mark(GPT(64, 1), GPT(16, 1))
    assert types(plan) == GPT_TYPES
    widths = {w.name: (w.n, w.n_base) for w in plan.weights}
    assert widths["embed"] == widths["position"] == widths["head"] == (64, 16)
    assert widths["blocks.0.qkv"] == widths["blocks.0.fc"] == (64, 16)
    assert widths["blocks.0.out"] == (256, 64)
    assert not find_sites(plan.model)


def test_models_on_meta_are_compared_as_any_others() -> None:
    plan = mark(on_meta(GPT, 4096, 1), on_meta(GPT, 256, 1))
    assert types(plan) == GPT_TYPES
    assert plan.stds["embed"] == plan.stds["position"] == 1.0
    assert plan.stds["head"] == plan.stds["blocks.0.qkv"] == 1 / 16
    assert plan.stds["blocks.0.out"] == 1 / 32


def test_gains_and_biases_and_matrices_of_one_size_are_listed_with_the_reason() -> None:
    class Fixed(GPT):
        def __init__(self, width: int) -> None:
            super().__init__(width, 1)
            self.table = nn.Linear(5, 5)

    plan = mark(Fixed(64), Fixed(16))
    assert "5x5 in both models" in plan.others["table.weight"]
    assert plan.others["norm.weight"] == "bias or gain"
    parameters = {name for name, _ in plan.model.named_parameters()}
    sites = {f"{w.module}.{w.parameter}".removeprefix(".") for w in plan.weights}
    assert sites | plan.others.keys() == parameters


def test_a_convolution_is_a_site_and_a_depthwise_one_is_a_vector_of_kernels() -> None:
    plan = mark(ConvNet(64), on_meta(ConvNet, 16))
    assert types(plan) == {
        "stem": "embedding", "depthwise": "embedding", "conv": "hidden", "head": "readout",
    }  # fmt: skip
    assert plan.stds["conv"] == (16 * 9) ** -0.5
    assert plan.stds["stem"] == 27**-0.5
    assert plan.stds["depthwise"] == 1 / 3


@pytest.mark.parametrize("key", ["head", "Linear"])
def test_a_rule_names_a_site_or_a_class_of_modules(key: str) -> None:
    plan = mark(GPT(64, 1), GPT(16, 1), rules={key: None})
    assert "head" not in types(plan)
    assert plan.others["head.weight"] == "left as it is by a rule"
    assert ("blocks.0.qkv" in types(plan)) == (key == "head")


def test_a_rule_of_a_longer_name_wins_and_decides_the_width() -> None:
    rules = {"Embedding": "hidden", "embed": "readout", "0.fc": "embedding"}
    plan = mark(GPT(64, 1), GPT(16, 1), rules)  # type: ignore[arg-type]
    assert types(plan)["embed"] == "readout"
    weights = {w.name: w for w in plan.weights}
    assert (weights["blocks.0.fc"].n, weights["blocks.0.fc"].n_base) == (256, 64)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"haed": "readout"}, "the rule for haed matches no parameter and no module class"),
        ({"head": "output"}, "the rule for head must be one of embedding, hidden, readout"),
        ({"norm": "hidden"}, "norm.weight has one dimension"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused(rules: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mark(GPT(64, 1), GPT(16, 1), rules)


def test_models_that_differ_in_depth_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"base: other parameters than the model's: blocks.1"):
        mark(GPT(64, 2), GPT(16, 1))


def test_with_depth_the_base_may_have_fewer_blocks() -> None:
    model, depth = GPT(64, 4), Depth(ratio=2.0, exponent=1.0, branches=["proj", "out"])
    p = Parametrization(model, base=GPT(16, 2), depth=depth, lr_prefactor=1.0)
    assert p.sites["blocks.3.out"].scale == p.sites["blocks.0.proj"].scale == 0.5
    assert p.lrs()["blocks.3.out"] == pytest.approx(1 / 4)
    assert p.plan is not None
    assert {w.n_base for w in p.plan.weights if w.name.endswith("out")} == {64}


def test_a_residual_branch_that_ends_in_a_weight_without_multiplier_is_refused() -> None:
    depth = Depth(ratio=2.0, exponent=1.0, branches=["self_attn.out_proj", "linear2"])
    with pytest.raises(ValueError, match=r"depth: encoder.layers.0.self_attn.out_proj ends a"):
        Parametrization(Encoder(64, 2), base=Encoder(16, 1), depth=depth)


def test_models_of_one_width_need_a_third() -> None:
    with pytest.raises(ValueError, match="delta=make_model"):
        mark(GPT(16, 1), GPT(16, 1))
    plan = mark(GPT(16, 1), GPT(16, 1), delta=on_meta(GPT, 32, 1))
    assert types(plan) == GPT_TYPES
    assert {w.n for w in plan.weights if w.layer_type != "hidden"} == {16}


def test_at_the_bases_own_width_parametrization_says_how_to_pass_a_third() -> None:
    with pytest.raises(
        ValueError, match=r"base=mark\(model, base, delta=make_model\(another_width\)\)"
    ):
        Parametrization(GPT(16, 1), base=GPT(16, 1))


class Tables(nn.Module):
    def __init__(self, width: int, rows: int, fixed: int) -> None:
        super().__init__()
        self.embed, self.small = nn.Embedding(rows, width), nn.Embedding(rows, fixed)


@pytest.mark.parametrize(
    ("model", "base"),
    [(Tables(64, 48, 4), Tables(16, 24, 4)), (Tables(64, 4, 4), Tables(16, 24, 4))],
)
def test_a_base_with_other_numbers_of_rows_is_refused_by_name(model: Tables, base: Tables) -> None:
    rows = f"{model.embed.num_embeddings} rows, and 24 in the base"
    with pytest.raises(ValueError, match=f"mark: embed has {rows}; the base must differ in width"):
        mark(model, base)
    plan = mark(model, base, rules={"embed": "embedding", "small": None})
    assert types(plan) == {"embed": "embedding"}


def test_heads_that_grow_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    class Attention(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.head_dim, self.q = width // 2, nn.Linear(width, width)

    with caplog.at_level(logging.WARNING):
        mark(Attention(64), Attention(16))
    assert "head_dim is 32, and 8 in the base" in caplog.text


def test_the_plan_prints_a_line_for_each_site_and_then_its_c_lr_and_std() -> None:
    model, base = GPT(64, 1), on_meta(GPT, 16, 1)
    plan = mark(model, base)
    (head,) = (line for line in str(plan).splitlines() if line.startswith("head "))
    assert head.split() == ["head", "readout", "24x64", "64", "16", "0.5", "0.5"]
    p = Parametrization(model, base=plan, lr_prefactor=0.01)
    (head,) = (line for line in str(p.plan).splitlines() if line.startswith("head "))
    assert head.split()[-3:] == ["0.5", "0.005", "0.125"]
    (position,) = (line for line in str(p.plan).splitlines() if line.startswith("position "))
    assert position.split()[5:] == ["0", "0", "0", "0.01", "1", "multiplier", "1"]


# What marking keeps


def test_marking_keeps_modules_names_and_classes() -> None:
    model = GPT(64, 1)
    keys, parameters = list(model.state_dict()), dict(model.named_parameters())
    modules = dict(model.named_modules())
    mark(model, GPT(16, 1)).apply()
    assert list(model.state_dict()) == keys
    assert all(parameters[name] is p for name, p in model.named_parameters())
    assert all(modules[name] is m for name, m in model.named_modules())
    assert type(model.head).__name__ == "Linear"
    assert isinstance(model.head, nn.Linear)
    assert list(find_sites(model)) == list(GPT_TYPES)


def test_a_head_may_be_called_by_keyword() -> None:
    class Head(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.head = nn.Linear(width, 300, bias=False)

    model, x = Head(64), torch.randn(2, 64)
    Parametrization(model, base=Head(16))
    assert torch.allclose(model.head(input=x), model.head(x), atol=1e-6)


def test_the_base_is_left_as_it_is() -> None:
    base = GPT(16, 1)
    before, out = copy.deepcopy(base.state_dict()), base(tokens())
    Parametrization(GPT(64, 1), base=base)
    assert not find_sites(base)
    torch.testing.assert_close(base.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(base(tokens()), out, rtol=0, atol=0)


def copied(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def saved(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("through", [copied, pickled, saved])
def test_a_marked_model_survives_a_copy(through: Any) -> None:
    model = GPT(64, 1)
    Parametrization(model, base=GPT(16, 1))
    again = through(model)
    torch.testing.assert_close(again(tokens()), model(tokens()), rtol=0, atol=0)
    sites, others = find_sites(model), find_sites(again)
    assert [(n, s.width_dim, s.scale) for n, s in sites.items()] == [
        (n, s.width_dim, s.scale) for n, s in others.items()
    ]
    assert others["position"].weight is again.position
    assert type(again.head) is type(model.head)


# With a base


def test_a_model_is_marked_and_scaled_by_its_base() -> None:
    model, base = GPT(64, 1), GPT(16, 1)
    p = Parametrization(model, base=base, lr_prefactor=1.0, seed=0)
    assert model.head.scale == pytest.approx(0.5)
    assert model.embed.scale == pytest.approx(2.0)
    assert model.blocks[0].qkv.scale == 1.0
    assert p.lrs()["head"] == pytest.approx(0.5)
    assert p.lrs()["embed"] == pytest.approx(0.5)
    assert p.lrs()["position"] == pytest.approx(1.0)
    assert p.lrs()["blocks.0.qkv"] == pytest.approx(0.25)
    for name in ("head", "embed", "blocks.0.qkv"):
        std = rms(base.get_submodule(name).weight) / 2
        assert rms(model.get_submodule(name).weight) == pytest.approx(std, rel=0.1)
    assert rms(model.position) == pytest.approx(rms(base.position), rel=0.2)


def test_at_the_bases_own_width_every_parametrization_is_the_same_run() -> None:
    runs = []
    for name in ("mup", "standard", "ntk", "mean-field"):
        torch.manual_seed(0)
        model, base = GPT(16, 1), GPT(16, 1)
        plan = mark(model, base, delta=GPT(32, 1))
        from maxp import PARAMETRIZATIONS

        p = Parametrization(model, base=plan, ab_overrides=PARAMETRIZATIONS[name], seed=1)
        assert set(p.lrs().values()) == {1e-3}
        runs.append(model(tokens()))
    assert all(torch.equal(runs[0], run) for run in runs)


@pytest.mark.parametrize("name", ["mup", "standard", "ntk", "mean-field"])
def test_a_parameter_without_a_multiplier_gets_its_power_of_the_width_in_the_std(name: str) -> None:
    from maxp import PARAMETRIZATIONS

    model = Encoder(64, 1)
    p = Parametrization(
        model, base=on_meta(Encoder, 16, 1), ab_overrides=PARAMETRIZATIONS[name], lr_prefactor=1.0
    )
    for site in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear1"):
        name = f"encoder.layers.0.{site}"
        assert p.sites[name].scale == 1.0
        assert p.lrs()[name] == pytest.approx(0.25)
        assert rms(p.weights[name]) == pytest.approx(1 / 8, rel=0.1)


def test_a_plain_checkpoint_loads_into_a_marked_model_and_back() -> None:
    plain, model = GPT(64, 1), GPT(64, 1)
    Parametrization(model, base=GPT(16, 1))
    model.load_state_dict(plain.state_dict())
    other = GPT(64, 1)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(tokens()), plain(tokens()), rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_state_saved_with_other_multipliers_is_refused_by_name(wrapped: bool) -> None:
    from maxp import PARAMETRIZATIONS

    def make(ab: Any) -> nn.Module:
        if wrapped:
            model: nn.Module = nn.Sequential(ParametrizedModule(nn.Linear(64, 3), 64, "readout"))
            Parametrization(model, ab_overrides=ab)
        else:
            model = GPT(64, 1)
            Parametrization(model, base=GPT(16, 1), ab_overrides=ab)
        return model

    state = make(PARAMETRIZATIONS["mean-field"]).state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    with pytest.raises(RuntimeError, match=r"(head|0): its weight was saved with the multiplier"):
        make(None).load_state_dict(torch.load(file))
    make(PARAMETRIZATIONS["mean-field"]).load_state_dict(state)


# Torch's own transformer


@pytest.mark.parametrize("name", ["mup", "ntk"])
def test_the_fast_path_of_torchs_encoder_gives_the_same_outputs(name: str) -> None:
    from maxp import PARAMETRIZATIONS

    model = Encoder(64)
    Parametrization(
        model, base=on_meta(Encoder, 16), ab_overrides=PARAMETRIZATIONS[name], std_prefactor=1.5
    )
    model.eval()
    x = torch.randn(3, 5, 6)
    slow = model(x).detach()  # with gradients there is no fast path
    with torch.no_grad():
        torch.testing.assert_close(model(x), slow, rtol=1e-4, atol=1e-5)


# Graphs of marked models


def test_the_graph_of_a_marked_gpt_is_traced() -> None:
    model = GPT(64, 1)
    p = Parametrization(model, base=GPT(16, 1), sample_input=tokens())
    nodes = {site.name: site for site in p.graph.sites}
    assert nodes.keys() == GPT_TYPES.keys()
    assert p.c == pytest.approx({
        "position": 0, "embed": 0.5, "head": 0.5, **{f"blocks.0.{n}": 1.0 for n in BLOCK},
    })  # fmt: skip


def test_the_parameters_of_torchs_attention_are_nodes_of_the_graph() -> None:
    model = Encoder(64, 1)
    p = Parametrization(model, base=Encoder(16, 1), sample_input=torch.randn(2, 5, 6))
    feeds = {s.name.removeprefix("encoder.layers.0."): s.operands for s in p.graph.sites}
    assert feeds["self_attn.in_proj_weight"] == ("embed",)
    assert feeds["self_attn.out_proj"] == ("encoder.layers.0.self_attn.in_proj_weight",)
    joined = p.graph.nodes[str(feeds["linear1"][0])]
    assert joined.parents == ("embed", "encoder.layers.0.self_attn.out_proj")  # type: ignore[union-attr]
    assert feeds["linear2"] == ("encoder.layers.0.linear1",)


def test_a_looped_layer_is_marked_once_and_traced_at_each_call() -> None:
    model, x = Looped(64), torch.randn(5, 6)
    p = Parametrization(model, base=Looped(16), sample_input=x)
    assert list(p.weights) == ["embed", "layer", "head"]
    assert [s.name for s in p.graph.sites if s.site == "layer"] == [
        "layer", "layer (call 2)", "layer (call 3)",
    ]  # fmt: skip
    assert p.c == pytest.approx({"embed": 0.5, "layer": 1.0, "head": 0.5})


def test_heads_of_a_fixed_size_are_no_reason_for_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert HEAD_DIM
    with caplog.at_level(logging.WARNING):
        Parametrization(GPT(64, 1), base=GPT(16, 1))
    assert caplog.text == ""
    assert VOCABULARY


def test_a_marked_model_compiles_in_one_graph() -> None:
    model = GPT(64, 1)
    Parametrization(model, base=GPT(16, 1))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens()), model(tokens()))


class Gains(nn.Module):
    """Parameters with a shape that grows and initial values that are no random weight's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), -1e-6))  # torchvision's ConvNeXt
        self.logit_scale = nn.Parameter(torch.full((width // 16, 1, 1), 10.0).log())  # its SwinV2
        self.log_a = nn.Parameter(torch.arange(1, 9.0).log().repeat(width, 1))  # Mamba
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(width, width))
        self.matrix = nn.Parameter(torch.rand(width, width))  # no gain: it mixes the channels


GAINS = ["layer_scale", "logit_scale", "log_a", "normed.parametrizations.weight.original0"]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_gains_of_several_dimensions_keep_their_values(device: str) -> None:
    with torch.device(device):
        base = Gains(32)
    model = Gains(64)
    before = {name: model.get_parameter(name).detach().clone() for name in GAINS}
    p = Parametrization(model, base=base, lr_prefactor=0.3)
    assert p.plan is not None
    assert {w.name for w in p.plan.weights} == {
        "embed",
        "token",
        "matrix",
        "normed.parametrizations.weight.original1",
    }
    for name in GAINS:
        assert p.plan.others[name] == "gain: its entries have one sign"
        assert torch.equal(model.get_parameter(name), before[name])
    held = {id(q) for q in p.param_groups[-1]["params"]}
    assert p.param_groups[-1]["lr"] == 0.3
    assert {id(model.get_parameter(name)) for name in GAINS} <= held


class Biases(nn.Module):
    """Layers with biases that are drawn, or that were set on purpose."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.drawn, self.zero = nn.Linear(8, width), nn.Linear(width, width)
        self.time, self.gate = nn.Linear(4, width), nn.Linear(width, width)
        self.prior, self.one_output = nn.Linear(width, 10), nn.Linear(width, 1)
        with torch.no_grad():
            self.zero.bias.zero_()
            self.time.bias.copy_(torch.linspace(-7, -2, width))  # Mamba
            self.gate.bias.copy_((torch.arange(width) < width // 4).float())  # a forget gate
            self.prior.bias.fill_(-0.01)  # RetinaNet, and less than a bias that is drawn


def test_a_bias_that_was_set_on_purpose_keeps_its_effect() -> None:
    model = Biases(64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    p = Parametrization(model, base=Biases(32))
    assert p.sites["prior"].scale != 1
    for name in ("time", "gate", "prior"):
        after = model.get_parameter(f"{name}.bias") * p.sites[name].scale
        torch.testing.assert_close(after, before[f"{name}.bias"])
    for name in ("drawn", "zero", "one_output"):
        assert not model.get_parameter(f"{name}.bias").any()
    assert str(p.plan).count("keeps its bias") == 3


def test_without_the_values_of_a_base_biases_are_zeroed() -> None:
    model = Biases(64)
    Parametrization(model, base=on_meta(Biases, 32))
    assert not any(p.any() for name, p in model.named_parameters() if name.endswith("bias"))


def test_a_rule_makes_a_gain_a_site() -> None:
    plan = mark(Gains(64), Gains(32), rules={"log_a": "embedding"})
    assert plan.widths["log_a"] == 32


class Transposed(nn.Module):
    """Weights that are stored as (fan_in, fan_out)."""

    class Dense(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.head = self.Dense(8, width), self.Dense(width, 3)
        self.up = nn.ConvTranspose1d(width, width, 2)
        self.depthwise = nn.ConvTranspose1d(width, width, 2, groups=width)
        self.out = nn.ConvTranspose1d(width, 3, 2)


def test_a_rule_for_a_transposed_weight_takes_the_width_that_grows() -> None:
    plan = mark(Transposed(64), Transposed(16), rules={"embed": "embedding", "head": "readout"})
    assert plan.widths["embed"] == plan.widths["head"] == 16
    assert {w.n for w in plan.weights} == {64}


def test_a_transposed_convolution_of_depth_1_contracts_nothing_that_grows() -> None:
    plan = mark(Transposed(64), Transposed(16))
    assert types(plan)["up"] == "hidden"
    assert types(plan)["depthwise"] == "embedding"
    assert types(plan)["out"] == "readout"
    assert plan.widths["depthwise"] == 16


# Weights whose shapes do not tell what they contract


class Doubtful(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.randn(1, 8, width))
        self.layer = nn.Linear(width, width)
        self.projection = nn.Parameter(torch.randn(width, 10))
        self.pair = nn.Bilinear(width, width, width)
        self.one_input = nn.Bilinear(width, 4, width)


def test_a_weight_whose_shapes_do_not_tell_what_it_contracts_is_warned_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plan = mark(Doubtful(64), Doubtful(16))
    assert types(plan)["projection"] == "embedding"
    projection, pair = caplog.messages
    assert projection.startswith("projection: a parameter of shape 64x10 whose first dimension")
    assert "rules={'projection': 'readout'}" in projection
    assert pair.startswith("pair: both inputs of this nn.Bilinear grow")
    caplog.clear()
    mark(Doubtful(64), Doubtful(16), rules={"projection": "readout", "pair": None})
    assert caplog.messages == []
