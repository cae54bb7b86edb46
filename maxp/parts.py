"""The matrix products that one call of a site is measured as.

They are one, or one per expert, per block of rows of a fused projection, or per group of a
convolution. Groups are parts of one operation, so their exponents are averaged, as over tokens.
Blocks and experts are operations of their own with one weight, so the most cautious counts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from maxp.alignment import Measured, SiteState
from maxp.experts import expert_matrix, is_expert_weight, is_interleaved, rows_of_expert
from maxp.layout import FUSED, groups_of, matrix_rows, row_blocks, weight_matrix
from maxp.overrides import by_name, check_used
from maxp.shards import local

Rows = Callable[[int, int], torch.Tensor]
Block = tuple[int, int]


def states(
    site: Any,
    weight: torch.Tensor,
    w0: Rows,
    inputs: tuple[torch.Tensor, torch.Tensor],
    blocks: Sequence[Block] | None = None,
    expert: int | None = None,
) -> list[list[SiteState]]:
    """The states to measure: those of one inner list are averaged.

    Args:
        site: the site.
        weight: its current weight, as it is stored.
        w0: returns rows ``start:stop`` of this rank's part of the initial weight, as it is stored.
        inputs: the site's inputs with the initial and the current weights, (tokens, in).
        blocks: the rows (start, stop) of each fused projection; None is one of all rows.
        expert: the number of the expert, if the weight is that of several.
    """
    z0, z = inputs
    rows_of: list[Block | None] = list(blocks) if blocks else [None]
    if expert is not None:
        matrix = expert_matrix(site, weight.detach()[expert])

        def initial(start: int, stop: int) -> torch.Tensor:
            return expert_matrix(site, w0(expert, expert + 1)[0])[start:stop]

        return [[SiteState(z0, z, matrix, initial, matrix.shape[1], block)] for block in rows_of]
    matrix, rows = weight_matrix(site, weight), matrix_rows(site, w0, local(weight).shape[0])
    # The entries of a kernel are contracted as well: alignment stays in [0, 1].
    n = site.width_dim if weight.ndim == 2 else matrix.shape[1]
    if (groups := groups_of(site)) == 1:
        return [[SiteState(z0, z, matrix, rows, n, block)] for block in rows_of]
    each = matrix.shape[0] // groups
    columns = zip(z0.chunk(groups, -1), z.chunk(groups, -1), strict=True)
    return [
        [
            SiteState(*part, matrix, rows, n, (group * each, (group + 1) * each))
            for group, part in enumerate(columns)
        ]
    ]


def blocks_of(
    sites: Mapping[str, Any], fused: Mapping[str, int | Sequence[int]] | None
) -> dict[str, list[Block]]:
    """The blocks of rows of each fused projection, by site.

    Args:
        sites: with weights, by name.
        fused: as in `maxp.Parametrization`.

    Raises:
        ValueError: a key that matches no site, or blocks that are not the rows of a weight.
    """
    given = dict(fused or {})
    check_used("fused", given, sites)
    blocks = {}
    for name, site in sites.items():
        of_expert = is_expert_weight(site)
        rows = rows_of_expert(site) if of_expert else weight_matrix(site, site.weight).shape[0]
        parts = by_name(name, given)
        if parts is None:
            parts = by_name(name, FUSED) or 1
            if rows % parts or groups_of(site) > 1 or (of_expert and is_interleaved(site)):
                parts = 1
        if parts != 1:
            blocks[name] = row_blocks(name, rows, parts)
    return blocks


def mean(parts: Sequence[Measured]) -> Measured:
    """The mean of each exponent over the parts that have it."""
    return _by_term(parts, lambda values: sum(values) / len(values))


def most_cautious(parts: Sequence[Measured]) -> Measured:
    """The largest of each exponent."""
    return _by_term(parts, max)


def _by_term(parts: Sequence[Measured], reduce: Callable[[list[float]], float]) -> Measured:
    terms = ([x for x in term if x is not None] for term in zip(*parts, strict=True))
    first, second, third = (reduce(values) if values else None for values in terms)
    return first, second, third
