"""Initial weights: drawn from seeds, then stored or drawn again, the same for any sharding.

A weight is drawn in blocks of rows, each from its own seed. So a rank draws only the blocks of its
own rows, and the weight does not depend on the number of ranks.
"""

import hashlib
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from maxp.module import plain_name
from maxp.shards import local, on_all_ranks, region

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


def other_tensors(
    model: nn.Module, weights: Mapping[str, torch.Tensor], measured: Container[str]
) -> dict[str, torch.Tensor]:
    """What a forward pass depends on besides the measured weights; a tied tensor comes once.

    These are the other parameters, and the persistent buffers of floating point. Other buffers are
    caches and counters.

    Args:
        model: its FSDP2 modules must be sharded, as they are before a forward pass.
        weights: those of all sites, by site.
        measured: the sites that are measured.

    Returns:
        By site, or for what is not a site's weight, by its name in the model.
    """
    sites = {id(weight): name for name, weight in weights.items()}
    others: dict[str, torch.Tensor] = {
        sites.get(id(parameter), plain_name(path)): parameter
        for path, parameter in model.named_parameters()
        if sites.get(id(parameter)) not in measured
    }
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:
                others[plain_name(f"{path}.{name}".lstrip("."))] = buffer
    return others


class InitialWeights:
    """The initial values of a model: copies of this rank's parts, or drawn again when needed.

    W0 of the measured sites, and the weights of other sites, are drawn again if that is asked for.
    What is not a site's weight is always copied: norms, gains, biases, statistics.

    Args:
        weights: the initial weights of the measured sites, by site.
        seeds: the seed of each site's weight.
        stds: the standard deviation of each site's weight.
        resample: store no copies of sites' weights; draw them again. A weight of ``others`` that
            was changed after it was drawn is copied all the same.
        others: returns what else a forward pass depends on (`other_tensors`).
    """

    def __init__(
        self,
        weights: dict[str, torch.Tensor],
        seeds: dict[str, int],
        stds: dict[str, float],
        *,
        resample: bool,
        others: Callable[[], dict[str, torch.Tensor]] = dict,
    ) -> None:
        self._weights, self._seeds, self._stds = weights, seeds, stds
        self._find_others = others
        # The copy of a DTensor is a DTensor: a checkpoint must keep the parts of ranks apart.
        self._kept = None if resample else {n: w.detach().clone() for n, w in weights.items()}
        self._resample = resample
        self._others: dict[str, torch.Tensor] | None = None

    def keep_others(self) -> None:
        """Copy what `in_model` needs besides the measured weights."""
        self._others = {
            name: tensor.detach().clone()
            for name, tensor in self._find_others().items()
            # All ranks must store the same tensors.
            if not (self._resample and name in self._seeds)
            or not on_all_ranks(self._is_as_drawn(name, tensor), tensor)
        }

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
            if not self._is_as_drawn(name, weight):
                raise ValueError(
                    f"{name}: resample_w0 needs the weights as they were drawn, and they have "
                    "changed; capture before training, or set resample_w0=False"
                )

    def _is_as_drawn(self, name: str, weight: torch.Tensor) -> bool:
        """Whether a weight's values are those that its seed gives, on this rank."""
        drawn = draw_like(weight, self._seeds[name], self._stds[name])
        return torch.equal(drawn, local(weight))

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Give the model its initial values during the block, also if the block raises.

        Every tensor is written in place: only this rank's part, with no collective. A copy changes
        places with the current values, which takes memory for one tensor at a time. Where the
        initial weights are drawn again, the current ones are copied for the length of the block.

        Raises:
            RuntimeError: copies of the other tensors are missing (`keep_others`, `restore`).
            ValueError: a tensor of the model has another shape than its copy, or none.
        """
        if self._others is None:
            raise RuntimeError(
                "only the fixed probe can be measured on, step(None, optimizer): capture_initial "
                "was called with any_batch=False, or the loaded state is of an earlier version"
            )
        copies = {**(self._kept or {}), **self._others}
        put_back: list[Callable[[], object]] = []
        try:
            for name, tensor in {**self._weights, **self._find_others()}.items():
                put_back.append(self._write_initial(name, tensor, copies.get(name)))
            yield
        finally:
            for restore in reversed(put_back):
                restore()

    @torch.no_grad()
    def _write_initial(
        self, name: str, tensor: torch.Tensor, kept: torch.Tensor | None
    ) -> Callable[[], object]:
        """Write a tensor's initial values into it; returns a function that undoes it."""
        # .data: a graph that awaits its backward pass must not count this as a change.
        mine = local(tensor.detach()).data
        if kept is None and name in self._seeds:
            drawn, current = draw_like(tensor, self._seeds[name], self._stds[name]), mine.clone()
            mine.copy_(drawn)
            return partial(mine.copy_, current)
        if kept is None or local(kept).shape != mine.shape:
            raise ValueError(
                f"{name}: the model has changed since capture_initial, which stored "
                f"{'no such tensor' if kept is None else f'the shape {tuple(kept.shape)}'}"
            )
        exchange = partial(_exchange, mine, local(kept).data)
        exchange()
        return exchange

    def restore(
        self,
        kept: dict[str, torch.Tensor] | None,
        others: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Continue with the initial values of an earlier run.

        Args:
            kept: its copies of the measured weights, or None if it drew W0 again.
            others: its other copies, or None if it stored none, as earlier versions did.

        Raises:
            ValueError: with ``resample``, if the copies differ from what is drawn again.
        """
        self._others = others
        if kept is not None and others is not None:
            # An earlier version did not measure all of these weights.
            kept |= {n: others.pop(n) for n in self._weights if n not in kept and n in others}
        if kept is None or self._kept is not None:
            self._kept = kept
            return
        for name, w in kept.items():
            if not self._is_as_drawn(name, w):
                raise ValueError(
                    f"{name}: resample_w0 cannot draw the initial weight of this run again; it was "
                    "not drawn by Parametrization. Set resample_w0=False"
                )

    def kept(self) -> dict[str, torch.Tensor] | None:
        """The copies, by site, with the placement of the weights; None if W0 is drawn again."""
        return self._kept

    def others(self) -> dict[str, torch.Tensor] | None:
        """The copies of what is not a measured weight, by name, placed as in the model."""
        return self._others


@torch.no_grad()
def _exchange(one: torch.Tensor, other: torch.Tensor) -> None:
    """Swap the values of two tensors, in place."""
    values = one.clone()
    one.copy_(other)
    other.copy_(values)
