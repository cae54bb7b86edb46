"""The inputs of the experts of transformers, whose weights are parameters (experts, out, in).

Their forward pass takes the tokens and the experts of each. How it computes is a setting, so the
inputs are taken from its arguments, and that of the second product is computed again. Written for
transformers 5, whose ``use_experts_implementation`` gives such a module its attributes.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.tensor import DTensor

from maxp.module import Site
from maxp.sites import ParameterSite

_ATTRIBUTES = (
    "num_experts",
    "has_gate",
    "has_bias",
    "is_transposed",
    "is_concatenated",
    "_apply_gate",
    "act_fn",
)
_FIRST, _SECOND = ("gate_up_proj", "up_proj"), "down_proj"


def is_expert_weight(site: Site) -> bool:
    """Whether a site is a weight of such experts, on one device."""
    return (
        isinstance(site, ParameterSite)
        and all(hasattr(site.owner, name) for name in _ATTRIBUTES)
        and site.parameter in (*_FIRST, _SECOND)
        and site.weight.ndim == 3
        and not isinstance(site.weight, DTensor)
    )


def expert_matrix(site: Any, weight: torch.Tensor) -> torch.Tensor:
    """The matrix (out, in) of one expert, from its part of the parameter."""
    return weight.T if site.owner.is_transposed else weight


def rows_of_expert(site: Any) -> int:
    """The number of rows of one expert's matrix (out, in)."""
    return int(site.weight.shape[2 if site.owner.is_transposed else 1])


def is_interleaved(site: Any) -> bool:
    """Whether the rows of gate and up alternate."""
    return not site.owner.is_concatenated


@torch.no_grad()
def expert_inputs(
    experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any], sampled: Callable[..., Any]
) -> Iterator[tuple[str, int, tuple[torch.Tensor, torch.Tensor]]]:
    """(parameter, expert, (inputs, tokens)) of each expert that has a token.

    Args:
        experts: the module.
        args, kwargs: of its forward pass.
        sampled: returns the rows of a sample, given the number of each row's token.
    """
    names = ("hidden_states", "top_k_index")
    hidden, chosen = (kwargs[n] if n in kwargs else args[i] for i, n in enumerate(names))
    first = _FIRST[0] if experts.has_gate else _FIRST[1]
    for expert in range(experts.num_experts):
        tokens = (chosen == expert).any(-1).nonzero().squeeze(1)
        if tokens.numel() == 0:
            continue
        tokens = tokens[sampled(tokens)]
        z = hidden[tokens].detach()
        yield first, expert, (z, tokens)
        up = _product(experts, first, expert, z)
        inner = experts._apply_gate(up) if experts.has_gate else experts.act_fn(up)
        yield _SECOND, expert, (inner, tokens)


def _product(experts: Any, parameter: str, expert: int, x: torch.Tensor) -> torch.Tensor:
    weight = getattr(experts, parameter)[expert]
    bias = getattr(experts, f"{parameter}_bias")[expert] if experts.has_bias else None
    return F.linear(x, weight.T if experts.is_transposed else weight, bias)


def owners(sites: dict[str, Site]) -> dict[nn.Module, dict[str, str]]:
    """The modules of experts, each with the names of its sites by parameter."""
    modules: dict[nn.Module, dict[str, str]] = {}
    for name, site in sites.items():
        if isinstance(site, ParameterSite) and is_expert_weight(site):
            modules.setdefault(site.owner, {})[site.parameter] = name
    return modules
