"""A small GPT in the manner of nanoGPT. It knows nothing of `maxp`."""

import torch
import torch.nn.functional as F
from torch import nn

HEAD_SIZE = 32


class Block(nn.Module):
    """Attention with one projection for q, k and v, and an MLP; a LayerNorm before each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width, bias=False)
        self.c_proj = nn.Linear(width, width, bias=False)
        self.c_fc = nn.Linear(width, 4 * width, bias=False)
        self.c_out = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.c_attn(self.ln_1(x)).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2) for part in parts)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(mixed.transpose(1, 2).flatten(2))
        return x + self.c_out(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    """Bytes (batch, sequence) to logits (batch, sequence, vocabulary).

    Embeddings start from N(0, 1), other weights from N(0, 1 / fan-in). The number of heads grows
    with the width.

    Args:
        width: a multiple of `HEAD_SIZE`.
        depth: number of blocks.
        sequence: the longest sequence.
        vocabulary: number of tokens.
    """

    def __init__(
        self, width: int, depth: int = 2, sequence: int = 64, vocabulary: int = 256
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(sequence, width)
        self.h = nn.ModuleList(Block(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))
