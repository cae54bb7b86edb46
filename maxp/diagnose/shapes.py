"""What the weights of a model are by their shapes, whatever is marked."""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

from torch import nn

from maxp.mark import mark
from maxp.module import LayerType, find_sites
from maxp.plan import MarkedWeight, Plan


class ByShape(NamedTuple):
    """A weight by its shapes.

    Attributes:
        layer_type: as `maxp.mark` finds it.
        is_marked: whether it was marked before.
        n: its width, by the width of the model.
    """

    layer_type: LayerType
    is_marked: bool
    n: dict[int, int]


class Shapes:
    """The weights that grow with the width, found by comparing models of all widths.

    Args:
        models: by width, at least two, with the same sites.

    Attributes:
        weights: by site, those that are not marked included.

    Raises:
        ValueError: the models of two widths have the same shapes, or different parameters.
    """

    def __init__(self, models: Mapping[int, nn.Module]) -> None:
        shapes = {w: [tuple(p.shape) for p in m.parameters()] for w, m in models.items()}
        sites = {w: list(find_sites(m)) for w, m in models.items()}
        self.weights: dict[str, ByShape] = {}
        self._unmarked: dict[int, list[MarkedWeight]] = {}
        for one, other in pairwise([*models, next(iter(models))]):
            if sites[one] != sites[other]:
                raise ValueError(f"make_model: other sites at width {other} than at {one}")
            if shapes[one] == shapes[other]:
                raise ValueError(
                    f"make_model: the models of widths {one} and {other} have the same shapes; "
                    "build the model of the width that make_model receives"
                )
            try:
                plan = mark(models[one], models[other])
            except ValueError as error:
                raise ValueError(f"make_model: widths {one} and {other}: {error}") from error
            self._unmarked[one] = self._add(plan, one)

    def _add(self, plan: Plan, width: int) -> list[MarkedWeight]:
        """Add the weights of a model, and return those that are not marked."""
        sites, unmarked = find_sites(plan.model), []
        for w in plan.weights:
            weight = getattr(plan.model.get_submodule(w.module), w.parameter)
            # A tied weight has several sites, or is unmarked in one role. Modules of a site may be
            # inside it, as in a ParametrizedModule.
            names = [name for name, site in sites.items() if site.weight is weight]
            own = [n for n in names if f"{w.name}.".startswith(f"{n}.")]
            if w.tied_to is None:
                own += names
            name = next(iter(own), w.name)
            if not own:
                unmarked.append(w)
            self.weights.setdefault(name, ByShape(w.layer_type, bool(own), {})).n[width] = w.n
        return unmarked

    def mark(self, model: nn.Module, width: int) -> None:
        """Mark the weights that are not marked, with the multiplier 1, to observe them as well."""
        Plan(model, self._unmarked[width], {}).apply()
