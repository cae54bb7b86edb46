"""The sizes of one language model, and the matrices that follow from them by arithmetic.

This module does not import torch, so that commands that only plan runs start quickly.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple

Family = Literal["llama3", "qwen3", "deepseek", "gptoss"]


class Weight(NamedTuple):
    """The weight of a layer in a block, (out, in), or (experts, out, in).

    Attributes:
        tensor_dim: the dimension, out or in, that tensor parallelism splits.
        new_input: it does not read the input of the weight before it, as k and v do that of q.
        experts: how many matrices the weight contains.
        chosen: how many of them each token is multiplied by.
        measured: whether its alignment is measured.
    """

    name: str
    out: int
    into: int
    tensor_dim: int = 0
    new_input: bool = True
    experts: int = 1
    chosen: int = 1
    measured: bool = True

    @property
    def size(self) -> int:
        """Entries."""
        return self.experts * self.out * self.into


@dataclass(frozen=True)
class Experts:
    """The mixture of experts of a block.

    Attributes:
        number: routed experts.
        chosen: those that each token is sent to.
        width: of an expert's hidden layer.
        shared: experts that take every token, as one feed-forward of ``shared * width``.
        dense_layers: the first blocks, which have an ordinary feed-forward instead.
        groups: experts are chosen within ``chosen_groups`` of so many groups; 1 is no limit.
        sigmoid: an expert's score is a sigmoid, not a softmax over all experts.
        route_scale: multiplies the weights of the chosen experts, which sum to 1.
    """

    number: int
    chosen: int
    width: int
    shared: int = 0
    dense_layers: int = 0
    groups: int = 1
    chosen_groups: int = 1
    sigmoid: bool = False
    route_scale: float = 1.0


@dataclass(frozen=True)
class Latent:
    """The latent attention (MLA) of DeepSeek-V3: keys and values are projections of one latent.

    Attributes:
        kv_rank: of the latent of keys and values.
        q_rank: of the latent of queries; 0 projects them directly.
        nope, rope: the parts of a query's and a key's head without and with positions.
        value: the size of a value's head.
        mscale: of YaRN, which also scales q k.
    """

    kv_rank: int
    q_rank: int = 0
    nope: int = 128
    rope: int = 64
    value: int = 128
    mscale: float = 1.0


@dataclass(frozen=True)
class Scale:
    """One size of a language model: RMSNorm, SwiGLU, RoPE, grouped queries.

    Attributes:
        ffn_dim: width of the feed-forward of a block without experts.
        seq_len: tokens per sequence.
        local_batch_size: sequences per process and forward pass.
        global_batch_size: sequences per step, over all processes.
        on_corpus: train on the embedded corpus with its tokenizer, not on FineWeb-Edu.
        family: the torchtitan model.
        head_size: of a query's head; None is ``dim / n_heads``.
        tied: the head's weight is the embedding.
        rope_theta: the base of Qwen3's positions.
    """

    name: str
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    ffn_dim: int
    seq_len: int = 2048
    local_batch_size: int = 8
    global_batch_size: int = 256
    on_corpus: bool = False
    family: Family = "llama3"
    head_size: int | None = None
    tied: bool = False
    rope_theta: float = 1e6
    experts: Experts | None = None
    latent: Latent | None = None

    unit: ClassVar[str] = "tokens"
    """What is counted."""

    @property
    def kind(self) -> tuple[object, ...]:
        """What a base must have in common with a model."""
        experts, latent = self.experts, self.latent
        return (
            self.family,
            self.tied,
            experts is not None,
            experts is not None and experts.shared > 0,
            latent is not None and latent.q_rank > 0,
        )

    @property
    def head_dim(self) -> int:
        """The size of a query's head."""
        if self.latent is not None:
            return self.latent.nope + self.latent.rope
        return self.dim // self.n_heads if self.head_size is None else self.head_size

    @property
    def value_dim(self) -> int:
        """The size of a value's head."""
        return self.head_dim if self.latent is None else self.latent.value

    @property
    def non_embedding_params(self) -> int:
        """Parameters without the embedding table and the head."""
        matrices = sum(weight.size for weight in self.block_weights)
        return matrices + sum(rows * columns for rows, columns in self.vectors)

    @property
    def active_params(self) -> int:
        """The same, of the experts only those that each token is sent to."""
        idle = sum((w.experts - w.chosen) * w.out * w.into for w in self.block_weights)
        return self.non_embedding_params - idle

    @property
    def block_weights(self) -> list[Weight]:
        """The matrices of all blocks."""
        return [w for layer in range(self.n_layers) for w in self._block(layer)]

    @property
    def vectors(self) -> list[tuple[int, int]]:
        """The shapes of all gains, biases and sinks; a vector counts as (size, 1)."""
        per_block = [(self.dim, 1)] * 2
        if self.family == "qwen3":
            per_block += [(self.head_dim, 1)] * 2
        if self.latent is not None:
            per_block += [(rank, 1) for rank in (self.latent.kv_rank, self.latent.q_rank) if rank]
        if self.family == "gptoss":
            queries, keys = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
            per_block += [(size, 1) for size in (queries, keys, keys, self.dim, self.n_heads)]
            assert self.experts is not None
            number = self.experts.number
            per_block += [(number, 1), (number, 2 * self.experts.width), (number, self.dim)]
        return [*per_block * self.n_layers, (self.dim, 1)]

    def on_cpu(self) -> "Scale":
        """This model with the batches and the text of runs of seconds on a CPU."""
        return replace(self, seq_len=128, local_batch_size=4, global_batch_size=4, on_corpus=True)

    def widened(self) -> "Scale":
        """This model at twice the width: all that grows with width is doubled."""
        experts, latent = self.experts, self.latent
        if experts is not None:
            experts = replace(experts, width=2 * experts.width)
        if latent is not None:
            ranks = {"kv_rank": 2 * latent.kv_rank, "q_rank": 2 * latent.q_rank}
            latent = replace(latent, **ranks)
        return replace(
            self,
            dim=2 * self.dim,
            n_heads=2 * self.n_heads,
            n_kv_heads=2 * self.n_kv_heads,
            ffn_dim=2 * self.ffn_dim,
            experts=experts,
            latent=latent,
        )

    def at_depth_of(self, other: "Scale") -> "Scale":
        """This model with the blocks of another."""
        experts = self.experts
        if experts is not None and other.experts is not None:
            experts = replace(experts, dense_layers=other.experts.dense_layers)
        return replace(self, n_layers=other.n_layers, experts=experts)

    def _block(self, layer: int) -> list[Weight]:
        experts = self.experts
        if experts is None or layer < experts.dense_layers:
            return [*self._attention(), *self._feed_forward("", self.ffn_dim)]
        routed: dict[str, Any] = {"measured": False}
        routed |= {"experts": experts.number, "chosen": experts.chosen}
        weights = [*self._attention(), Weight("router", experts.number, self.dim)]
        # GPT-OSS has the gate and the other product in one weight.
        first = [2 * experts.width] if self.family == "gptoss" else [experts.width] * 2
        weights += [Weight("experts.in", out, self.dim, new_input=False, **routed) for out in first]
        weights += [Weight("experts.out", self.dim, experts.width, tensor_dim=1, **routed)]
        if experts.shared:
            weights += self._feed_forward("shared.", experts.shared * experts.width, False)
        return weights

    def _attention(self) -> list[Weight]:
        dim, heads = self.dim, self.n_heads
        out = Weight("wo", dim, heads * self.value_dim, tensor_dim=1)
        if self.latent is None:
            keys = self.n_kv_heads * self.head_dim
            return [
                Weight("wq", heads * self.head_dim, dim),
                Weight("wk", keys, dim, new_input=False),
                Weight("wv", keys, dim, new_input=False),
                out,
            ]
        latent = self.latent
        queries = heads * self.head_dim
        return [
            *(
                [Weight("wq_a", latent.q_rank, dim), Weight("wq_b", queries, latent.q_rank)]
                if latent.q_rank
                else [Weight("wq", queries, dim)]
            ),
            Weight("wkv_a", latent.kv_rank + latent.rope, dim, new_input=latent.q_rank > 0),
            Weight("wkv_b", heads * (latent.nope + latent.value), latent.kv_rank),
            out,
        ]

    def _feed_forward(self, prefix: str, width: int, new_input: bool = True) -> list[Weight]:
        return [
            Weight(f"{prefix}w1", width, self.dim, new_input=new_input),
            Weight(f"{prefix}w3", width, self.dim, new_input=False),
            Weight(f"{prefix}w2", self.dim, width, tensor_dim=1),
        ]
