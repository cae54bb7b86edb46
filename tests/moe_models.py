"""Mixtures of experts that know nothing of maxp, with the usual ways to give experts their rows."""

import torch
import torch.nn.functional as F
from torch import nn

FEATURES, EXPERTS, TOP, CAPACITY = 6, 4, 2, 40


class Expert(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.up(x)))


class MoE(nn.Module):
    """(batch, tokens, FEATURES) to 3 outputs. ``kind`` is the name of a method of dispatch."""

    def __init__(self, width: int = 16, kind: str = "index") -> None:
        super().__init__()
        self.kind = kind
        self.embed = nn.Linear(FEATURES, width)
        self.router = nn.Linear(width, EXPERTS, bias=False)
        self.experts = nn.ModuleList(Expert(width) for _ in range(EXPERTS))
        self.after, self.head = nn.Linear(width, width), nn.Linear(width, 3)

    def route(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The weights and the experts of each token, (tokens, TOP)."""
        weights, chosen = self.router(h).softmax(-1).topk(TOP, -1)
        return weights, chosen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        flat = h.flatten(0, 1)
        weights, chosen = self.route(flat)
        mixed = getattr(self, self.kind)(flat, weights, chosen)
        return self.head(F.relu(self.after(h + mixed.view_as(h))))

    def index(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            if token.numel():
                out.index_add_(0, token, expert(h[token]) * weights[token, slot, None])
        return out

    def mask(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            here = chosen == i
            rows = here.any(-1)
            out[rows] += expert(h[rows]) * (weights * here).sum(-1)[rows, None]
        return out

    def sort(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        order = chosen.flatten().argsort()
        sizes = torch.bincount(chosen.flatten(), minlength=EXPERTS).tolist()
        parts = h.index_select(0, order // TOP).split(sizes)
        rows = torch.cat([expert(z) for expert, z in zip(self.experts, parts, strict=True)])
        rows = rows[order.argsort()].view(-1, TOP, h.shape[-1])
        return (rows * weights[..., None]).sum(1)

    def choose(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Each expert chooses as many tokens."""
        scores, tokens = self.router(h).softmax(-1).T.topk(len(h) // 2)
        out = torch.zeros_like(h)
        for expert, gates, token in zip(self.experts, scores, tokens, strict=True):
            rows = expert(h.gather(0, token[:, None].expand(-1, h.shape[1])))
            out = out.scatter_add(0, token[:, None].expand_as(rows), rows * gates[:, None])
        return out

    def _slots(self, chosen: torch.Tensor) -> torch.Tensor:
        """One-hot (tokens, experts, places in an expert's buffer)."""
        here = F.one_hot(chosen, EXPERTS).sum(1)
        place = (here.cumsum(0) - 1).where(here > 0, torch.tensor(CAPACITY)).clamp(max=CAPACITY)
        return F.one_hot(place, CAPACITY + 1)[..., :CAPACITY]

    def product(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        slots = self._slots(chosen).to(h.dtype)
        buffer = torch.einsum("tec,td->ecd", slots, h)
        rows = torch.stack([expert(z) for expert, z in zip(self.experts, buffer, strict=True)])
        gates = torch.zeros(len(h), EXPERTS, dtype=h.dtype).scatter(1, chosen, weights)
        return torch.einsum("tec,te,ecd->td", slots, gates, rows)

    def buffer(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        token, expert, place = self._slots(chosen).nonzero().unbind(1)
        buffer = h.new_zeros(EXPERTS * CAPACITY, h.shape[-1])
        buffer[expert * CAPACITY + place] = h[token]
        parts = zip(self.experts, buffer.view(EXPERTS, CAPACITY, -1), strict=True)
        rows = torch.stack([expert(z) for expert, z in parts])
        gates = torch.zeros(len(h), EXPERTS, dtype=h.dtype).scatter(1, chosen, weights)
        out = torch.zeros_like(h)
        return out.index_add(0, token, rows[expert, place] * gates[token, expert, None])

    def slices(self, h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        """Writes into slices of a buffer, which hides what is read from it later."""
        out, buffer = torch.zeros_like(h), h.new_zeros(EXPERTS, CAPACITY, h.shape[-1])
        for i, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == i)
            buffer[i, : len(token)] = h[token]
            rows = expert(buffer[i])[: len(token)]
            out = out.index_add(0, token, rows * weights[token, slot, None])
        return out
