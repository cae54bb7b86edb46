"""Which exponents a `Parametrization` starts with: presets, overrides, chain or graph."""

from typing import Any

import pytest
import torch
from models import FEATURES, MLP, Llama, ViT, linear
from torch import nn

from maxp import (
    PARAMETRIZATIONS,
    Graph,
    InfeasibleProgramError,
    Parametrization,
    ParametrizedModule,
    trace,
)

WIDTH = 16
NAMES = ["embed", "layers.0", "layers.1", "readout"]


# Exponents


def test_multipliers_follow_the_overrides() -> None:
    model = MLP(WIDTH, depth=1)
    Parametrization(model, ab_overrides=PARAMETRIZATIONS["mean-field"])
    scales = [site.scale for site in (model.embed, *model.layers, model.readout)]
    assert scales == pytest.approx([1, 1 / 4, 1 / 16])


@pytest.mark.parametrize(
    "overrides",
    [
        PARAMETRIZATIONS["standard"],
        [(0.0, 0.0), (0.0, 0.5), (0.0, 0.5)],
        {"embed": (0.0, 0.0), "0": (0.0, 0.5), "layers.1": (0.0, 0.5), "readout": (0.0, 0.5)},
    ],
    ids=["layer types", "three pairs", "names and suffixes"],
)
def test_ab_overrides_by_any_key_give_the_same(overrides: Any) -> None:
    p = Parametrization(MLP(depth=2), ab_overrides=overrides)
    assert p.c == dict(zip(NAMES, [0, 1, 1, 1], strict=True))  # method.md: standard, Adam full
    assert [site.scale for site in p.sites.values()] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("alignment", "optimizer_type", "c"),
    [
        ("full", "adam", (0.5, 1, 0.5)),
        ("no", "adam", (0.5, 0.5, 0)),
        ("full", "sgd", (0, 0, 0)),
    ],
)
def test_presets_give_mups_c(alignment: str, optimizer_type: Any, c: tuple[float, ...]) -> None:
    p = Parametrization(MLP(depth=1), alignment=alignment, optimizer_type=optimizer_type)
    assert tuple(p.c.values()) == c


@pytest.mark.parametrize(("alignment", "c"), [("full", (0.5, 1, 0.5)), ("no", (0.5, 0.5, 0))])
@pytest.mark.parametrize(
    ("model", "sample"),
    [
        (Llama(depth=3), torch.zeros(1, 4, dtype=torch.long)),
        (ViT(depth=3), torch.zeros(1, 4, FEATURES)),
    ],
    ids=["llama", "vit"],
)
def test_a_transformers_graph_gives_the_chains_presets(
    model: nn.Module, sample: torch.Tensor, alignment: str, c: tuple[float, ...]
) -> None:
    p = Parametrization(model, alignment=alignment, sample_input=sample)
    by_type = dict(zip(("embedding", "hidden", "readout"), c, strict=True))
    assert p.c == {name: by_type[p.sites[name].layer_type] for name in p.weights}
    assert min(p.r.values()) >= 0


class Fork(nn.Module):
    """embed -> a -> b and c, whose sum the readout reads."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Linear(FEATURES, 8), 8, "embedding")
        self.a, self.b, self.c = (linear(8, 8) for _ in range(3))
        self.readout = ParametrizedModule(nn.Linear(8, 2), 8, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.a(self.embed(x))
        return self.readout(self.b(h) + self.c(h))


# With e = 1/2 and 1 at b and c their c is 1 - r_in. On the graph both read a: a larger c there
# costs 1/4 and saves twice that, up to a + b - align_dZ_w0 = 1/4. On a chain only b reads a: it
# saves nothing, and the smaller r is taken.
FORK = {"a": (1.0, 0.25, 1.0), "b": (0.5, 0.5, 1.0), "c": (0.5, 0.5, 1.0)}


@pytest.mark.parametrize(
    ("given", "c"),
    [
        ("nothing", (0.5, 1, 1, 1, 0.5)),
        ("a sample", (0.5, 1.25, 0.75, 0.75, 0.5)),
        ("a graph", (0.5, 1.25, 0.75, 0.75, 0.5)),
    ],
)
def test_a_sample_input_or_a_graph_replaces_the_chain(given: str, c: tuple[float, ...]) -> None:
    model, x = Fork(), torch.zeros(1, FEATURES)
    sample = {"nothing": None, "a sample": x, "a graph": trace(model, x)}[given]
    p = Parametrization(model, sample_input=sample, alignment_overrides=FORK)
    assert tuple(p.c.values()) == pytest.approx(c, abs=1e-8)


def test_a_graph_of_another_model_is_refused() -> None:
    graph: Graph = trace(Fork(), torch.zeros(1, FEATURES))
    with pytest.raises(ValueError, match="the graph's sites are not the model's: a, b"):
        Parametrization(MLP(), sample_input=graph)


def test_c_overrides_are_held_and_the_others_solved_around_them() -> None:
    p = Parametrization(MLP(WIDTH, depth=2), c_overrides={"layers.0": 1.25}, lr_prefactor=1.0)
    assert tuple(p.c.values()) == (0.5, 1.25, 1, 0.5)
    assert p.lrs()["layers.0"] == pytest.approx(16**-1.25)


def test_a_c_given_at_the_site_is_held() -> None:
    model = nn.Sequential(ParametrizedModule(nn.Linear(4, 4), 4, c=1.75))
    assert Parametrization(model).c == {"0": 1.75}


def test_an_infeasible_program_at_construction_names_what_binds() -> None:
    with pytest.raises(InfeasibleProgramError, match=r"layers\.0: a \+ c - align_z0_dW"):
        Parametrization(MLP(), c_overrides={"layers.0": 0.5})
