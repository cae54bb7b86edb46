"""Records the input of each site in a forward pass, at a fixed, seeded choice of tokens."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maxp.layout import contracted_input
from maxp.module import Site
from maxp.shards import whole

# One tensor (tokens, fan_in) per site, or two, (..., tokens, width), for a site without a weight.
Inputs = dict[str, tuple[torch.Tensor, ...]]

_POSITIONS_SEED = 0x6D617850


def token_positions(tokens: int, sample_size: int) -> torch.Tensor:
    """At most ``sample_size`` of ``tokens`` positions, sorted; the same ones in every call."""
    if tokens <= sample_size:
        return torch.arange(tokens)
    generator = torch.Generator().manual_seed(_POSITIONS_SEED)
    return torch.randperm(tokens, generator=generator)[:sample_size].sort().values


def call_name(site: str, call: int) -> str:
    """The name of a site's call number ``call`` in one forward pass, counted from 1."""
    return site if call == 1 else f"{site} (call {call})"


def calls_of(site: str, inputs: Inputs) -> list[str]:
    """The names of a site's calls that were recorded."""
    return [name for name in inputs if name == site or name.startswith(f"{site} (call ")]


class Capture:
    """Records the `Inputs` of all sites but embeddings, which contract nothing.

    A module that is called repeatedly has an entry for each call (`call_name`).

    Args:
        sites: by name.
        sample_size: how many tokens of each input to keep.
    """

    def __init__(self, sites: Mapping[str, Site], sample_size: int) -> None:
        self._sites = {n: s for n, s in sites.items() if s.layer_type != "embedding"}
        self._sample_size = sample_size
        self.seen: Inputs = {}
        self._calls: Counter[str] = Counter()
        # Sites that share an input, such as q, k and v, share the sample.
        self._last: tuple[torch.Tensor | None, int, torch.Tensor | None] = (None, 0, None)

    @contextmanager
    def watching(self) -> Iterator[Inputs]:
        """Record into the yielded dict during the block."""
        self.seen, self._calls = {}, Counter()
        hooks = [self._watch(name, site) for name, site in self._sites.items()]
        try:
            yield self.seen
        finally:
            for hook in hooks:
                hook.remove()
            self._last = (None, 0, None)

    def _watch(self, name: str, site: Site) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            operands = site.site_operands(args, kwargs)
            sample, needed = self._tokens, 1
            if site.weight is None:
                operands, sample, needed = site.site_layout(operands), self._sequence, 2
            if any(operand.ndim < needed for operand in operands):
                raise ValueError(f"{name}: its input has no dimension of tokens to sample from")
            if site.weight is not None:
                operands = tuple(contracted_input(site, operand) for operand in operands)
            self.seen[self._next_call(name)] = tuple(sample(operand) for operand in operands)

        assert isinstance(site, nn.Module)
        return site.register_forward_pre_hook(before, with_kwargs=True)

    def _next_call(self, name: str) -> str:
        self._calls[name] += 1
        return call_name(name, self._calls[name])

    def _tokens(self, x: torch.Tensor) -> torch.Tensor:
        # An in-place write changes the values of the same tensor.
        version = 0 if x.is_inference() else x._version
        last, seen, sample = self._last
        if last is x and seen == version and sample is not None and not x.is_inference():
            return sample
        # Detached first: activation checkpointing counts what a forward pass saves for backward.
        flat = whole(x.detach()).reshape(-1, x.shape[-1])
        chosen = token_positions(flat.shape[0], self._sample_size).to(x.device)
        sample = flat.index_select(0, chosen)
        self._last = (x, version, sample)
        return sample

    def _sequence(self, x: torch.Tensor) -> torch.Tensor:
        # As many tokens over all sequences as for other sites.
        each = max(1, self._sample_size // x.shape[:-3].numel())
        chosen = token_positions(x.shape[-2], each).to(x.device)
        return whole(x.detach()).index_select(-2, chosen)
