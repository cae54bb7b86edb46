"""Attention of queries, keys and values: torchtitan's, and what replaces it on a CPU."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torchtitan.models.common.attention import FlexAttention, ScaledDotProductAttention
from torchtitan.protocols.module import Module

from train import cpu


class WindowAttention(ScaledDotProductAttention):
    """Causal attention in plain operations, with a window and with sinks, which GPT-OSS has.

    FlexAttention has no backward on a CPU, and torch's scaled dot product attention does not return
    the logarithm of the sum of exponentials, which sinks need.
    """

    @dataclass(kw_only=True, slots=True)
    class Config(ScaledDotProductAttention.Config):
        window: int | None = None
        """How many positions a query sees, its own included; None is all before it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.window = config.window

    def forward(
        self,
        q_BLNH: torch.Tensor,
        k_BLNH: torch.Tensor,
        v_BLNH: torch.Tensor,
        *,
        scale: float | None = None,
        out_transform: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
        **_: Any,
    ) -> torch.Tensor:
        """The values (batch, tokens, heads, size), mixed; ``out_transform`` also gets the log-sum.

        Args:
            q_BLNH, k_BLNH, v_BLNH: (batch, tokens, heads, size), with fewer heads of keys and
                values than of queries.
            scale: of the scores; None is ``size**-0.5``.
            out_transform: of the mixed values and the log-sum, (batch, tokens, heads).
        """
        q, k, v = (x.transpose(1, 2) for x in (q_BLNH, k_BLNH, v_BLNH))
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
        scores = q @ k.transpose(-1, -2) * (q.shape[-1] ** -0.5 if scale is None else scale)
        every = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device)
        seen = every.tril() if self.window is None else every.tril() & every.triu(1 - self.window)
        scores = scores.masked_fill(~seen, float("-inf"))
        log_sum = scores.logsumexp(-1)
        out = ((scores - log_sum.unsqueeze(-1)).exp() @ v).transpose(1, 2)
        return out if out_transform is None else out_transform(out, log_sum.transpose(1, 2))


def inner_attention_config() -> Module.Config:
    """FlexAttention; on a CPU, where it has no backward, torch's scaled dot product attention."""
    if cpu.has_accelerator():
        return FlexAttention.Config()
    return ScaledDotProductAttention.Config()


def window_attention_config(window: int | None) -> Module.Config:
    """FlexAttention, which gets the window in its mask; on a CPU, `WindowAttention`."""
    if cpu.has_accelerator():
        return FlexAttention.Config()
    return WindowAttention.Config(window=window)
