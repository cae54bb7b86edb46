"""The closed form of one step, against torch's optimizers, autograd and the library's measuring."""

import pytest
import torch

from maxp import compute_alignment
from maxp.module import find_sites
from scripts.study import single_pass
from scripts.study.mlp import MLP, build
from scripts.study.plan import Optimizer, SinglePass
from scripts.study.rank_one import (
    Site,
    first_step,
    kept_with_eps,
    largest_singular_value,
    measured,
    spread,
)

PLAN = SinglePass(inputs=12, outputs=3)
EPS = 1e-30  # as good as none


def model_and_sites(method: str, optimizer: Optimizer, lr: float) -> tuple[MLP, list, dict]:
    model, p = build(method, optimizer, 48, 4, PLAN.inputs, PLAN.outputs, lr, seed=1)
    model.double()
    x = single_pass.fixed_input(PLAN.inputs).double()
    norms = {
        n: float(torch.linalg.svdvals(s.weight.detach())[0]) for n, s in find_sites(model).items()
    }
    sites = single_pass.forward_backward(model, x, norms)
    return model, [x, p], sites


def stepped(model: MLP, x: torch.Tensor, p, optimizer: Optimizer, eps: float = EPS) -> dict:
    """Weights before a real step, whose weights the model then has."""
    model.requires_grad_()
    before = {n: s.weight.detach().clone() for n, s in find_sites(model).items()}
    rule = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    built = rule(p.param_groups, **({} if optimizer == "sgd" else {"eps": eps}))
    model(x[None]).sum().backward()
    built.step()
    return before


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("method", ["standard", "mup"])
def test_the_four_quantities_are_those_of_a_real_step(method: str, optimizer: Optimizer) -> None:
    model, (x, p), sites = model_and_sites(method, optimizer, lr=1e-3)
    before = stepped(model, x, p, optimizer)
    for name, site in find_sites(model).items():
        w0, dw = before[name], site.weight.detach() - before[name]
        z = sites[name].z
        expected = {
            "gradient": float(site.weight.grad.norm() / w0.norm()),
            "frobenius": float(dw.norm() / w0.norm()),
            "spectral": float(torch.linalg.svdvals(dw)[0] / torch.linalg.svdvals(w0)[0]),
            "output": float((dw @ z).norm() / (w0 @ z).norm()),
        }
        update = first_step(sites[name], optimizer, p.lrs()[name])
        actual = measured(sites[name], update)
        assert {name: actual[name] for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_alignments_and_total_changes_are_what_the_library_measures(optimizer: Optimizer) -> None:
    lr = 1e-9  # first order
    model, (x, p), sites = model_and_sites("mup", optimizer, lr)
    before = stepped(model, x, p, optimizer)
    updates = [first_step(s, optimizer, p.lrs()[n]) for n, s in sites.items()]
    actual = dict(zip(sites, spread(list(sites.values()), updates), strict=True))
    now = single_pass.forward_backward(model, x, dict.fromkeys(sites, 1.0))
    for name, site in sites.items():
        total = float((now[name].y - site.y).norm() / site.y.norm())
        assert actual[name].total == pytest.approx(total, rel=1e-4)
        if name == "embedding":
            continue
        w = find_sites(model)[name].weight.detach()
        expected = compute_alignment(site.z[None], before[name], now[name].z[None], w, 48)
        assert actual[name].alignment == pytest.approx(expected, abs=1e-4)


def test_what_eps_leaves_is_what_a_real_adam_leaves() -> None:
    model, (x, p), sites = model_and_sites("mup", "adam", lr=1e-3)
    eps = 1e-2
    before = stepped(model, x, p, "adam", eps)
    for name, site in find_sites(model).items():
        dw = site.weight.detach() - before[name]
        whole = first_step(sites[name], "adam", p.lrs()[name]).times(sites[name].z).norm()
        kept = float((dw @ sites[name].z).norm() / whole)
        assert kept < 0.95
        assert kept_with_eps(sites[name], eps, rows=48) == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("shape", [(200, 200), (300, 40), (10, 300)])
def test_the_largest_singular_value_is_within_a_hundredth(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    exact = float(torch.linalg.svdvals(matrix)[0])
    assert largest_singular_value(matrix) == pytest.approx(exact, rel=0.01)


def test_an_exact_cancellation_counts_as_full_alignment_at_any_width() -> None:
    # Adam's steps at a layer below cancel: half of the outputs step up, half of them down.
    for n in (2, 1000, 4000):
        delta = torch.ones(n)
        delta[torch.randperm(n, generator=torch.Generator().manual_seed(n))[: n // 2]] = -1.0
        one = torch.ones(n)
        first = Site(torch.ones(1), one, delta, one[:, None], 1, 1, 1, n)
        second = Site(one, torch.ones(2), torch.ones(2), torch.rand(2, n), 1, 1, 1, n)
        updates = [first_step(site, "adam", 0.1) for site in (first, second)]
        assert spread([first, second], updates)[1].alignment[2] == 1.0


def test_the_draws_of_two_methods_differ_by_powers_of_the_width_alone() -> None:
    weights = []
    for method in ("standard", "mup"):
        model, _ = build(method, "adam", 32, 3, 5, 2, 1e-3, seed=4)
        weights.append([model.embedding.weight, model.hidden[0].weight, model.readout.weight])
    for one, other, power in zip(*weights, (0.5, 0, 0), strict=True):
        torch.testing.assert_close(one, other * 32**power)


def test_maxp_takes_the_step_with_the_learning_rates_of_the_measured_alignment() -> None:
    rows = single_pass.measure(64, 4, 0, PLAN)
    value = {(r["method"], r["layer"]): r["frobenius"] for r in rows if r["optimizer"] == "adam"}
    # The sign of a gradient is aligned by less than 1 at finite width, so maxP may step further.
    assert value["maxP", 2] > 1.05 * value["mup", 2]
    assert len(rows) == 3 * 2 * 4
