"""Models that know nothing of maxp, of any width: a GPT, a convolutional net, torch's encoder."""

import torch
import torch.nn.functional as F
from torch import nn

VOCABULARY, TOKENS, HEAD_DIM = 24, 8, 8


class Block(nn.Module):
    """Fused qkv, attention with heads of a fixed size, and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            t.unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
            for t in self.qkv(self.norm1(x)).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.out(F.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    """Tokens (batch, tokens) to logits; a position embedding that no module owns."""

    def __init__(self, width: int = 16, depth: int = 2, *, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, TOKENS, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


class ConvNet(nn.Module):
    """Images (batch, 3, 8, 8) to 5 classes, with a depthwise convolution."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.conv = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.conv(x + self.depthwise(x)))
        return self.head(x.mean((-1, -2)))


class Looped(nn.Module):
    """One layer that is called three times."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed, self.layer = nn.Linear(6, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for _ in range(3):
            x = x + self.layer(F.relu(x))
        return self.head(x)


class Encoder(nn.Module):
    """torch's own transformer encoder between an embedding and a head."""

    def __init__(self, width: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(6, width)
        layer = nn.TransformerEncoderLayer(
            width, width // HEAD_DIM, 4 * width, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(x)))


def tokens(seed: int = 0, batch: int = 4) -> torch.Tensor:
    """A batch of text for a `GPT`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (batch, TOKENS), generator=generator)
