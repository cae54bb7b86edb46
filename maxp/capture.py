"""Records the input of each site in a forward pass, at a fixed, seeded choice of tokens."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn

from maxp.experts import expert_inputs, owners
from maxp.layout import contracted_input
from maxp.matching import sampled
from maxp.module import Site
from maxp.rows import RowTokens
from maxp.shards import whole

# Per call of a site (tokens, fan_in), and where routing may change, the numbers of the tokens,
# (tokens,); for a site without a weight, two tensors (..., tokens, width).
Inputs = dict[str, tuple[torch.Tensor, ...]]

_POSITIONS_SEED = 0x6D617850


def token_positions(tokens: int, sample_size: int) -> torch.Tensor:
    """At most ``sample_size`` of ``tokens`` positions, sorted; the same ones in every call."""
    if tokens <= sample_size:
        return torch.arange(tokens, device="cpu")
    generator = torch.Generator().manual_seed(_POSITIONS_SEED)
    chosen = torch.randperm(tokens, generator=generator, device="cpu")
    return chosen[:sample_size].sort().values


def call_name(site: str, call: int) -> str:
    """The name of a site's call number ``call`` in one forward pass, counted from 1."""
    return site if call == 1 else f"{site} (call {call})"


def site_of(call: str) -> str:
    """The site of a call, or of a call of one expert."""
    return call.partition(" (call ")[0].partition(" (expert ")[0]


def expert_name(call: str, expert: int) -> str:
    """The name of one expert's part of a call of fused experts."""
    return f"{call} (expert {expert})"


def expert_of(call: str) -> int:
    """The number of the expert, from the name of a call of fused experts."""
    return int(call.rpartition(" (expert ")[2].removesuffix(")"))


class Capture:
    """Records the `Inputs` of all sites but embeddings, which contract nothing.

    A module that is called repeatedly has an entry for each call (`call_name`). With the numbers of
    tokens, samples are of tokens instead of positions, so that experts can be compared.

    Args:
        sites: by name.
        sample_size: how many tokens of each input to keep.
    """

    def __init__(self, sites: Mapping[str, Site], sample_size: int) -> None:
        self._sites = {n: s for n, s in sites.items() if s.layer_type != "embedding"}
        self._experts = owners(self._sites)
        self._sample_size = sample_size
        self.seen: Inputs = {}
        # The number of rows that each call of a site with a weight reads.
        self.rows: dict[str, int] = {}
        # The calls whose rows were selected by the data.
        self.selected: set[str] = set()
        self._tokens_of_rows: RowTokens | None = None
        self._calls: Counter[str] = Counter()
        # Sites that share an input, such as q, k and v, share the sample.
        self._last: tuple[torch.Tensor | None, int, tuple[torch.Tensor, ...]] = (None, 0, ())

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Load a pickle, which may be of a version that did not know of experts."""
        self.__dict__.update({"_experts": {}, "_last": (None, 0, ())} | state)

    @contextmanager
    def watching(self, *, tokens: bool = False) -> Iterator[Inputs]:
        """Record into the yielded dict during the block.

        Args:
            tokens: also record which tokens a site reads, by following each operation.
        """
        self.seen, self._calls, self.rows, self.selected = {}, Counter(), {}, set()
        modules = [(n, s) for n, s in self._sites.items() if isinstance(s, nn.Module)]
        hooks = [self._watch(name, site) for name, site in modules]
        hooks += [self._watch_experts(module, names) for module, names in self._experts.items()]
        self._tokens_of_rows = RowTokens() if tokens else None
        try:
            with self._tokens_of_rows or nullcontext():
                yield self.seen
        finally:
            for hook in hooks:
                hook.remove()
            self._last, self._tokens_of_rows = (None, 0, ()), None

    def _watch(self, name: str, site: Any) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            operands = site.site_operands(args, kwargs)
            needed = 1 if site.weight is not None else 2
            if site.weight is None:
                operands = site.site_layout(operands)
            if any(operand.ndim < needed for operand in operands):
                raise ValueError(f"{name}: its input has no dimension of tokens to sample from")
            call = self._next_call(name)
            if site.weight is None:
                self.seen[call] = tuple(self._sequence(operand) for operand in operands)
            else:
                self.seen[call] = self._tokens(call, contracted_input(site, operands[0]))

        return site.register_forward_pre_hook(before, with_kwargs=True)

    def _watch_experts(self, module: nn.Module, names: Mapping[str, str]) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            calls = {parameter: self._next_call(name) for parameter, name in names.items()}
            sample = partial(sampled, size=self._sample_size)
            for parameter, expert, inputs in expert_inputs(module, args, kwargs, sample):
                if parameter in calls:
                    self.seen[expert_name(calls[parameter], expert)] = inputs

        return module.register_forward_pre_hook(before, with_kwargs=True)

    def _next_call(self, name: str) -> str:
        self._calls[name] += 1
        return call_name(name, self._calls[name])

    def _tokens(self, call: str, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.rows[call] = x.shape[:-1].numel()
        tokens = None if self._tokens_of_rows is None else self._tokens_of_rows.of(x)
        if tokens is not None:
            self.selected.add(call)
        # An in-place write changes the values of the same tensor.
        version = 0 if x.is_inference() else x._version
        last, seen, sample = self._last
        if last is x and seen == version and sample and not x.is_inference():
            return sample
        # Detached first: activation checkpointing counts what a forward pass saves for backward.
        flat = whole(x.detach()).reshape(-1, x.shape[-1])
        if self._tokens_of_rows is None:
            chosen = token_positions(flat.shape[0], self._sample_size).to(x.device)
            sample = (flat.index_select(0, chosen),)
        else:
            tokens = torch.arange(flat.shape[0], device=x.device) if tokens is None else tokens
            chosen = sampled(tokens, self._sample_size)
            sample = (flat.index_select(0, chosen), tokens[chosen])
        self._last = (x, version, sample)
        return sample

    def _sequence(self, x: torch.Tensor) -> torch.Tensor:
        # As many tokens over all sequences as for other sites.
        each = max(1, self._sample_size // x.shape[:-3].numel())
        chosen = token_positions(x.shape[-2], each).to(x.device)
        return whole(x.detach()).index_select(-2, chosen)
