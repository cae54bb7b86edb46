"""Toy models of sites for the library's tests: an MLP, a ViT and a LLaMA in their own shapes."""

import torch
import torch.nn.functional as F
from torch import nn

from maxp import Graph, ParametrizedModule
from maxp.graph import SiteNode

CLASSES, FEATURES, VOCABULARY = 4, 6, 11


def sources(graph: Graph, name: str | None) -> set[str]:
    """The sites whose outputs reach a node's value through joins alone; none reach data."""
    if name is None:
        return set()
    node = graph.nodes[name]
    if isinstance(node, SiteNode):
        return {name}
    return set().union(*(sources(graph, parent) for parent in node.parents))


def linear(fan_in: int, fan_out: int, *, bias: bool = False) -> ParametrizedModule:
    """A hidden site."""
    return ParametrizedModule(nn.Linear(fan_in, fan_out, bias=bias), fan_in)


class MLP(nn.Module):
    """``embed`` (from FEATURES), ``layers.i`` with ReLU, ``readout`` (to CLASSES)."""

    def __init__(self, width: int = 16, depth: int = 2, *, bias: bool = False) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Linear(FEATURES, width, bias=bias), width, "embedding")
        self.layers = nn.ModuleList(linear(width, width, bias=bias) for _ in range(depth))
        self.readout = ParametrizedModule(
            nn.Linear(width, CLASSES, bias=bias), width, layer_type="readout"
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = F.relu(layer(h))
        return self.readout(h)


def batch(seed: int, size: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs (size, FEATURES) and labels (size,) of a task that an `MLP` can learn."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, FEATURES, generator=generator)
    return x, x[:, :CLASSES].argmax(-1)


def attention_scores(head_dim: int) -> ParametrizedModule:
    """QK^T: a site without a weight, at the usual multiplier 1/sqrt(head_dim)."""
    return ParametrizedModule(lambda q, k: q @ k.transpose(-2, -1), head_dim, "readout")


def heads(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """(batch, tokens, width) as (batch, heads, tokens, head_dim)."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


class ViTBlock(nn.Module):
    """Fused qkv, attention, projection, and an MLP, each added to the stream after a LayerNorm."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = linear(width, 3 * width)
        self.qk = attention_scores(head_dim)
        self.proj = linear(width, width)
        self.fc1, self.fc2 = linear(width, 4 * width), linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (heads(t, self.head_dim) for t in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = self.qk(q, k).softmax(-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches (batch, tokens, FEATURES) to CLASSES, with a learned position embedding."""

    def __init__(self, width: int = 16, depth: int = 2, head_dim: int = 8) -> None:
        super().__init__()
        self.patch = ParametrizedModule(nn.Linear(FEATURES, width), width, "embedding")
        self.position = ParametrizedModule(nn.Embedding(32, width), width, "embedding")
        self.blocks = nn.ModuleList(ViTBlock(width, head_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = ParametrizedModule(nn.Linear(width, CLASSES), width, "readout")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patch(x) + self.position(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h).mean(1))


class LlamaBlock(nn.Module):
    """Separate q, k and v, attention by QK^T, and a gated MLP, with RMSNorm before each."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.wq, self.wk, self.wv = (linear(width, width) for _ in range(3))
        self.qk = attention_scores(head_dim)
        self.wo = linear(width, width)
        self.w1, self.w3 = linear(width, 2 * width), linear(width, 2 * width)
        self.w2 = linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = self.norm1(x)
        q, k, v = (heads(w(z), self.head_dim) for w in (self.wq, self.wk, self.wv))
        scores = self.qk(q, k)
        future = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        x = x + self.wo(mixed.transpose(1, 2).flatten(2))
        z = self.norm2(x)
        return x + self.w2(F.silu(self.w1(z)) * self.w3(z))


class Llama(nn.Module):
    """Tokens (batch, tokens) to logits over the vocabulary."""

    def __init__(self, width: int = 16, depth: int = 2, head_dim: int = 8) -> None:
        super().__init__()
        self.embed = ParametrizedModule(nn.Embedding(VOCABULARY, width), width, "embedding")
        self.blocks = nn.ModuleList(LlamaBlock(width, head_dim) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.output = ParametrizedModule(nn.Linear(width, VOCABULARY, bias=False), width, "readout")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embed(tokens)
        for block in self.blocks:
            h = block(h)
        return self.output(self.norm(h))
