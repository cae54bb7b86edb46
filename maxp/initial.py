"""The weights of a model's sites: which are drawn, from which seeds, and whether they still are."""

from collections.abc import Collection, Mapping

import torch

from maxp.module import Site, bias_of, is_frozen
from maxp.shards import local, region
from maxp.w0 import draw_like, site_seed


def own_weights(sites: Mapping[str, Site], owners: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The trained weights, each once, by the site that owns it.

    Args:
        sites: by name.
        owners: for each site with a tied weight, the site that owns it.
    """
    return {
        name: site.weight
        for name, site in sites.items()
        if site.weight is not None and name not in owners and not is_frozen(site)
    }


def site_seeds(seed: int, owners: Mapping[str, str]) -> dict[str, int]:
    """The seeds of the weights of sites; ``owners`` has the owner of each site's weight."""
    return {name: site_seed(seed, owner) for name, owner in owners.items()}


@torch.no_grad()
def draw(
    sites: Mapping[str, Site],
    weights: Mapping[str, torch.Tensor],
    seeds: Mapping[str, int],
    stds: Mapping[str, float],
    keep_bias: Collection[str] = (),
) -> None:
    """Draw every weight that is not on the meta device, and zero the biases of its sites.

    The row of an embedding that stands for padding is zero as well.

    Args:
        keep_bias: sites whose biases keep their effect: they are divided by the multiplier.
    """
    for name, weight in weights.items():
        if weight.is_meta:
            continue
        local(weight).copy_(draw_like(weight, seeds[name], stds[name]))
        site = sites[name]
        padding = getattr(getattr(site, "op", site), "padding_idx", None)
        rows = region(weight)[0]
        if padding is not None and rows.start <= padding < rows.stop:
            local(weight)[padding - rows.start].zero_()
    for name in seeds:
        bias = bias_of(sites[name])
        if bias is not None and name in keep_bias:
            bias.div_(sites[name].scale)
        elif bias is not None:
            bias.zero_()


def some_entries(weight: torch.Tensor) -> torch.Tensor:
    """A copy of a few entries of this rank's part of a weight, by which it is recognised.

    Drawing the weight again would not do: a model that moves to another device after it was drawn
    keeps its weights, and other devices draw others.
    """
    flat = local(weight.detach()).reshape(-1)
    return flat[:: max(1, flat.numel() // 256)].clone()


def is_as_before(entries: torch.Tensor, weight: torch.Tensor) -> bool:
    """Whether a weight has the same `some_entries` as before, up to one constant factor."""
    now = some_entries(weight)
    if entries.is_meta or now.is_meta:
        return True
    rounding = max(torch.finfo(dtype).eps for dtype in (entries.dtype, now.dtype))
    # On the CPU, as MPS has no float64.
    old, new = (x.to("cpu", torch.float64) for x in (entries, now))
    if old.shape != new.shape:
        return False
    scaled = old * (old @ new / (old @ old).clamp_min(torch.finfo(torch.float64).tiny))
    return torch.allclose(new, scaled, rtol=2 * rounding, atol=0.0)
