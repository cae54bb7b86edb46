"""At its own base scale every method trains the same model, so a sweep runs only one method there.

The exponents of a method act on the ratio of a model's width to that of its base model. At the base
the ratio is 1, and nothing is changed.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from train.method.methods import METHODS

BaseOf = Callable[[str], str | None]
"""The name of a scale -> the name of its default base scale; None for none."""


def methods_to_run(
    scale: str, methods: Sequence[str], flags: Mapping[str, Any], base_of: BaseOf
) -> Sequence[str]:
    """The methods of a sweep that are run at ``scale``: one if the scale is its own base.

    That one is the first method with fixed learning rates that needs no table, else the first with
    fixed learning rates, else the first.

    Args:
        flags: the run's flags; ``maxp.base_scale`` replaces the default base.
    """
    if flags.get("maxp.base_scale", base_of(scale)) != scale:
        return methods
    static = [method for method in methods if not METHODS[method].follows]
    simple = [method for method in static if not METHODS[method].needs_table]
    return (*simple, *static, *methods)[:1]
