"""Trace which sites feed which, in one forward pass; works on the meta device.

Every tensor is labelled with the node that its value comes from: the site that computed it, or the
join of the nodes that an operation mixed. The tracer sees every aten operation, including views and
in-place writes. It does not matter what an operation computes, since a sum, an elementwise product
and an attention-weighted mean all have the smallest r of their inputs (docs/theory.md). All views
of one storage count as one value.
"""

import logging
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

from maxp.graph import Graph, JoinNode, Node, SiteNode, chain
from maxp.module import Site, few, find_sites, is_frozen, weight_owners
from maxp.sites import ParameterSite

logger = logging.getLogger(__name__)

_PRODUCTS = frozenset(
    getattr(torch.ops.aten, name) for name in ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv")
)
"""Contractions, whose last two tensors are contracted over the last and the first dimension, or
over the last and the second one in a batch."""
# In-place operations that do not read the old values.
_OVERWRITES = frozenset({torch.ops.aten.copy_, torch.ops.aten.fill_, torch.ops.aten.zero_})


def call_model(model: Callable[..., Any], x: Any) -> Any:
    """``model(x)``, or ``model(*x)`` for a tuple or list, or ``model(**x)`` for a mapping."""
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, (tuple, list)) else model(x)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode during the block; then restore the mode of every module."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def trace(model: nn.Module, sample_input: Any) -> Graph:
    """The graph of a model's sites.

    Args:
        model: contains sites; may be on the meta device.
        sample_input: a tensor, or a tuple or dict of arguments. Its values do not matter. It is
            moved to the meta device if the model is there.

    Raises:
        ValueError: the model has no site, or the forward pass does not reach a site.
    """
    sites = find_sites(model)
    if not sites:
        raise ValueError("no site found: wrap layers in ParametrizedModule")
    if isinstance(sample_input, Mapping):
        sample_input = dict(sample_input)
    if any(parameter.is_meta for parameter in model.parameters()):
        sample_input = tree_map_only(torch.Tensor, lambda t: t.to("meta"), sample_input)
    tracer = _traced(model, sites, sample_input)
    # As in timm's BEiT: F.linear(x, self.qkv.weight, bias).
    uncalled = frozenset(
        name
        for name in tracer.read_outside - tracer.nodes.keys()
        if sites[name].layer_type == "hidden" and sites[name].scale == 1
    )
    if uncalled:
        tracer = _traced(model, sites, sample_input, uncalled)
        logger.warning(
            "%s: the module is never called, since other code reads its weight: its alignment is "
            "not measured, and stays that of the preset",
            few(sorted(uncalled)),
        )
    for name in sorted(tracer.read_outside):
        logger.warning(
            "%s: its weight is read outside its module, without the multiplier and the learning "
            "rate of that role; give what reads it a module, as in head.weight = %s.weight",
            name, name,
        )  # fmt: skip
    for name in sorted(tracer.contracted):
        logger.warning(
            "%s: the model contracts its width, so it is no embedding, as its shapes say; pass "
            "rules={%r: 'readout'}",
            name, name,
        )  # fmt: skip
    missed = [name for name in sites if name not in tracer.nodes]
    if missed:
        raise ValueError(
            f"a forward pass on sample_input does not reach {', '.join(missed)}; give a "
            "sample_input that uses every site"
        )
    return Graph(tracer.nodes)


def _traced(
    model: nn.Module,
    sites: Mapping[str, Site],
    sample_input: Any,
    uncalled: frozenset[str] = frozenset(),
) -> "_Tracer":
    """The tracer after one forward pass.

    Args:
        uncalled: sites whose weights are followed, since their modules are not called.
    """
    tracer = _Tracer(weight_owners(sites), uncalled)
    hooks = [hook for name, site in sites.items() for hook in tracer.watch(name, site)]
    try:
        with evaluating(model), torch.no_grad(), _layer_by_layer(), tracer:
            call_model(model, sample_input)
    finally:
        for hook in hooks:
            hook.remove()
    return tracer


def graph_of(model: nn.Module, sites: Mapping[str, Site], sample_input: Any) -> Graph:
    """The graph to solve on: ``sample_input`` if it is one, traced on it, or a chain if it is None.

    Raises:
        ValueError: a given graph has other sites than the model.
    """
    if sample_input is None:
        return chain(
            ((n, s.layer_type, s.weight is not None) for n, s in sites.items()),
            weight_owners(sites),
            [name for name, site in sites.items() if is_frozen(site)],
        )
    if not isinstance(sample_input, Graph):
        return trace(model, sample_input)
    if different := sorted({node.site for node in sample_input.sites} ^ sites.keys()):
        raise ValueError(f"the graph's sites are not the model's: {', '.join(different[:8])}")
    return sample_input


@contextmanager
def _layer_by_layer() -> Iterator[None]:
    """Without the fast path of torch's own transformer, which computes a layer in one operation."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


class _Tracer(TorchDispatchMode):
    """Stores the node of each tensor, by storage, so that views and in-place writes agree.

    Args:
        owners: for each site with a tied weight, the site that owns it.
        uncalled: sites whose modules are not called, so that their weights are followed.
    """

    def __init__(self, owners: Mapping[str, str], uncalled: frozenset[str]) -> None:
        super().__init__()
        self.nodes: dict[str, Node] = {}
        self._owners, self._uncalled = owners, uncalled
        self._calls: dict[str, dict[tuple[str | None, ...], str]] = {}
        self._node_of = WeakIdKeyDictionary(ref_type=weakref.ref)
        # Parameters that are sites by themselves, and views and copies of them.
        self._parameters = WeakIdKeyDictionary(ref_type=weakref.ref)
        # The sites that are modules, by the storage of their trained weight; and those of which an
        # operation outside a module with this weight reads it.
        self._weights = WeakIdKeyDictionary(ref_type=weakref.ref)
        self.read_outside: set[str] = set()
        # The embeddings that are parameters by themselves: their name and n; and those of which an
        # operation outside all sites contracts n.
        self._tables = WeakIdKeyDictionary(ref_type=weakref.ref)
        self.contracted: set[str] = set()
        self._running: dict[str, Any] = {}
        self._joins: dict[frozenset[str], str] = {}
        self._pending: dict[str, tuple[tuple[str | None, ...], frozenset[str]]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        leaves = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self._note_readers(leaves)
        if func.overloadpacket in _PRODUCTS and not self._running:
            self._note_contracted(*[t for t in args if isinstance(t, torch.Tensor)][-2:])
        if sites := {s[0]: s for t in leaves if (s := self._parameter(t)) is not None}:
            return self._use(sites, leaves, func(*args, **kwargs))
        read = args[1:] if func.overloadpacket in _OVERWRITES and _is_whole(args[0]) else args
        mixed = self._join(self._nodes(tree_leaves((read, kwargs))))
        out = func(*args, **kwargs)
        written = [
            value
            for value, argument in zip(args, func._schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        self._set(tree_leaves((out, written)), mixed)
        return out

    def _note_readers(self, leaves: list[torch.Tensor]) -> None:
        """Note the sites whose weight an operation contracts outside a module with this weight."""
        floats = {id(s): s for t in leaves if t.is_floating_point() for s in [t.untyped_storage()]}
        running = {id(storage) for storage in self._running.values()}
        read = {
            name
            for key, s in floats.items()
            if key not in running and (name := self._weights.get(s))
        }
        if len(floats) > len(read):  # not a view or a norm of the weight
            self.read_outside |= read

    def _note_contracted(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Note the embeddings of which a product contracts the width."""
        for tensor, size in ((left, left.shape[-1]), (right, right.shape[-2:][0])):
            name, n = self._tables.get(tensor.untyped_storage(), ("", 0))
            # Of a square matrix, the sizes do not tell which dimension is contracted.
            if size == n and list(tensor.shape).count(n) == 1:
                self.contracted.add(name)

    def _parameter(self, tensor: torch.Tensor) -> tuple[str, Site] | None:
        return self._parameters.get(tensor.untyped_storage())

    def _use(
        self, sites: Mapping[str, tuple[str, Site]], leaves: list[torch.Tensor], out: Any
    ) -> Any:
        """Label the output of an operation that reads parameters that are sites."""
        others = [t for t in leaves if t.is_floating_point() and self._parameter(t) is None]
        written = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        if not others:  # a view, a part or a copy of a parameter
            for tensor in written:
                self._parameters[tensor.untyped_storage()] = next(iter(sites.values()))
            return out
        source = self._join(self._nodes(others))
        calls = frozenset(self._call(name, site, (source,)) for name, site in sites.values())
        self._set(written, self._join(calls))
        return out

    def _call(self, name: str, site: Site, operands: tuple[str | None, ...]) -> str:
        """The node of a call of a site; calls with the same operands are one node."""
        calls = self._calls.setdefault(name, {})
        if operands not in calls:
            node = f"{name} (call {len(calls) + 1})" if calls else name
            self.nodes[node] = SiteNode(
                node,
                site.layer_type,
                operands,
                site.weight is not None,
                self._owners.get(name),
                name if calls else None,
                is_frozen(site),
                name not in self._uncalled,
            )
            calls[operands] = node
        return calls[operands]

    def watch(self, name: str, site: Site) -> list[Any]:
        """Hooks that store a site's operands and label its output with the site."""
        if isinstance(site, ParameterSite) or name in self._uncalled:
            storage = site.weight.untyped_storage()
            if site.layer_type == "embedding":
                self._node_of[storage] = self._call(name, site, (None,))
                self._tables[storage] = name, site.width_dim
            else:
                self._parameters[storage] = name, site
            return []

        if site.weight is not None and not is_frozen(site):
            self._weights.setdefault(site.weight.untyped_storage(), name)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if site.weight is not None:
                self._running[name] = site.weight.untyped_storage()
            operands = site.site_operands(args, kwargs)
            known = {id(operand) for operand in operands}
            rest = [t for t in tree_leaves((args, kwargs)) if id(t) not in known]
            self._pending[name] = (
                tuple(self._node(operand) for operand in operands),
                frozenset() if site.weight is not None else self._nodes(rest),
            )

        def after(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            operands, rest = self._pending.pop(name)
            self._running.pop(name, None)
            if site.layer_type == "embedding":
                operands = (None,) * len(operands)  # a further call changes as the first
            node = self._call(name, site, operands)
            self._set(tree_leaves(out), self._join(frozenset({node}) | rest))

        assert isinstance(site, nn.Module)
        return [
            site.register_forward_pre_hook(before, with_kwargs=True),
            site.register_forward_hook(after),
        ]

    def _node(self, tensor: torch.Tensor) -> str | None:
        return self._node_of.get(tensor.untyped_storage())

    def _nodes(self, values: Iterable[Any]) -> frozenset[str]:
        nodes = (self._node(v) for v in values if isinstance(v, torch.Tensor))
        return frozenset(node for node in nodes if node is not None)

    def _set(self, values: Iterable[Any], node: str | None) -> None:
        for value in values:
            if isinstance(value, torch.Tensor):
                if node is None:
                    self._node_of.pop(value.untyped_storage(), None)
                else:
                    self._node_of[value.untyped_storage()] = node

    def _join(self, parents: frozenset[str]) -> str | None:
        if len(parents) < 2:
            return next(iter(parents), None)
        if parents not in self._joins:
            name = f"join {len(self._joins)}"
            self._joins[parents] = name
            order = {node: i for i, node in enumerate(self.nodes)}
            self.nodes[name] = JoinNode(name, tuple(sorted(parents, key=order.__getitem__)))
        return self._joins[parents]


def _is_whole(tensor: torch.Tensor) -> bool:
    """Whether a tensor covers its whole storage."""
    return tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
