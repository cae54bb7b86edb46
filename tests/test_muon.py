"""Muon: the exponents of orthogonalised updates, and hidden matrices under `torch.optim.Muon`."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import MLP, Llama, batch
from plain_models import GPT, ConvNet, tokens
from torch import nn
from torch.optim import AdamW, Muon

from maxp import Exponents, MuonAdamW, Parametrization, avx2, diagnose_axis, mark, solve
from maxp.exponents import PRESETS
from maxp.graph import chain

FNS = ("original", "match_rms_adamw")
WIDTHS = (64, 128, 256, 512)
BASE = {"embedding": 64, "hidden": 64, "readout": 64}


def slope(widths: tuple[int, ...], values: list[float]) -> float:
    x = torch.tensor(widths, dtype=torch.float64).log()
    x = x - x.mean()
    return float(torch.tensor(values, dtype=torch.float64).log() @ x / x.square().sum())


def rms(x: torch.Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


# The derivation


def first_update(tokens: int, rows: int, columns: int, fn: str) -> tuple[torch.Tensor, ...]:
    """What `torch.optim.Muon` subtracts for a gradient of some tokens, and their inputs."""
    torch.manual_seed(0)
    z, gradient = torch.randn(tokens, columns), torch.randn(tokens, rows)
    weight = nn.Parameter(torch.zeros(rows, columns))
    weight.grad = gradient.T @ z
    with avx2.fast_products():
        Muon([weight], lr=1.0, weight_decay=0.0, adjust_lr_fn=fn).step()
    return weight.detach(), z


@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 4)])
@pytest.mark.parametrize(("fn", "sigma"), [*zip(FNS, (0.0, 0.5), strict=True)])
@pytest.mark.parametrize("rank", ["full", "fixed"])
def test_update_has_the_derived_entries_and_alignment(
    rank: str, fn: str, sigma: float, shape: tuple[int, int]
) -> None:
    entries, aligned, random = [], [], []
    for n in WIDTHS:
        dw, z = first_update(2 * n if rank == "full" else 4, shape[0] * n, shape[1] * n, fn)
        x = torch.randn(64, dw.shape[1])
        entries.append(rms(dw))
        aligned.append(rms(z @ dw.T) / rms(z) / rms(dw))
        random.append(rms(x @ dw.T) / rms(x) / rms(dw))
    size, largest = (-0.5, 0.5) if rank == "full" else (-1.0, 1.0)
    assert slope(WIDTHS, entries) == pytest.approx(size + sigma, abs=0.06)
    assert slope(WIDTHS, aligned) == pytest.approx(largest, abs=0.06)
    assert slope(WIDTHS, random) == pytest.approx(0.5, abs=0.06)


# The program


@pytest.mark.parametrize("alignment", ["full", "no"])
@pytest.mark.parametrize(("fn", "c"), [*zip((*FNS, None), (0.0, 0.5, 0.0), strict=True)])
def test_c_of_hidden_sites_is_that_of_the_scale(alignment: str, fn: str | None, c: float) -> None:
    p = Parametrization(MLP(), optimizer_type="muon", adjust_lr_fn=fn, alignment=alignment)
    readout = 0.5 if alignment == "full" else 0.0
    assert p.c == {"embed": 0.5, "layers.0": c, "layers.1": c, "readout": readout}
    assert all(abs(r) < 1e-9 for r in p.r.values())


def test_program_takes_an_optimizer_per_site() -> None:
    names = {"in": "embedding", "one": "hidden", "two": "hidden", "three": "hidden"}
    graph = chain((name, layer_type, True) for name, layer_type in names.items())
    full = PRESETS["full"]
    exponents = {
        "in": Exponents(-0.5, 0.5, full),
        "one": Exponents(0.0, 0.5, full),
        "two": Exponents(0.0, 0.5, full, adjust_lr_fn="original"),
        "three": Exponents(0.0, 0.5, full, adjust_lr_fn="match_rms_adamw"),
    }
    assert solve(graph, exponents).c == {"in": 0.5, "one": 1.0, "two": 0.0, "three": 0.5}


def test_alignment_of_muon_above_one_half_counts_as_one_half() -> None:
    high = Parametrization(
        MLP(), optimizer_type="muon", alignment_overrides={"layers.0": (0.9, 0.5, 0.8)}
    )
    low = Parametrization(
        MLP(), optimizer_type="muon", alignment_overrides={"layers.0": (0.4, 0.5, 0.4)}
    )
    assert (high.c["layers.0"], low.c["layers.0"]) == (0.0, -0.1)


def test_multiplier_of_a_hidden_site_moves_c() -> None:
    p = Parametrization(MLP(), optimizer_type="muon", ab_overrides={"hidden": (0.25, 0.25)})
    assert p.c["layers.0"] == -0.25


def test_sites_that_the_mapping_does_not_name_are_adams() -> None:
    p = Parametrization(MLP(), optimizer_type={"hidden": "muon", "layers.1": "adam"})
    assert (p.c["layers.0"], p.c["layers.1"]) == (0.0, 1.0)
    assert [g["name"] for g in p.param_groups if "adjust_lr_fn" in g] == ["layers.0"]


@pytest.mark.parametrize("fn", FNS)
def test_measured_alignment_keeps_c_of_hidden_sites(fn: str) -> None:
    torch.manual_seed(0)
    p = Parametrization(MLP(64), optimizer_type="muon", adjust_lr_fn=fn, lr_prefactor=0.01)
    optimizer = MuonAdamW(p.param_groups)
    before = dict(p.c)
    x, y = batch(0)
    p.capture_initial(x)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(p.model(x), y).backward()
        optimizer.step()
        p.step(x, optimizer)
    assert p.measured["layers.1"][0] > 0.6
    assert p.c["layers.1"] == before["layers.1"]
    assert p.c["readout"] != before["readout"]


# Constants


@pytest.mark.parametrize(("fn", "c"), [*zip(FNS, (0.0, 0.5), strict=True)])
def test_decay_of_a_step_does_not_depend_on_the_width(fn: str, c: float) -> None:
    p = Parametrization(
        MLP(64), optimizer_type="muon", adjust_lr_fn=fn, base={**BASE, "hidden": 16},
        weight_decay=0.1, eps=1e-8, lr_prefactor=0.01,
    )  # fmt: skip
    (group,) = [g for g in p.param_groups if g["name"] == "layers.0"]
    assert group["lr"] == pytest.approx(0.01 * 4**-c)
    assert group["lr"] * group["weight_decay"] == pytest.approx(0.001)
    assert "eps" not in group  # Muon's is another one
    assert group["adjust_lr_fn"] == fn


# The optimizer


def test_muon_and_adamw_step_as_the_two_of_torch() -> None:
    def train(make: Callable[[list[dict[str, Any]]], list[Any]]) -> nn.Module:
        torch.manual_seed(0)
        model = MLP(16, bias=True)
        p = Parametrization(model, optimizer_type="muon", seed=0, lr_prefactor=0.01)
        optimizers, (x, y) = make(p.param_groups), batch(0)
        for _ in range(3):
            F.cross_entropy(model(x), y).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return model

    def split(groups: list[dict[str, Any]]) -> list[Any]:
        hidden = [g for g in groups if g["name"].startswith("layers.") and "bias" not in g["name"]]
        names = {g["name"] for g in hidden}
        others = [g for g in groups if g["name"] not in names]
        return [Muon(hidden, momentum=0.9), AdamW(others, betas=(0.8, 0.9))]

    one = train(lambda g: [MuonAdamW(g, muon={"momentum": 0.9}, adamw={"betas": (0.8, 0.9)})])
    two = train(split)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def training(seed: int = 0) -> tuple[Parametrization, MuonAdamW, Any]:
    torch.manual_seed(seed)
    p = Parametrization(MLP(bias=True), optimizer_type="muon", lr_prefactor=0.01, seed=seed)
    optimizer = MuonAdamW(p.param_groups)
    return p, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 0.9**t)


def train(p: Parametrization, optimizer: MuonAdamW, schedule: Any, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(p.model(x), y).backward()
        optimizer.step()
        schedule.step()
        p.step(x, optimizer)


def test_resumed_run_continues_bit_for_bit() -> None:
    p, *rest = training()
    p.capture_initial(batch(0)[0])
    train(p, *rest, range(6))
    killed, *others = training()
    killed.capture_initial(batch(0)[0])
    train(killed, *others, range(3))
    states = copy.deepcopy([killed.model.state_dict(), *(o.state_dict() for o in others)])
    state = copy.deepcopy(killed.state_dict())

    resumed, *again = training(seed=1)
    resumed.capture_initial(batch(0)[0])
    for part, saved in zip([resumed.model, *again], states, strict=True):
        part.load_state_dict(saved)
    resumed.load_state_dict(state)
    train(resumed, *again, range(3, 6))
    for one, other in zip(p.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert resumed.c == p.c


def test_optimizer_can_be_copied() -> None:
    p, optimizer, schedule = training()
    p.capture_initial(batch(0)[0])
    train(p, optimizer, schedule, range(2))
    twin = copy.deepcopy(optimizer)
    (state,) = [s for s in twin.state.values() if s.keys() == {"momentum_buffer"}][:1]
    before = state["momentum_buffer"].clone()
    for group in twin.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
    twin.step()
    assert not torch.equal(state["momentum_buffer"], before)


def test_a_group_that_is_added_later_is_trained() -> None:
    p, optimizer, _ = training()
    hidden, other = (nn.Parameter(torch.ones(shape)) for shape in [(4, 4), (4,)])
    optimizer.add_param_group({"params": [hidden], "adjust_lr_fn": "original"})
    optimizer.add_param_group({"params": [other], "lr": 0.1})
    hidden.grad, other.grad = torch.eye(4), torch.ones(4)
    before = [hidden.detach().clone(), other.detach().clone()]
    optimizer.step()
    assert not torch.equal(hidden, before[0])
    assert not torch.equal(other, before[1])
    assert optimizer.state[hidden].keys() == {"momentum_buffer"}
    assert optimizer.state[other].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert p.weights.keys() <= {group.get("name") for group in optimizer.param_groups}


def test_a_group_that_is_taken_out_is_trained_no_more() -> None:
    p, optimizer, _ = training()
    before = {name: weight.detach().clone() for name, weight in p.weights.items()}
    optimizer.param_groups = [g for g in optimizer.param_groups if g["name"] != "layers.0"]
    x, y = batch(0)
    F.cross_entropy(p.model(x), y).backward()
    optimizer.step()
    same = [name for name, weight in p.weights.items() if torch.equal(weight, before[name])]
    assert same == ["layers.0"]


# Bad input


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (MLP, {"optimizer_type": "muon", "adjust_lr_fn": "rms"},
         "adjust_lr_fn must be one of original, match_rms_adamw, got 'rms'"),
        (MLP, {"adjust_lr_fn": "original"}, "adjust_lr_fn: only Muon has it; set optimizer_type"),
        (MLP, {"optimizer_type": {"layers.0": "sgd"}}, "optimizer_type: layers.0 must be one of"),
        (MLP, {"optimizer_type": {"nowhere": "muon"}}, "optimizer_type for nowhere matches no"),
        (MLP, {"optimizer_type": {"readout": "muon"}}, "readout: Muon is for hidden sites"),
        (MLP, {"optimizer_type": {"hidden": "adam"}, "adjust_lr_fn": "original"}, "only Muon"),
        (MLP, {"optimizer_type": "lion"}, "optimizer_type must be one of adam, sgd, muon, got"),
    ],
)  # fmt: skip
def test_bad_argument_is_refused(
    model: type[nn.Module], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Parametrization(model(), **arguments)


def test_hidden_weight_that_is_no_matrix_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"conv: .* 64x32x3x3; .*'conv': 'adam'") as error:
        Parametrization(ConvNet(32), base=ConvNet(16), optimizer_type="muon")
    assert "\n" not in str(error.value)
    kinds = {"hidden": "muon", "conv": "adam", "depthwise": "adam"}
    with pytest.raises(ValueError, match="no hidden site is left for Muon"):
        Parametrization(ConvNet(32), base=ConvNet(16), optimizer_type=kinds)


class FewKeys(nn.Module):
    """A hidden matrix, and keys of a fixed size that a rule calls hidden."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, 8)


def test_a_weight_whose_fan_out_does_not_grow_is_refused_with_the_remedy() -> None:
    def built(**kinds: str) -> Parametrization:
        model = FewKeys(64)
        plan = mark(model, FewKeys(16), {"keys": "hidden"})
        return Parametrization(model, base=plan, optimizer_type={"hidden": "muon", **kinds})

    with pytest.raises(ValueError, match=r"keys: its fan-out does not grow.*'keys': 'adam'"):
        built()
    p = built(keys="adam")
    assert (p.c["queries"], p.c["keys"]) == (0.0, 1.0)


def test_groups_without_a_hidden_matrix_are_refused() -> None:
    with pytest.raises(ValueError, match="optimizer_type='muon'"):
        MuonAdamW(Parametrization(MLP()).param_groups)


def test_a_scale_that_the_learning_rates_are_not_for_is_refused() -> None:
    groups = Parametrization(MLP(), optimizer_type="muon").param_groups
    with pytest.raises(ValueError, match="adjust_lr_fn: pass it to Parametrization"):
        MuonAdamW(groups, muon={"adjust_lr_fn": "match_rms_adamw"})
    MuonAdamW(groups, muon={"adjust_lr_fn": "original"})


def test_other_optimizer_is_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    p = Parametrization(MLP(), optimizer_type="muon")
    p.apply(AdamW(p.param_groups))
    assert "use maxp.MuonAdamW" in caplog.text


def test_state_with_another_scale_is_refused() -> None:
    p = Parametrization(MLP(), optimizer_type="muon")
    other = Parametrization(MLP(), optimizer_type="muon", adjust_lr_fn="match_rms_adamw")
    with pytest.raises(ValueError, match="adjust_lr_fn"):
        other.load_state_dict(p.state_dict())


# The coordinate check


def gpt_loss(output: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(output.flatten(0, 1), x.roll(1).flatten())


def few_inputs(width: int) -> torch.Tensor:
    return torch.randn(3, 6)


def few_tokens(width: int) -> torch.Tensor:
    return tokens(int(torch.randint(1000, ())), 1)[:, :3]


CASES: dict[str, Any] = {
    "mlp": (MLP, few_inputs, {}, None),
    "gpt": (GPT, few_tokens, {"sample_input": tokens(0, 1)}, gpt_loss),
}


def hidden_slopes(
    kind: str, fn: str, *, solved: bool = True, widths: Sequence[int] = WIDTHS
) -> dict[str, float]:
    """The slopes of the changes of hidden sites; not solved is one lr at every width."""
    make, make_input, arguments, loss = CASES[kind]

    def make_model(width: int) -> tuple[nn.Module, list[dict[str, Any]]]:
        model = make(width)
        base = BASE if kind == "mlp" else mark(model, make(64), delta=make(128))
        p = Parametrization(
            model, optimizer_type="muon", adjust_lr_fn=fn, base=base, lr_prefactor=1e-3,
            lr_multipliers={"hidden": 4.0}, **arguments,
        )  # fmt: skip
        for group in p.param_groups:
            if "adjust_lr_fn" in group and not solved:
                group["lr"] = 4e-3
        return model, p.param_groups

    _, _, stats = diagnose_axis(
        make_model, make_input, widths, optimizer="muon", loss_fn=loss, seeds=8, progress=False
    )
    hidden = [name for name in stats if "layers" in name or "blocks" in name]
    assert hidden
    return {name: stats[name].change.mean for name in hidden}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fn"),
    [
        *(("mlp", fn) for fn in FNS),
        ("gpt", "match_rms_adamw"),
        # The two scales differ by a factor per site, so the second one adds little.
        pytest.param("gpt", "original", marks=pytest.mark.exhaustive),
    ],
)
def test_hidden_changes_do_not_depend_on_the_width(kind: str, fn: str) -> None:
    slopes = hidden_slopes(kind, fn)
    assert all(abs(slope) < 0.05 for slope in slopes.values()), slopes


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_torchs_own_rule_alone_lets_changes_grow_with_the_width(kind: str) -> None:
    slopes = hidden_slopes(kind, "match_rms_adamw", solved=False, widths=WIDTHS[:3])
    assert all(slope > 0.3 for slope in slopes.values()), slopes


@pytest.mark.parametrize("width", [64, 128, 256])
def test_an_update_moves_the_output_for_its_own_input_by_the_lr_at_every_width(width: int) -> None:
    """An orthogonal update would keep the input's norm; Newton-Schulz steps are off by a factor."""
    torch.manual_seed(0)
    x, model = torch.tensor([[1, 5, 3]]), Llama(width)
    p = Parametrization(model, optimizer_type="muon", base=BASE, lr_prefactor=1e-3, sample_input=x)
    inputs: dict[str, torch.Tensor] = {}
    hidden = [group["name"] for group in p.param_groups if "adjust_lr_fn" in group]
    for name in hidden:
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, z, name=name: inputs.update({name: z[0].detach()})
        )
    before = {name: p.weights[name].detach().clone() for name in hidden}
    gpt_loss(model(x), x).backward()
    MuonAdamW(p.param_groups, muon={"weight_decay": 0.0}).step()
    for name in hidden:
        rows, columns = before[name].shape
        kept = (columns / rows) ** 0.5 * max(1, rows / columns) ** 0.5 * 1e-3
        change = inputs[name] @ (p.weights[name].detach() - before[name]).T
        assert 0.65 < rms(change) / rms(inputs[name]) / kept < 1.25, name


@pytest.mark.parametrize(("fn", "expected"), [("original", "n^0"), ("match_rms_adamw", "n^-0.5")])
def test_check_finds_a_wrong_learning_rate_of_muon(fn: str, expected: str) -> None:
    def check(power: float) -> Any:
        def make_model(width: int) -> tuple[nn.Module, list[dict[str, Any]]]:
            p = Parametrization(MLP(width), optimizer_type="muon", adjust_lr_fn=fn, base=BASE)
            for group in p.param_groups:
                group["lr"] *= (width / 64) ** power if group["name"] == "layers.1" else 1.0
            return p.model, p.param_groups

        return diagnose_axis(
            make_model, few_inputs, (64, 256), optimizer="muon", seeds=2, progress=False
        )

    _, _, stats = check(0.0)
    assert not any(site.faults for site in stats.values())
    _, _, stats = check(1.0)
    assert [name for name, site in stats.items() if site.faults] == ["layers.1"]
    (fault,) = stats["layers.1"].faults
    assert fault.kind == "lr"
    assert fault.measured.endswith(f"expected {expected}")
