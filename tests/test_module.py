"""Sites: `maxp.ParametrizedModule` and how they are found in a model."""

from typing import Any

import pytest
import torch
from models import MLP, Llama
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from maxp import ParametrizedModule
from maxp.module import find_sites


@pytest.mark.parametrize(
    ("layer_type", "scale"), [("embedding", 4.0), ("hidden", 1.0), ("readout", 0.25)]
)
def test_the_multiplier_is_n_to_the_minus_a_with_mups_a_by_default(
    layer_type: Any, scale: float
) -> None:
    op = nn.Linear(16, 3)
    site = ParametrizedModule(op, 16, layer_type)
    assert site.scale == pytest.approx(scale, rel=1e-12)
    x = torch.randn(5, 16)
    torch.testing.assert_close(site(x), scale * (x @ op.weight.T + op.bias))


def test_an_a_given_at_the_site_sets_the_multiplier() -> None:
    assert ParametrizedModule(nn.Linear(9, 3), 9, a=1.0).scale == pytest.approx(1 / 9)


def test_a_callable_is_scaled_and_has_no_weight() -> None:
    site = ParametrizedModule(lambda q, k: q @ k.T, 4, a=0.5)
    q, k = torch.randn(3, 4), torch.randn(5, 4)
    torch.testing.assert_close(site(q, k), q @ k.T / 2)
    assert site.weight is None
    assert list(site.parameters()) == []


def test_all_arguments_reach_the_operation() -> None:
    site = ParametrizedModule(lambda q, k, *, shift: q @ k.T + shift, 4, a=0.5)
    q, k = torch.ones(1, 4), torch.ones(1, 4)
    assert float(site(q, k=k, shift=2.0)) == pytest.approx(3.0)


def test_the_weight_is_the_wrapped_modules_own() -> None:
    op = nn.Linear(4, 4)
    assert ParametrizedModule(op, 4).weight is op.weight


def test_what_defines_a_site_is_kept_on_it() -> None:
    site = ParametrizedModule(nn.Linear(4, 4), 4, "hidden", a=0.1, b=0.4, c=0.7)
    assert (site.width_dim, site.layer_type) == (4, "hidden")
    assert (site.a, site.b, site.c) == (0.1, 0.4, 0.7)


def test_an_unknown_layer_type_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"layer_type must be one of .*'output'"):
        ParametrizedModule(nn.Linear(4, 4), 4, "output")  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [1, 0, -3])
def test_a_width_that_has_no_exponent_is_refused(width: int) -> None:
    with pytest.raises(ValueError, match="width_dim must be at least 2"):
        ParametrizedModule(nn.Linear(4, 4), width)


def test_a_module_without_a_weight_is_refused() -> None:
    with pytest.raises(TypeError, match="Dropout has no weight"):
        ParametrizedModule(nn.Dropout(), 4)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="got int"):
        ParametrizedModule(3, 4)  # type: ignore[arg-type]


def test_sites_are_found_by_module_name_in_order_of_definition() -> None:
    assert list(find_sites(MLP(depth=2))) == ["embed", "layers.0", "layers.1", "readout"]
    block = [f"blocks.0.{name}" for name in ("wq", "wk", "wv", "qk", "wo", "w1", "w3", "w2")]
    assert list(find_sites(Llama(depth=1))) == ["embed", *block, "output"]


def test_wrappers_leave_no_trace_in_names() -> None:
    model = MLP(depth=2)
    plain = list(find_sites(model))
    model.layers[0] = checkpoint_wrapper(model.layers[0])
    assert "layers.0._checkpoint_wrapped_module" in dict(model.named_modules())
    assert list(find_sites(model)) == plain
    compiled = nn.Module()  # as torch.compile names what it wraps
    compiled.add_module("_orig_mod", model)
    assert list(find_sites(compiled)) == plain


def test_two_sites_that_share_a_weight_are_refused_by_name() -> None:
    ops = nn.Linear(4, 4), nn.Linear(4, 4)
    ops[1].weight = ops[0].weight
    model = nn.Sequential(*(ParametrizedModule(op, 4) for op in ops))
    with pytest.raises(ValueError, match="1 and 0 share one weight"):
        find_sites(model)


def test_sites_without_a_weight_do_not_count_as_sharing_one() -> None:
    model = nn.Sequential(*(ParametrizedModule(torch.mul, 4) for _ in range(2)))
    assert list(find_sites(model)) == ["0", "1"]
