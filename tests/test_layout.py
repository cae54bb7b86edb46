"""Layers as matrix products: convolutions by their patches and groups, a transposed weight."""

import pytest
import torch
from plain_models import Looped
from test_alignment import by_definition
from torch import nn
from transformers.pytorch_utils import Conv1D

from maxp import Parametrization, ParametrizedModule
from maxp.alignment import compute_alignment
from maxp.layout import contracted_input, matrix_rows, weight_matrix

LAYERS = {
    "linear": (nn.Linear(6, 5, bias=False), (2, 3, 6)),
    "transposed": (Conv1D(5, 6), (2, 3, 6)),
    "1d": (nn.Conv1d(6, 5, 3, padding=1, bias=False), (2, 6, 7)),
    "2d": (nn.Conv2d(6, 5, (3, 2), stride=2, padding=(1, 0), bias=False), (2, 6, 7, 8)),
    "dilated": (nn.Conv2d(6, 5, 3, dilation=2, bias=False), (2, 6, 7, 8)),
    "same": (nn.Conv2d(6, 5, 4, padding="same", bias=False), (2, 6, 7, 8)),
    "circular": (
        nn.Conv2d(6, 5, 3, padding=1, padding_mode="circular", bias=False), (2, 6, 7, 8),
    ),
    "3d": (nn.Conv3d(6, 5, 2, bias=False), (2, 6, 4, 4, 4)),
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_is_the_product_of_its_patches_and_its_matrix(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(shape)
    y = contracted_input(layer, x) @ weight_matrix(layer, layer.weight).T
    out = layer(x)
    expected = out.movedim(1, -1) if isinstance(layer, nn.modules.conv._ConvNd) else out
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", LAYERS)
def test_rows_of_the_matrix_are_those_of_the_whole(kind: str) -> None:
    weight = LAYERS[kind][0].weight
    rows = matrix_rows(LAYERS[kind][0], lambda start, stop: weight[start:stop], weight.shape[0])
    assert torch.equal(rows(1, 4), weight_matrix(LAYERS[kind][0], weight)[1:4])


@pytest.mark.parametrize("kind", ["transposed", "2d"])
def test_such_a_layer_is_measured_as_the_matrix_that_it_is(kind: str) -> None:
    torch.manual_seed(0)
    first = nn.Linear(6, 6) if kind == "transposed" else nn.Conv2d(6, 6, 1)
    model = nn.Sequential(ParametrizedModule(first, 6), ParametrizedModule(LAYERS[kind][0], 6))
    p, x = Parametrization(model), torch.randn(LAYERS[kind][1])
    p.capture_initial(x)
    z0, w0 = model[0](x).detach(), p.weights["1"].detach().clone()
    with torch.no_grad():
        for weight in p.weights.values():
            weight += 0.1 * torch.randn_like(weight)
    z, w, op = model[0](x).detach(), p.weights["1"].detach(), LAYERS[kind][0]
    expected = compute_alignment(
        contracted_input(op, z0), weight_matrix(op, w0),
        contracted_input(op, z), weight_matrix(op, w), 6 if kind == "transposed" else 36,
    )  # fmt: skip
    assert p.measure()["1"] == pytest.approx(expected, rel=1e-5)


def test_a_looped_layer_is_measured_at_its_most_cautious_call() -> None:
    torch.manual_seed(0)
    model, x = Looped(64), torch.randn(20, 6)
    p = Parametrization(model, base=Looped(16), sample_input=x)
    p.capture_initial(x)

    def inputs() -> list[torch.Tensor]:
        seen: list[torch.Tensor] = []
        hook = model.layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
        model(x)
        hook.remove()
        return seen

    z0, w0 = inputs(), model.layer.weight.detach().clone()
    with torch.no_grad():
        for weight in p.weights.values():
            weight += 0.1 * torch.randn_like(weight)
    w = model.layer.weight.detach()
    calls = [
        compute_alignment(before, w0, now, w, 64) for before, now in zip(z0, inputs(), strict=True)
    ]
    expected = [max(float(term or 0) for term in terms) for terms in zip(*calls, strict=True)]
    assert len({terms[1] for terms in calls}) == 3
    assert p.measure()["layer"] == pytest.approx(expected, rel=1e-5)


class Grouped(nn.Module):
    """A convolution whose groups, or whose channels per group, grow with the width."""

    def __init__(self, width: int = 12, groups: int = 2, *, depthwise: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3)
        groups = width if depthwise else groups
        self.conv = nn.Conv2d(width, 2 * width, (3, 2), stride=2, padding=1, groups=groups)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.conv(self.stem(x)).mean((-1, -2)))


@pytest.mark.parametrize("groups", [2, 3])
def test_a_grouped_convolution_is_measured_by_group(groups: int) -> None:
    torch.manual_seed(0)
    model = Grouped(12, groups).double()
    p = Parametrization(model, base=Grouped(6, groups), seed=0, sample_size=1000)
    x = torch.randn(2, 3, 9, 9).double()
    p.capture_initial()
    assert p.sites["conv"].width_dim == 12 // groups
    z0, w0 = model.stem(x).detach(), model.conv.weight.detach().clone()
    with torch.no_grad():
        for weight in p.weights.values():
            weight += 0.1 * torch.randn_like(weight)
    z, w = model.stem(x).detach(), model.conv.weight.detach()

    def patches(z: torch.Tensor) -> torch.Tensor:
        unfolded = nn.functional.unfold(z, (3, 2), stride=2, padding=1)
        return unfolded.movedim(1, -1).flatten(0, 1)

    values = []
    for g in range(groups):
        of_group = slice(g * 12 // groups, (g + 1) * 12 // groups)
        rows = slice(g * 24 // groups, (g + 1) * 24 // groups)
        values.append(
            by_definition(
                patches(z0[:, of_group]), w0[rows].flatten(1),
                patches(z[:, of_group]), w[rows].flatten(1), 12 // groups * 3 * 2,
            )
        )  # fmt: skip
    expected = [sum(terms) / groups for terms in zip(*values, strict=True)]
    assert p.measure(x)["conv"] == pytest.approx(expected, abs=1e-9)


def test_a_depthwise_convolution_contracts_nothing_that_grows() -> None:
    p = Parametrization(Grouped(12, depthwise=True), base=Grouped(6, depthwise=True))
    assert p.sites["conv"].layer_type == "embedding"
    assert "conv" not in p.measured
