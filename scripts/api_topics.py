"""The topics of docs/api.md: which public names belong to each, and an example with its output.

tests/test_docs.py runs the examples, one after the other, and compares what they print.
"""

from typing import NamedTuple


class Topic(NamedTuple):
    """A topic of the page; its example may use the names of those before it."""

    title: str
    text: str
    example: str
    output: str
    names: tuple[str, ...]


TOPICS = (
    Topic(
        "Marking",
        "A *site* is a layer whose size depends on the model's width. Marking gives each site its "
        "layer type and its\nwidth `n`: by comparing two widths of a model (`mark`), or by hand "
        "(`ParametrizedModule`).",
        """\
import torch
from torch import nn

from maxp import ParametrizedModule, mark


def make_model(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(16, n), nn.ReLU(), nn.Linear(n, n), nn.Linear(n, 10))


print(mark(make_model(256), base=make_model(64)))

by_hand = nn.Sequential(
    ParametrizedModule(nn.Linear(16, 256), 256, "embedding"),  # the fan-out
    nn.ReLU(),
    ParametrizedModule(nn.Linear(256, 256), 256, "hidden"),  # the fan-in
    ParametrizedModule(nn.Linear(256, 10), 256, "readout"),  # the fan-in
)
""",
        """\
site  type       shape    n    n_base  a     b
0     embedding  256x16   256  64      -0.5  0.5
2     hidden     256x256  256  64      0     0.5
3     readout    10x256   256  64      0.5   0.5

no site
0.bias   bias or gain
2.bias   bias or gain
3.bias   bias or gain
""",
        ("mark", "Plan", "MarkedWeight", "ParametrizedModule", "Site"),
    ),
    Topic(
        "Solving",
        "`Parametrization` marks a model, draws its weights, solves for the exponents `c` of the "
        "learning rates, and holds\nthe param groups for an optimizer. `solve` solves the program "
        "of a graph alone.",
        """\
from maxp import Alignment, Exponents, Graph, Parametrization, SiteNode, solve

x = torch.randn(64, 16)
p = Parametrization(make_model(256), base=make_model(64), lr_prefactor=0.01, sample_input=x)
optimizer = torch.optim.Adam(p.param_groups)
print("c", p.c)
print("lr", {site: p.lrs()[site] for site in p.c})  # lr_prefactor (256 / 64)^-c

full = Alignment(1, 1 / 2, 1)
graph = Graph(
    {
        "in": SiteNode("in", "embedding", (None,)),
        "mid": SiteNode("mid", "hidden", ("in",)),
        "out": SiteNode("out", "readout", ("mid",)),
    }
)
exponents = {
    "in": Exponents(-1 / 2, 1 / 2, full),
    "mid": Exponents(0, 1 / 2, Alignment(0.8, 1 / 2, 0.7)),
    "out": Exponents(1 / 2, 1 / 2, full),
}
print(solve(graph, exponents))
""",
        """\
c {'0': 0.5, '2': 1.0, '3': 0.5}
lr {'0': 0.005, '2': 0.0025, '3': 0.005}
Solution(c={'in': 0.5, 'mid': 0.8, 'out': 0.5}, r={'in': 0.0, 'mid': 0.0, 'out': 0.0})
""",
        (
            "Parametrization",
            "MuonAdamW",
            "Depth",
            "solve",
            "Program",
            "Exponents",
            "Solution",
            "Graph",
            "SiteNode",
            "JoinNode",
            "trace",
            "InfeasibleProgramError",
        ),
    ),
    Topic(
        "Measuring",
        "`Parametrization.capture_initial` and `Parametrization.step` measure alignment in a "
        "training loop.\n`compute_alignment` is the measurement of one site.",
        """\
from maxp import BOUNDS, bounded, compute_alignment

p.capture_initial()  # before training
loss = p.model(x).square().mean()
loss.backward()
optimizer.step()
p.step(x, optimizer)  # measures, solves, and sets the learning rates
print("measured sites:", [site for site, terms in p.measured.items() if None not in terms])

n = 256
z0, W0 = torch.randn(1, n), torch.randn(n, n) / n**0.5
dW = -1e-3 * torch.outer(torch.randn(n), z0[0]).sign()  # Adam's first step
measured = compute_alignment(z0, W0, z0 + torch.randn(1, n), W0 + dW, n)
print("z0_dW %.1f, dZ_w0 %.1f" % measured[:2])
print(bounded((1.02, 0.53, 0.4), BOUNDS))
""",
        """\
measured sites: ['2', '3']
z0_dW 1.0, dZ_w0 0.5
Alignment(z0_dW=1.0, dZ_w0=0.5, dZ_dW=0.5)
""",
        ("compute_alignment", "Alignment", "AlignmentBounds", "BOUNDS", "bounded"),
    ),
    Topic(
        "Checking",
        "A coordinate check trains a model for a few steps at several widths, and tells which "
        "layers do not scale as they\nshould. `Parametrization` is correct for this model; one "
        "learning rate for all layers is not:",
        """\
from maxp import diagnose_axis, print_axis


def parametrized(n: int):
    model = make_model(n)
    return model, Parametrization(model, base=make_model(32), lr_prefactor=1e-3).param_groups


def one_lr(n: int):
    model = make_model(n)
    return model, [{"params": list(model.parameters()), "lr": 1e-3}]


for make in (parametrized, one_lr):
    sites, wrong, stats = diagnose_axis(
        make, lambda n: torch.randn(1, 16), [64, 256, 1024], steps=1, seeds=8, progress=False
    )
    print(make.__name__, {site: stats[site].verdict for site in sites})
""",
        """\
parametrized {'0': 'right', '2': 'right', '3': 'right'}
one_lr {'0': 'right', '2': 'wrong', '3': 'wrong'}
""",
        ("diagnose_axis", "print_axis", "plot_axis", "SiteStats", "Slope", "Fault"),
    ),
    Topic(
        "Tables",
        "Exponents and alignments are given by layer type, by the name of a site, or by a suffix "
        "of it. `print(p.plan)` shows\nwhat came out, and `Parametrization.factors` has it by "
        "param group.",
        """\
from maxp import PARAMETRIZATIONS

torch.manual_seed(0)
p = Parametrization(
    make_model(256),
    base=make_model(64),
    lr_prefactor=0.01,
    ab_overrides=PARAMETRIZATIONS["standard"],
    alignment_overrides={"hidden": (0.75, 0.5, 0.75)},
    weight_decay=0.1,
)
print(p.plan)
factors = p.factors()["2"]
print(f"lr {factors.lr:.3f}, decay {factors.weight_decay:.2f}")
""",
        """\
site  type       shape    n    n_base  a  b    c     lr       std
0     embedding  256x16   256  64      0  0    0     0.01     0.145
2     hidden     256x256  256  64      0  0.5  0.75  0.00354  0.0364
3     readout    10x256   256  64      0  0.5  1     0.0025   0.0358

no site                lr
0.bias   bias or gain  0.01
2.bias   bias or gain  0.01
3.bias   bias or gain  0.01
lr 0.354, decay 2.83
""",
        ("PARAMETRIZATIONS", "Factors"),
    ),
)
