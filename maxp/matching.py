"""Samples of tokens, and the tokens that a site reads in both of two forward passes."""

import torch

from maxp.rows import UNKNOWN

# What a site is not measured for: see `common`.
NO_TOKENS, UNMATCHED = "no tokens", "unmatched"


def sampled(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """The rows of at most ``size`` tokens, sorted. Which tokens depends on their numbers alone.

    So of the tokens that two passes have in common, the samples of both contain the same ones.
    Rows without a token are left out. If there are no others, one row of an unknown token is kept.

    Args:
        tokens: the number of each row's token, (rows,), negative if it has none (`maxp.rows`).
    """
    known = (tokens >= 0).nonzero().squeeze(1)
    if known.numel() == 0:
        return (tokens == UNKNOWN).nonzero().squeeze(1)[:1]
    mixed = (tokens[known] + 1) * -7046029254386353131  # 2^64 divided by the golden ratio
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    return known[mixed.argsort(stable=True)[:size]].sort().values


def common(
    before: tuple[torch.Tensor, ...] | None, now: tuple[torch.Tensor, ...] | None
) -> tuple[torch.Tensor, torch.Tensor] | str:
    """A site's inputs in two passes, (tokens, in), at the tokens that both contain.

    Args:
        before: (inputs,) in position, or (inputs, tokens); None if the site was not reached.
        now: the same, in the other pass.

    Returns:
        The inputs in both passes. Or why there are none: ``NO_TOKENS``, the passes have no token in
        common; or ``UNMATCHED``, it is not known which tokens the rows belong to.
    """
    if before is None or now is None:
        return UNMATCHED if len(before or now or ()) == 1 else NO_TOKENS
    if len(before) != len(now):
        return UNMATCHED
    if len(before) == 1:
        return (before[0], now[0]) if before[0].shape == now[0].shape else UNMATCHED
    (z0, first), (z, second) = before, now
    if torch.equal(first, second):
        there = first >= 0
        return (z0[there], z[there]) if bool(there.any()) else _reason(first)
    one, two = _once(first), _once(second)
    one = one[torch.isin(first[one], second[two])]
    two = two[torch.isin(second[two], first[one])]
    if one.numel() == 0:
        return _reason(torch.cat([first, second]))
    return z0[one[first[one].argsort()]], z[two[second[two].argsort()]]


def _once(tokens: torch.Tensor) -> torch.Tensor:
    """The rows whose token is known and is that of no other row."""
    _, inverse, counts = tokens.unique(return_inverse=True, return_counts=True)
    return ((counts[inverse] == 1) & (tokens >= 0)).nonzero().squeeze(1)


def _reason(tokens: torch.Tensor) -> str:
    return UNMATCHED if bool((tokens < 0).any()) else NO_TOKENS
