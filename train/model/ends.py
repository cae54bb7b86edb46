"""What a decoder has before and after its blocks."""

from collections.abc import Mapping
from typing import Any

from torchtitan.models.common import Embedding, Linear, RMSNorm


def ends(
    dim: int,
    vocab_size: int,
    embedding: Mapping[str, Any],
    norm: Mapping[str, Any],
    head: Mapping[str, Any],
) -> dict[str, Any]:
    """The embedding, the last norm and the head, as torchtitan's configurations take them.

    Args:
        embedding, norm, head: their initialisation, by parameter.
    """
    return {
        "tok_embeddings": Embedding.Config(
            num_embeddings=vocab_size, embedding_dim=dim, param_init=dict(embedding)
        ),
        "norm": RMSNorm.Config(normalized_shape=dim, param_init=dict(norm)),
        "lm_head": Linear.Config(in_features=dim, out_features=vocab_size, param_init=dict(head)),
    }
