"""Writes the tables of docs/mup.md: maxP and microsoft/mup on the same MLP and the same GPT.

    python -m scripts.mup_page

It runs the code of the page, so what is compared is what the page shows. With ``--check`` it writes
nothing and fails if the page is not up to date.
"""

import copy
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import nn

from maxp import Parametrization
from scripts.marked import fill, table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "mup.md"
KINDS = ("MLP", "GPT")
SHOWN = (1, 2, 5, 10, 20)


class Side(NamedTuple):
    """What the code of one library makes.

    Attributes:
        lines: of its code, without blank lines and comments.
        train: the page's training loop.
    """

    lines: int
    model: Any
    optimizer: torch.optim.Optimizer
    p: Parametrization | None
    train: Callable[..., list[float]]

    def losses(self, eps: float) -> list[float]:
        """The losses of the page's training loop, with another eps of Adam."""
        for group in self.optimizer.param_groups:
            group["eps"] = eps
        return self.train(self.model, self.optimizer)

    def lrs(self) -> dict[str, float]:
        """The learning rate of each parameter."""
        groups = self.optimizer.param_groups
        lrs = {id(parameter): group["lr"] for group in groups for parameter in group["params"]}
        return {name: lrs[id(parameter)] for name, parameter in self.model.named_parameters()}


@cache
def blocks() -> dict[str, str]:
    """The page's Python code by its first line: ``"# mup, MLP"``, and so on."""
    texts = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {text.partition("\n")[0]: text for text in texts}


def sides(kind: str) -> tuple[Side, Side]:
    """mup's and maxP's, from the same initial weights."""
    pair = []
    for library in ("mup", "maxP"):
        code = blocks()[f"# {library}, {kind}"]
        names: dict[str, Any] = {"__name__": "page"}
        torch.manual_seed(0)
        exec(blocks()["import torch"], names)
        exec(code, names)
        lines = [line for line in code.splitlines() if line and not line.startswith("#")]
        made = (names["model"], names["optimizer"], names.get("p"))
        pair.append(Side(len(lines), *made, names["train"]))
    theirs, ours = pair
    # Folded, the weights are those that a model without multipliers has.
    folded = copy.deepcopy(ours.p)
    assert folded is not None
    folded.fold()
    weights = dict(folded.model.named_parameters())
    with torch.no_grad():
        for name, parameter in theirs.model.named_parameters():
            multiplier = mup_multiplier(theirs.model, name)
            parameter.copy_(weights[name] / multiplier)
    return theirs, ours


def mup_multiplier(model: nn.Module, name: str) -> float:
    """What mup multiplies the product with a parameter by."""
    path, _, kind = name.rpartition(".")
    module: Any = model.get_submodule(path)
    return 1 / module.width_mult() if kind == "weight" and hasattr(module, "width_mult") else 1.0


def marks(theirs: Side, ours: Side) -> str:
    """What each library marks, with learning rates and multipliers, parameter by parameter."""
    assert ours.p is not None
    rows = []
    lrs = theirs.lrs(), ours.lrs()
    for name, parameter in theirs.model.named_parameters():
        site = ours.p.sites.get(name.rpartition(".")[0])
        layer_type = site.layer_type if site is not None and parameter.ndim > 1 else ""
        multipliers = mup_multiplier(theirs.model, name), 1.0 if site is None else site.scale
        products = [
            f"{lr[name]:g} x {multiplier:g}"
            for lr, multiplier in zip(lrs, multipliers, strict=True)
        ]
        shape = "x".join(map(str, parameter.shape))
        rows.append([name, shape, parameter.infshape.ninf(), layer_type, *products])
    heads = ["parameter", "shape", "mup: infinite dimensions", "maxP: type"]
    return table([*heads, "mup: lr x multiplier", "maxP: lr x multiplier"], rows)


def largest_difference(kind: str, eps: float) -> tuple[float, list[float], list[float]]:
    """Of the losses relative to mup's; and the losses of both."""
    theirs, ours = (side.losses(eps) for side in sides(kind))
    pairs = zip(theirs, ours, strict=True)
    return max(abs(a - b) / abs(a) for a, b in pairs), theirs, ours


def page() -> str:
    """The whole page."""
    made = {kind: sides(kind) for kind in KINDS}
    losses = []
    for kind in KINDS:
        difference, theirs, ours = largest_difference(kind, 1e-60)
        own = largest_difference(kind, 1e-8)[0]
        for library, values in (("mup", theirs), ("maxP", ours)):
            shown = [f"{values[step - 1]:.8f}" for step in SHOWN]
            losses.append([f"{kind}, {library}", *shown, "", ""])
        losses[-1][-2:] = [_at_most(difference), _at_most(own)]
    heads = ["losses", *(f"step {step}" for step in SHOWN)]
    heads += ["largest relative difference", "the same with eps 1e-8"]
    texts = {
        "lines": table(
            ["", "mup", "maxP"],
            [[kind, *(side.lines for side in made[kind])] for kind in KINDS],
        ),
        "losses": table(heads, losses),
        **{f"marks {kind}": marks(*made[kind]) for kind in KINDS},
    }
    return fill(PAGE.read_text(), "mup", texts)


def _at_most(difference: float) -> str:
    """A power of ten above it, and above the noise of float64."""
    return f"below 1e{next(k for k in range(-12, 9) if difference < 10.0**k)}"


def main(check: bool = False) -> None:
    """Write the tables of docs/mup.md.

    Args:
        check: Write nothing; fail if the page is not up to date.
    """
    if not check:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit("docs/mup.md is out of date: run python -m scripts.mup_page")


if __name__ == "__main__":
    tyro.cli(main, prog="python -m scripts.mup_page")
