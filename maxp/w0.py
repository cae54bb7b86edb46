"""Initial weights: drawn from seeds, then stored or drawn again, the same for any sharding.

A weight is drawn in blocks of rows, each from its own seed. So a rank draws only the blocks of its
own rows, and the weight does not depend on the number of ranks.
"""

import hashlib
from collections.abc import Callable

import torch

from maxp.shards import local, region

# Entries per block. Changing it would change every weight that a seed gives.
_BLOCK = 1 << 18


def site_seed(seed: int, name: str) -> int:
    """The seed of one site, from the run's seed and the site's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:7], "big")


def draw_rows(
    columns: int, start: int, stop: int, seed: int, std: float, device: torch.device
) -> torch.Tensor:
    """Rows ``start:stop`` of a weight with float32 entries N(0, std^2): (stop - start, columns)."""
    block = max(1, _BLOCK // columns)
    generator = torch.Generator(device=device)
    out = torch.empty((stop - start, columns), device=device)
    for index in range(start // block, -(-stop // block)):
        first = index * block
        generator.manual_seed(seed + index * 0x9E3779B1)
        drawn = torch.randn((block, columns), generator=generator, device=device)
        low, high = max(first, start), min(first + block, stop)
        out[low - start : high - start] = drawn[low - first : high - first]
    return out.mul_(std)


def draw_like(
    weight: torch.Tensor, seed: int, std: float, start: int = 0, stop: int | None = None
) -> torch.Tensor:
    """Rows ``start:stop`` of this rank's part of a newly drawn weight, in the weight's dtype.

    Args:
        weight: defines shape, placement, device and dtype; its values are not read.
        seed: the site's seed.
        std: standard deviation of the entries.
        start: the first row of the local part.
        stop: the row after the last one; None is the end of the local part.
    """
    rows, columns = region(weight)
    mine = local(weight)
    stop = mine.shape[0] if stop is None else stop
    whole = weight.shape[1:].numel()
    drawn = draw_rows(whole, rows.start + start, rows.start + stop, seed, std, mine.device)
    return drawn[:, columns].reshape(stop - start, *mine.shape[1:]).to(mine.dtype)


class InitialWeights:
    """W0 of every site: copies of this rank's parts, or drawn again when needed.

    Args:
        weights: the initial weights, by site.
        seeds: the seed of each weight.
        stds: the standard deviation of each weight.
        resample: store no copies; draw again.
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        seeds: dict[str, int],
        stds: dict[str, float],
        *,
        resample: bool,
    ) -> None:
        self._weights, self._seeds, self._stds = weights, seeds, stds
        # The copy of a DTensor is a DTensor: a checkpoint must keep the parts of ranks apart.
        self._kept = None if resample else {n: w.detach().clone() for n, w in weights.items()}

    def rows(self, name: str) -> Callable[[int, int], torch.Tensor]:
        """A function that returns rows ``start:stop`` of this rank's part of W0."""
        if self._kept is not None:
            kept = local(self._kept[name])
            return lambda start, stop: kept[start:stop]
        weight, seed, std = self._weights[name], self._seeds[name], self._stds[name]
        return lambda start, stop: draw_like(weight, seed, std, start, stop)

    def check_redrawn(self) -> None:
        """With ``resample``, check that the weights are still those that are drawn again.

        Raises:
            ValueError: a weight has changed since it was drawn; the message names it.
        """
        for name, weight in self._weights.items() if self._kept is None else ():
            mine = local(weight)
            if not torch.equal(self.rows(name)(0, mine.shape[0]), mine):
                raise ValueError(
                    f"{name}: resample_w0 needs the weights as they were drawn, and they have "
                    "changed; capture before training, or set resample_w0=False"
                )

    def restore(self, kept: dict[str, torch.Tensor] | None) -> None:
        """Continue with the W0 of an earlier run: its copies, or None if it drew W0 again.

        Raises:
            ValueError: with ``resample``, if the copies differ from what is drawn again.
        """
        if kept is None or self._kept is not None:
            self._kept = kept
            return
        for name, w in kept.items():
            mine = local(w)
            if not torch.equal(self.rows(name)(0, mine.shape[0]), mine):
                raise ValueError(
                    f"{name}: resample_w0 cannot draw the initial weight of this run again; it was "
                    "not drawn by Parametrization. Set resample_w0=False"
                )

    def kept(self) -> dict[str, torch.Tensor] | None:
        """The copies, by site, with the placement of the weights; None if W0 is drawn again."""
        return self._kept
