"""Marks the sites of any model by comparing it with a model of another width.

What differs between the shapes of a weight in the two models tells its layer type:

    fan-in and fan-out    hidden
    fan-out               embedding
    fan-in                readout
    neither               not a site: it stays as it is

The width n of a site is the dimension that differs: the fan-in, or the fan-out of an embedding.
Source: Yang et al. 2022 (arXiv 2203.03466), Table 8, and the base shapes of microsoft/mup.
"""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from maxp.base import counterparts
from maxp.layout import CONVOLUTIONS, groups_of, is_transposed
from maxp.module import LAYER_TYPES, LayerType, find_sites, plain_name, site_name
from maxp.overrides import matching_key
from maxp.plan import MarkedWeight, Plan, named_parameters
from maxp.shards import rms, whole

logger = logging.getLogger(__name__)

Rule = LayerType | None


def mark(
    model: nn.Module,
    base: nn.Module,
    rules: Mapping[str, Rule] | None = None,
    *,
    delta: nn.Module | None = None,
    fewer_blocks: bool = False,
) -> Plan:
    """Plan which weights of a model are sites. `Plan.apply` marks them.

    Args:
        model: any model; may be on the meta device.
        base: the same model at the width that learning rates are tuned at; may be on the meta
            device. It must differ from ``model`` in width alone.
        rules: the layer type, or None for no site, by name or suffix of a site, or by the name of
            a module's class.
        delta: the same model at a third width, to compare with ``base`` instead of ``model``:
            needed if ``model`` has the width of the base.
        fewer_blocks: the base may have fewer blocks than the model: its last one then stands for
            those that it lacks.

    Raises:
        ValueError: the models have different parameters, or tables of other numbers of rows; a rule
            that matches nothing or is unknown; or no shape differs.
    """
    rules = dict(rules or {})
    for key, rule in rules.items():
        if rule is not None and rule not in LAYER_TYPES:
            raise ValueError(
                f"mark: the rule for {key} must be one of {', '.join(LAYER_TYPES)} or None, "
                f"got {rule!r}"
            )
    _warn_of_heads(model, base)
    shapes = _Shapes(model, base, delta, fewer_blocks=fewer_blocks)
    plan = _Planner(model, shapes, rules).plan()
    if not plan.weights:
        raise ValueError(
            "mark: no shape of a matrix differs between model and base; at the base's own width, "
            "pass base=mark(model, base, delta=make_model(another_width)) to Parametrization"
        )
    names = [site_name(name) for name in shapes.model]
    classes = {c.__name__ for m in model.modules() for c in type(m).__mro__}
    for key in rules:
        if key not in classes and all(matching_key(name, {key}) is None for name in names):
            raise ValueError(f"mark: the rule for {key} matches no parameter and no module class")
    return plan


def _warn_of_heads(model: nn.Module, base: nn.Module) -> None:
    """Warn if heads grow: their scores q k, which are no site here, then grow with the width."""
    others = dict(base.named_modules())
    for name, module in model.named_modules():
        size, other = (getattr(m, "head_dim", None) for m in (module, others.get(name)))
        if isinstance(size, int) and isinstance(other, int) and size != other:
            logger.warning(
                "%s: head_dim is %d, and %d in the base. q k is not marked; let the number of "
                "heads grow instead, or wrap q k in ParametrizedModule with a = 1",
                name or type(module).__name__, size, other,
            )  # fmt: skip
            return


def marked(model: nn.Module, base: Any, *, fewer_blocks: bool = False) -> Plan | None:
    """The plan by which a model is marked; it is applied if the model has no site yet.

    Args:
        model: any model.
        base: a plan; or a model without sites, to compare with. Otherwise, there is no plan.
        fewer_blocks: as in `mark`.

    Raises:
        ValueError: as `mark`; or the plan is of another model.
    """
    if isinstance(base, nn.Module) and not find_sites(base):
        base = mark(model, base, fewer_blocks=fewer_blocks)
    if not isinstance(base, Plan):
        return None
    if base.model is not model:
        raise ValueError("base: the plan is of another model; call mark with this one")
    if not find_sites(model):
        base.apply()
    return base


class _Shapes:
    """Parameters of model and base by name, and the dimensions in which widths show.

    Args:
        model: to mark.
        base: to compare it with.
        delta: to compare the base with instead of the model.
        fewer_blocks: base and delta may lack blocks of the model, for which their last one counts.
    """

    def __init__(
        self, model: nn.Module, base: nn.Module, delta: nn.Module | None, *, fewer_blocks: bool
    ) -> None:
        self.model = named_parameters(model)
        self.base = self._matched("base", base, fewer_blocks)
        wide = self.model if delta is None else self._matched("delta", delta, fewer_blocks)
        self.compared = wide, self.base

    def _matched(self, what: str, other: nn.Module, fewer_blocks: bool) -> dict[str, torch.Tensor]:
        """The parameter of another model for each parameter of this one."""
        own = named_parameters(other)
        matched = counterparts(self.model, own, fewer_blocks=fewer_blocks)
        missing = self.model.keys() - matched.keys()
        if different := sorted(missing | own.keys() - self.model.keys()):
            raise ValueError(
                f"{what}: other parameters than the model's: {', '.join(different[:4])}"
                f"{', ...' if len(different) > 4 else ''}; it must differ in width only, or with "
                "the argument depth have fewer blocks"
            )
        return {name: own[other] for name, other in matched.items()}

    def growing(self, name: str) -> list[int]:
        """The dimensions of a parameter that differ between the two models."""
        one, two = (shapes[name].shape for shapes in self.compared)
        if len(one) != len(two):
            raise ValueError(f"base: {name} has {len(two)} dimensions, and {len(one)} in the model")
        return [i for i, (x, y) in enumerate(zip(one, two, strict=True)) if x != y]


class _Planner:
    def __init__(self, model: nn.Module, shapes: _Shapes, rules: Mapping[str, Rule]) -> None:
        self._shapes, self._rules = shapes, rules
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._model = model
        self._owners: dict[int, str] = {}
        self._seen: set[tuple[int, str]] = set()

    def plan(self) -> Plan:
        weights: list[MarkedWeight] = []
        others: dict[str, str] = {}
        for path, tensor in self._model.named_parameters(remove_duplicate=False):
            prefix, _, parameter = path.rpartition(".")
            module, name = self._modules[prefix], plain_name(path)
            if (id(module), parameter) in self._seen:
                continue  # a module that is there under two names
            self._seen.add((id(module), parameter))
            weight = self._weight(name, prefix, module, parameter, tensor)
            if isinstance(weight, str):
                others[name] = weight
            else:
                weights.append(weight)
        return Plan(self._model, weights, others)

    def _weight(
        self, name: str, prefix: str, module: nn.Module, parameter: str, tensor: torch.Tensor
    ) -> MarkedWeight | str:
        """The site of a parameter, or why it is none."""
        shape, growing = tensor.shape, self._shapes.growing(name)
        ruled, rule = self._rule(site_name(name), module if parameter == "weight" else None)
        if ruled and rule is None:
            return "left as it is by a rule"
        if tensor.ndim < 2:
            if ruled:
                raise ValueError(f"mark: {name} has one dimension; only a matrix can be a {rule}")
            return "bias or gain"
        if not ruled and isinstance(module, nn.Embedding) and 0 in growing:
            rows, in_base = (len(shapes[name]) for shapes in self._shapes.compared)
            raise ValueError(
                f"mark: {site_name(name)} has {rows} rows, and {in_base} in the base; the base "
                "must differ in width only: give it the same vocabulary and sequence length"
            )
        fan_out, fan_in = _fans(module, parameter, tensor)
        # Sizes of 1, as in a position embedding (1, positions, width), are no fan.
        grows_out, grows_in = _grows(growing, fan_out, fan_in)
        layer_type: LayerType
        if ruled and rule is not None:
            layer_type = rule
        elif grows_in:
            layer_type = "hidden" if grows_out else "readout"
        elif grows_out:
            layer_type = "embedding"
        else:
            return f"{'x'.join(map(str, shape))} in both models"
        base = self._shapes.base[name]
        bare = not ruled and not _is_called(None, module, parameter)
        if bare and len(growing) == 1 and _is_gain(base, tensor):
            return "gain: its entries have one sign"
        if not ruled:
            _warn_of_doubt(site_name(name), module, fan_in, tensor, growing)
        dim = fan_out if layer_type == "embedding" else fan_in
        # A rule may be for a weight that is stored the other way round.
        if dim is None or (layer_type != "hidden" and growing and dim not in growing):
            dim = max(growing, default=len(shape) - 1)
        is_called = _is_called(self._parent(prefix), module, parameter)
        # A depthwise convolution contracts nothing that grows.
        is_called &= groups_of(module) == 1 or layer_type != "embedding"
        owner = self._owners.setdefault(id(tensor), site_name(name))
        tied_to = owner if owner != site_name(name) else None
        return MarkedWeight(
            site_name(name),
            prefix,
            parameter,
            layer_type,
            tuple(shape),
            n=shape[dim],
            n_base=base.shape[dim],
            std_base=_std(layer_type, module, base, dim),
            has_multiplier=is_called and not isinstance(self._parent(prefix), _READ_DIRECTLY),
            is_called=is_called,
            tied_to=tied_to,
            fixed_out=fan_out is not None and fan_out not in growing,
            keeps_bias=_is_set(self._shapes.base.get(f"{site_name(name)}.bias"), base),
        )

    def _rule(self, name: str, module: nn.Module | None) -> tuple[bool, Rule]:
        if (key := matching_key(name, self._rules)) is not None:
            return True, self._rules[key]
        for cls in type(module).__mro__ if module is not None else ():
            if cls.__name__ in self._rules:
                return True, self._rules[cls.__name__]
        return False, None

    def _parent(self, prefix: str) -> nn.Module | None:
        return self._modules.get(prefix.rpartition(".")[0]) if prefix else None


# Their fast path in evaluation reads the weights of their children without calling them.
_READ_DIRECTLY = (nn.TransformerEncoderLayer, nn.MultiheadAttention)


def _is_called(parent: nn.Module | None, module: nn.Module, parameter: str) -> bool:
    """Whether a module contracts its input with this weight when it is called, and only that."""
    known = isinstance(module, (nn.Linear, nn.Embedding, *CONVOLUTIONS)) or is_transposed(module)
    return known and parameter == "weight" and not isinstance(parent, nn.MultiheadAttention)


def _warn_of_doubt(
    name: str, module: nn.Module, fan_in: int | None, weight: torch.Tensor, growing: list[int]
) -> None:
    """Warn of a weight whose shapes do not tell what it contracts."""
    shape = "x".join(map(str, weight.shape))
    sizes = [dim for dim, size in enumerate(weight.shape) if size > 1]
    if fan_in is None and len(sizes) == 2 and growing == sizes[:1]:
        logger.warning(
            "%s: a parameter of shape %s whose first dimension alone grows is taken for an "
            "embedding. If the model contracts this dimension, as in x @ %s, pass "
            "rules={%r: 'readout'}; else pass rules={%r: 'embedding'}",
            name, shape, name, name, name,
        )  # fmt: skip
    elif isinstance(module, nn.Bilinear) and len({1, 2}.intersection(growing)) == 2:
        logger.warning(
            "%s: both inputs of this nn.Bilinear grow, so it contracts n^2 products; it is marked "
            "as if it contracted n, and its output grows with the width. Project one input to a "
            "fixed size, or pass rules={%r: None} to leave it as it is",
            name, name,
        )  # fmt: skip


def _is_gain(*weights: torch.Tensor) -> bool:
    """Whether the entries have one sign, as those of gains, logarithms and temperatures have.

    Entries that are drawn at random, from a distribution around 0, would not stand for them.

    Args:
        weights: the first that has values tells.
    """
    values = next((whole(weight.detach()) for weight in weights if not weight.is_meta), None)
    if values is None or values.numel() == 0:
        return False
    low, high = float(values.min()), float(values.max())
    return low * high >= 0 and (low != 0 or high != 0)


def _is_set(bias: torch.Tensor | None, weight: torch.Tensor) -> bool:
    """Whether a bias was set on purpose, as that of Mamba's time steps or of a forget gate.

    Its entries then have one sign, and are equal or exceed torch's default, which is uniform
    between plus and minus fan_in^-1/2.
    """
    if bias is None or not _is_gain(bias):
        return False
    values = whole(bias.detach()).abs()
    equal = values.numel() > 1 and bool((values == values[0]).all())
    return equal or float(values.max()) > (bias.numel() / weight.numel()) ** 0.5


def _fans(module: nn.Module, parameter: str, tensor: torch.Tensor) -> tuple[int | None, int | None]:
    """The dimensions (fan_out, fan_in) of a weight; None for both if only shapes can tell."""
    if isinstance(module, nn.Embedding):
        return 1, 0
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        # Each channel of a depthwise one is an output by itself.
        return (0, 1) if 1 < module.groups == module.in_channels else (1, 0)
    if is_transposed(module):
        return 1, 0
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 0, 1
    # A router, or another layer's own matrix. A table of rows is called an embedding.
    named = "weight" in parameter and tensor.ndim == 2
    if named and "embedding" not in type(module).__name__.lower():
        return 0, 1
    return None, None


def _grows(growing: list[int], fan_out: int | None, fan_in: int | None) -> tuple[bool, bool]:
    """Whether (fan_out, fan_in) differ; a bare parameter in which one differs is an embedding."""
    if fan_out is None:
        return bool(growing), len(growing) > 1
    return fan_out in growing, fan_in in growing


def _std(layer_type: LayerType, module: nn.Module, base: torch.Tensor, dim: int) -> float:
    """The standard deviation of a base's weight."""
    if not base.is_meta:
        return rms(base)
    if layer_type == "embedding" and not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return 1.0
    if isinstance(module, (nn.Linear, *CONVOLUTIONS)):
        return float(base.shape[1:].numel() ** -0.5)
    return float(base.shape[dim] ** -0.5)
