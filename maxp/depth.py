"""Depth: a residual branch's multiplier, and the learning rates and eps of what is inside.

With L / L_base = ratio and ``x + ratio^-exponent branch(x)``,

    lr     Adam ratio^(exponent - 1)      SGD ratio^(2 exponent - 1)
    eps    Adam ratio^-exponent

inside the blocks, and nothing changes outside. Sources: Dey et al. 2025 (arXiv 2505.01618),
"CompleteP", for exponent 1; Yang et al. 2023 (arXiv 2310.02244), "Depth-muP", for 1/2.
``docs/theory.md``, "Depth", derives them.
"""

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from maxp.exponents import OptimizerType
from maxp.overrides import matching_key


@dataclass(frozen=True)
class Depth:
    """How a model's depth differs from that of the base, and what follows it.

    Attributes:
        ratio: L / L_base, the number of residual blocks relative to the base's.
        exponent: the output of every residual branch is multiplied by ``ratio**-exponent``:
            1 (CompleteP), 1/2 (Depth-muP), or another number that is not negative.
        branches: the sites that end a residual branch, by name or suffix of the name.
        inside: prefixes of the names of modules that are inside blocks, such as ``"layers"``. None:
            the numbered modules beside those that contain a branch: with a branch
            ``"layers.0.out"``, all of ``"layers.1"`` too, and nothing of ``"head.0"``.

    Raises:
        ValueError: a ratio that is not positive and finite, an exponent that is negative or not
            finite, or no branches.
    """

    ratio: float
    exponent: float
    branches: Collection[str]
    inside: Collection[str] | None = None

    def __post_init__(self) -> None:
        if not (self.ratio > 0 and math.isfinite(self.ratio)):
            raise ValueError(f"depth: ratio must be positive and finite, got {self.ratio}")
        if not (self.exponent >= 0 and math.isfinite(self.exponent)):
            raise ValueError(f"depth: exponent must be finite and >= 0, got {self.exponent}")
        if not self.branches or isinstance(self.branches, str):
            raise ValueError("depth: branches must list the sites that end a residual branch")

    def check_branches(self, names: Iterable[str]) -> None:
        """Check ``branches`` against the names of a model's sites.

        Raises:
            ValueError: an entry that matches no site.
        """
        names = list(names)
        unused = [b for b in self.branches if all(matching_key(n, {b}) is None for n in names)]
        if unused:
            raise ValueError(f"depth: branches {', '.join(unused)} match no site")

    def branch_scale(self, name: str) -> float:
        """The factor on a site's multiplier."""
        ends_branch = matching_key(name, self.branches) is not None
        return self.ratio**-self.exponent if ends_branch else 1.0

    def blocks(self, sites: Iterable[str]) -> Callable[[str], bool]:
        """A function that tells whether the module or parameter of a name is inside a block.

        Args:
            sites: the names of a model's sites.
        """
        if self.inside is not None:
            prefixes = tuple(f"{prefix}." for prefix in self.inside)
            return lambda name: f"{name}.".startswith(prefixes)
        ends = [name for name in sites if matching_key(name, self.branches) is not None]
        stacks = {_stack(name) for name in ends} - {None}
        return lambda name: _stack(name) in stacks

    def lr_factor(self, optimizer_type: OptimizerType) -> float:
        """The factor on learning rates inside blocks."""
        gradients = 1 if optimizer_type == "adam" else 2
        return float(self.ratio ** (gradients * self.exponent - 1))

    def eps_factor(self) -> float:
        """The factor on Adam's eps inside blocks: the size of gradients there."""
        return float(self.ratio**-self.exponent)


def _stack(name: str) -> tuple[str, ...] | None:
    """The parts of a name before its first number; None if it has no number."""
    parts = name.split(".")
    first = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    return None if first is None else tuple(parts[:first])
