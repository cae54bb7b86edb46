"""Follows which token each row of a tensor belongs to, through operations that select rows.

A mixture of experts sends each expert the rows of some tokens. Which ones may differ between two
forward passes, so rows of the two passes can be compared only if they belong to the same token.

A tensor without an entry has its rows in position: row i is token i. An operation that selects rows
(indexing with integers or a mask, gathering, a product with a one-hot matrix) gives its output a
*token tensor*: integers of the output's shape, the number of the token that each entry belongs to,
or `UNKNOWN`, or `EMPTY` for zeros into which nothing has been written. Operations that move entries
move the integers alike. Others keep the tokens of the rows that they read. What is none of these
makes the tokens unknown.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakIdKeyDictionary, WeakTensorKeyDictionary

UNKNOWN, EMPTY = -1, -2

_SELECT = frozenset(("index", "index_select", "gather", "masked_select"))
_REDUCE = frozenset(("sum", "mean"))
_SORT = frozenset(("sort", "topk", "msort"))
_MOVE = _SELECT | frozenset(
    (
        "view", "_unsafe_view", "reshape", "transpose", "permute", "t", "unsqueeze", "squeeze",
        "expand", "slice", "select", "split", "split_with_sizes", "chunk", "unbind", "cat", "stack",
        "clone", "detach", "alias", "repeat", "flip", "roll", "unfold",
    )
)  # fmt: skip
# Products, and the position of the argument whose rows the output has.
_PRODUCTS = {"mm": 0, "bmm": 0, "linear": 0, "addmm": 1, "baddbmm": 1, "_grouped_mm": 0}
# Operations that write rows: how their tokens are written, given (into, *arguments, tokens).
_WRITE: dict[str, Callable[..., torch.Tensor]] = {
    "index_put": torch.Tensor.index_put_,
    "index_add": torch.Tensor.index_copy_,
    "index_copy": torch.Tensor.index_copy_,
    "scatter": torch.Tensor.scatter_,
    "scatter_add": torch.Tensor.scatter_,
}


class RowTokens(TorchDispatchMode):
    """Within it, `of` tells the token of each row of a tensor."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self._tokens: Any = WeakTensorKeyDictionary()
        # Storages into which selected rows were written, so that other views of them have changed.
        self._mixed: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

        # Of parameters, whose rows are no tokens.
        self._weights: Any = WeakIdKeyDictionary(ref_type=weakref.ref)

    def of(self, x: torch.Tensor) -> torch.Tensor | None:
        """The token of each row of (..., n), or a negative number; None if rows are in position."""
        tokens = self._known(x)
        return None if tokens is None else _of_rows(tokens).reshape(-1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        self._weights.update({t.untyped_storage(): True for t in inputs if _is_weight(t)})
        # Before the call, which may write into them.
        name = str(getattr(func, "overloadpacket", func)).rpartition(".")[2].removesuffix("_")
        plain = not any(isinstance(t, DTensor) for t in inputs)
        tokens = self._tokens_of(name, args, kwargs, inputs) if plain else None
        # They put rows back in order. A first selection is kept even if it is of all rows in order.
        orders = name in _WRITE or name in _REDUCE
        orders |= name in _SELECT and self._known(inputs[0]) is not None
        out = func(*args, **kwargs)
        if tokens is None:
            return out
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        for tensor, of_output in zip(outputs, tokens(outputs), strict=True):
            if tensor.is_floating_point():
                if orders and _is_in_position(tensor, of_output):
                    of_output = None
                self._set(tensor, of_output, written=any(tensor is t for t in inputs))
        return out

    def _known(self, x: torch.Tensor) -> torch.Tensor | None:
        if (tokens := self._tokens.get(x)) is not None:
            return tokens
        if x.layout == torch.strided and self._mixed.get(x.untyped_storage()):
            return torch.full((), UNKNOWN, device=x.device).expand(x.shape)
        return None

    def _set(self, x: torch.Tensor, tokens: torch.Tensor | None, *, written: bool) -> None:
        if tokens is not None:
            self._tokens[x] = tokens
        else:
            self._tokens.pop(x, None)
        if written and (tokens is not None or _is_whole(x)):
            self._mixed[x.untyped_storage()] = tokens is not None

    def _tokens_of(
        self, name: str, args: tuple[Any, ...], kwargs: Any, inputs: list[torch.Tensor]
    ) -> Callable[[list[torch.Tensor]], Iterable[torch.Tensor | None]] | None:
        """A function of the outputs that returns their tokens; None if rows are in position."""
        known = [k for t in inputs if _is_float(t) and (k := self._known(t)) is not None]
        if name in _PRODUCTS:
            return self._of_product(args[_PRODUCTS[name]], args[_PRODUCTS[name] + 1])
        if name in _WRITE and (sources := [a for a in args[2:] if _is_float(a)]):
            return self._of_write(name, args, sources[0])
        if name == "copy":
            tokens = self._known(args[1])
            return lambda outputs: [None if tokens is None else tokens.expand(outputs[0].shape)]
        if name in _SORT and known:  # each column of the rows in an order of its own
            return lambda outputs: [torch.full_like(t, UNKNOWN, dtype=torch.long) for t in outputs]
        if not known and name not in _SELECT:
            return None
        if name in _MOVE:
            if not inputs[0].is_floating_point() or self._is_of_weight(inputs[0]):
                return None

            def moved(t: torch.Tensor) -> torch.Tensor:
                return self._or_positions(t) if t.is_floating_point() else t

            # A view of the integers may need a copy, since they are expanded.
            operation = getattr(torch.ops.aten, "reshape" if "view" in name else name)
            rest = {k: v for k, v in kwargs.items() if k != "memory_format"}
            read = tree_map_only(torch.Tensor, moved, args)
            return lambda _: _leaves(operation(*read, **rest))
        if name in _REDUCE and len(args) > 1 and args[1]:
            low, high = known[0].amin(*args[1:3]), known[0].amax(*args[1:3])
            return lambda _: [torch.where(low == high, low, UNKNOWN)]
        return lambda outputs: [_carried(known, t.shape) for t in outputs]

    def _of_product(
        self, x: torch.Tensor, other: torch.Tensor
    ) -> Callable[[list[torch.Tensor]], Iterable[torch.Tensor | None]] | None:
        """The tokens of ``x @ other``, whose rows are those of ``x`` or selected from ``other``."""
        if (tokens := self._known(x)) is not None:
            rows = _of_rows(tokens).unsqueeze(-1)
        elif not self._is_of_weight(other) and _is_selection(x):
            source = _of_rows(self._or_positions(other))
            chosen = source.gather(-1, x.argmax(-1).view(*source.shape[:-1], -1))
            rows = chosen.view(x.shape[:-1]).masked_fill(~x.any(-1), EMPTY).unsqueeze(-1)
        else:
            return None
        return lambda outputs: [rows.expand(t.shape) for t in outputs]

    def _of_write(
        self, name: str, args: tuple[Any, ...], source: torch.Tensor
    ) -> Callable[[list[torch.Tensor]], Iterable[torch.Tensor | None]] | None:
        """The tokens of a tensor into which rows of ``source`` are written."""
        into = args[0]
        if min(into.ndim, source.ndim) < 2 or not into.is_floating_point():
            return None
        before = self._known(into)
        if before is None:
            before = _positions(into).masked_fill((into == 0).all(-1, keepdim=True), EMPTY)
        where = args[1 : 2 if name == "index_put" else 3]
        after = _WRITE[name](before.clone(), *where, self._or_positions(source))
        return lambda _: [after]

    def _is_of_weight(self, x: torch.Tensor) -> bool:
        return x.layout == torch.strided and x.untyped_storage() in self._weights

    def _or_positions(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self._known(x)
        return _positions(x) if tokens is None else tokens


def _positions(x: torch.Tensor) -> torch.Tensor:
    """The position of each row of (..., n), in the shape of ``x``."""
    lead = x.shape[:-1]
    return torch.arange(lead.numel(), device=x.device).view(*lead, 1).expand(x.shape)


def _is_in_position(x: torch.Tensor, tokens: torch.Tensor | None) -> bool:
    if tokens is None or x.ndim < 2:
        return False
    return torch.equal(_of_rows(tokens), _of_rows(_positions(x)))


def _of_rows(tokens: torch.Tensor) -> torch.Tensor:
    """The token of each row, leaving out empty entries; unknown if the others belong to several."""
    if not tokens.shape[-1]:
        return tokens.new_full(tokens.shape[:-1], UNKNOWN)
    token = tokens.amax(-1)
    single = (tokens == token.unsqueeze(-1)) | (tokens == EMPTY)
    return torch.where(single.all(-1), token, UNKNOWN)


def _carried(known: list[torch.Tensor], shape: torch.Size) -> torch.Tensor:
    """The tokens of an output of an operation on rows with the tokens ``known``."""
    result: torch.Tensor | None = None
    # What is broadcast along the last dimension, such as a router's weights, is no token's input.
    wide = [tokens for tokens in known if tokens.shape[-1:] == shape[-1:]]
    for tokens in wide or known:
        if _fits(tokens.shape, shape):
            tokens = tokens.expand(shape)
        elif tokens.shape[:-1] == shape[:-1]:
            tokens = _of_rows(tokens).unsqueeze(-1).expand(shape)
        elif tokens.shape[:-1] == shape:
            tokens = _of_rows(tokens)
        else:
            continue
        if result is None or torch.equal(result, tokens):
            result = tokens
        else:  # rows of two tokens, such as the ends of an edge: the pair is the identity
            pair = (result * 0x9E3779B1 + tokens) & (2**62 - 1)
            pair = torch.where((result == UNKNOWN) | (tokens == UNKNOWN), UNKNOWN, pair)
            pair = torch.where((result == EMPTY) | (result == tokens), tokens, pair)
            result = torch.where(tokens == EMPTY, result, pair)
    return known[0].new_full((), UNKNOWN).expand(shape) if result is None else result


def _fits(one: torch.Size, shape: torch.Size) -> bool:
    """Whether a tensor of shape ``one`` broadcasts to ``shape``."""
    sizes = zip(reversed(one), reversed(shape), strict=False)
    return len(one) <= len(shape) and all(a in (1, b) for a, b in sizes)


def _is_selection(x: torch.Tensor) -> bool:
    """Whether each row of a matrix is zero but for at most one 1, and some row has one."""
    if x.numel() == 0 or not bool(((few := x.flatten()[:64]) * (1 - few) == 0).all()):
        return False
    return bool((x * (1 - x) == 0).all()) and bool((x.sum(-1) <= 1).all()) and bool(x.any())


def _leaves(out: Any) -> list[torch.Tensor]:
    return [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]


def _is_float(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point()


def _is_weight(x: torch.Tensor) -> bool:
    return isinstance(x, nn.Parameter) and not isinstance(x, DTensor) and x.layout == torch.strided


def _is_whole(x: torch.Tensor) -> bool:
    """Whether a tensor covers its whole storage."""
    return x.numel() * x.element_size() == x.untyped_storage().nbytes()
