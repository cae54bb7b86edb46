"""The routed experts of a mixture as sites: torchtitan's modules with the same parameters.

Each weight (experts, out, in) is one site, with one learning rate for all experts. The number of
experts is no width: an expert's product sums over ``in`` alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.distributed.tensor import DTensor
from torchtitan.models.common.moe import GroupedExperts
from torchtitan.models.common.param_init import skip_param_init
from torchtitan.models.gpt_oss.moe import GptOssGroupedExperts, swiglu
from torchtitan.protocols.module import Module

from maxp.module import LayerType, Site
from maxp.sites import ParameterSite
from train.model.sites import config_values

# The bias of each weight, and whether its product is the experts' output.
_WEIGHTS: dict[str, tuple[str | None, bool]] = {
    "w1_EFD": (None, False),
    "w3_EFD": (None, False),
    "w2_EDF": (None, True),
    "mlp1_weight_EGD": ("mlp1_bias_EG", False),
    "mlp2_weight_EDF": ("mlp2_bias_ED", True),
}
EXPERT_ENDS = tuple(name for name, (_, ends) in _WEIGHTS.items() if ends)
"""The weights that end a residual branch."""


class ExpertSite(ParameterSite):
    """The weight of all experts, (experts, out, in).

    Only the last product of an expert has a multiplier, which is that of the experts' output.
    """

    def __init__(self, owner: Any, parameter: str, width_dim: int, layer_type: LayerType) -> None:
        self._bias, ends = _WEIGHTS[parameter]
        self.fixed_scale = not ends
        super().__init__(owner, parameter, width_dim, layer_type)

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the same product, (experts, out)."""
        return None if self._bias is None else getattr(self.owner, self._bias)


@cache
def experts_site_class(parent: Any) -> type:
    """A class of grouped experts whose weights are sites.

    On a CPU it multiplies expert by expert in the weights' precision. torchtitan's grouped product
    is in bfloat16, and its kernel is that of GPUs.
    """

    class ExpertSites(parent):
        @dataclass(kw_only=True, slots=True)
        class Config(parent.Config):
            sites: dict[str, tuple[int, LayerType]]
            """(width, layer type) by parameter."""

        def __init__(self, config: Any) -> None:
            parent.__init__(self, config)
            sites = [ExpertSite(self, name, *site) for name, site in config.sites.items()]
            self.parameter_sites = sites

        def forward(self, x_RD: torch.Tensor, num_tokens_per_expert_E: torch.Tensor) -> Any:
            if x_RD.device.type in ("cpu", "meta"):
                out = _one_by_one(self, x_RD, num_tokens_per_expert_E)
            else:
                out = parent.forward(self, x_RD, num_tokens_per_expert_E)
            scale = next((s.scale for s in self.parameter_sites if not s.fixed_scale), 1.0)
            return out if scale == 1.0 else out * scale

    ExpertSites.__name__ = ExpertSites.__qualname__ = f"Parametrized{parent.__name__}"
    return ExpertSites


def experts_site_config(config: Any, sites: dict[str, tuple[int, LayerType]]) -> Module.Config:
    """``config`` for the same experts as sites, whose weights `maxp.Parametrization` draws.

    Args:
        config: of `GroupedExperts`.
        sites: (width, layer type) by parameter.
    """
    cls: Any = experts_site_class(config._owner)
    values = config_values(config)
    values["param_init"] = {**(config.param_init or {}), **dict.fromkeys(sites, skip_param_init)}
    return cls.Config(**values, sites=sites)


def expert_shapes(config: GroupedExperts.Config) -> dict[str, tuple[int, int]]:
    """(out, in) of one expert's matrix, by parameter."""
    dim, hidden = config.dim, config.hidden_dim
    if isinstance(config, GptOssGroupedExperts.Config):
        return {"mlp1_weight_EGD": (2 * hidden, dim), "mlp2_weight_EDF": (dim, hidden)}
    return {"w1_EFD": (hidden, dim), "w2_EDF": (dim, hidden), "w3_EFD": (hidden, dim)}


def _one_by_one(experts: Any, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The experts' outputs (rows, dim), whose rows are sorted by expert."""
    number = experts.num_experts
    # Without values, which rows are an expert's does not matter.
    parts = x.tensor_split(number) if x.is_meta else x.split(counts.long().tolist())
    gated = _gptoss if isinstance(experts, GptOssGroupedExperts) else _swiglu
    return torch.cat([gated(experts, expert, part) for expert, part in enumerate(parts)])


def _swiglu(experts: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    w1, w2, w3 = (_of(experts, name, expert) for name in ("w1_EFD", "w2_EDF", "w3_EFD"))
    return F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)


def _gptoss(experts: Any, expert: int, x: torch.Tensor) -> torch.Tensor:
    first = F.linear(
        x, _of(experts, "mlp1_weight_EGD", expert), _of(experts, "mlp1_bias_EG", expert)
    )
    hidden = swiglu(first, limit=experts.swiglu_limit)
    return F.linear(
        hidden, _of(experts, "mlp2_weight_EDF", expert), _of(experts, "mlp2_bias_ED", expert)
    )


def _of(experts: Any, parameter: str, expert: int) -> torch.Tensor:
    weight = getattr(experts, parameter)
    return (weight.to_local() if isinstance(weight, DTensor) else weight)[expert]


def unmeasured(sites: Mapping[str, Site]) -> list[str]:
    """The names of the sites of routed experts, which keep their preset alignment."""
    return [name for name, site in sites.items() if isinstance(site, ExpertSite)]
