"""Batches from a token store: non-overlapping windows, in an order that depends only on the seed.

A store of ``n`` tokens has ``n // seq_len`` windows; the remaining tokens are not used. Training
reads the windows in a new permutation in each epoch, and a batch may span two epochs. This global
stream of windows does not depend on the number of ranks or the batch size, and a position in it is
one number. Validation reads the windows in the store's order.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch

from train.data.cache import DataError
from train.data.store import TokenStore

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


@lru_cache(maxsize=4)  # a batch may span two epochs, and train and validation alternate
def window_order(windows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(windows)``, shape ``(windows,)``, int64, read-only.

    It sorts raw PCG64 output, which stays the same between NumPy releases, unlike
    `Generator.permutation`.
    """
    draws = np.random.PCG64(np.random.SeedSequence([seed, epoch])).random_raw(windows)
    order = np.argsort(draws, kind="stable")
    order.setflags(write=False)
    return order


def stream_entries(
    first: int, count: int, size: int, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and entries at ``count`` positions of the endless stream over ``range(size)``.

    Args:
        seed: of the order within an epoch; None for ascending order.
    """
    epochs, places = np.divmod(np.arange(first, first + count), size)
    if seed is None:
        return epochs, places
    entries = np.empty_like(places)
    for epoch in np.unique(epochs):
        of_epoch = epochs == epoch
        entries[of_epoch] = window_order(size, seed, int(epoch))[places[of_epoch]]
    return epochs, entries


def cut_windows(
    tokens: np.ndarray, windows: np.ndarray, seq_len: int, *, bos: int, eos: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, positions and labels of windows, each int64, shape ``(len(windows), seq_len)``.

    A label is the next token, or EOS at the end of a document. Positions count from 0 at each BOS,
    and at the start of a window that begins within a document, as in torchtitan's
    ``hf_datasets/text_datasets.py``.

    Args:
        tokens: the array of a store.
        windows: indices below ``len(tokens) // seq_len``, shape ``(batch,)``.
    """
    places = windows[:, None] * seq_len + np.arange(seq_len + 1)
    ids = tokens[np.minimum(places, len(tokens) - 1)].astype(np.int64)
    inputs, following = ids[:, :-1], ids[:, 1:]
    document_ends = (following == bos) | (places[:, 1:] == len(tokens))
    labels = np.where(document_ends, eos, following)
    offsets = np.arange(seq_len)
    starts = np.maximum.accumulate(np.where(inputs == bos, offsets, 0), axis=1)
    return np.ascontiguousarray(inputs), offsets - starts, labels


class WindowLoader:
    """One rank's share of the global stream of windows, from the current position on.

    With ``W`` ranks and ``B`` windows per rank, global microbatch ``k`` holds the entries
    ``[k W B, (k + 1) W B)`` of the stream. Rank ``r`` takes ``[k W B + r B, k W B + (r + 1) B)``.
    If not ``infinite``, it ends after the last whole global microbatch of the first epoch.

    Args:
        seed: of the order; None for the store's order.

    Raises:
        DataError: the store has fewer windows than one global microbatch.
    """

    def __init__(
        self,
        store: TokenStore,
        *,
        seq_len: int,
        batch_size: int,
        dp_rank: int,
        dp_world_size: int,
        seed: int | None,
        infinite: bool,
    ) -> None:
        self.windows = len(store.tokens) // seq_len
        self.consumed = 0
        """Number of windows that all ranks together have taken since the start of training."""
        self._store = store
        self._seq_len = seq_len
        self._batch_size = batch_size
        self._dp_rank = dp_rank
        self._global_batch = batch_size * dp_world_size
        self._seed = seed
        self._infinite = infinite
        if self.windows < self._global_batch:
            raise DataError(
                f"{store.folder} has {self.windows} windows of {seq_len} tokens, fewer than one "
                f"batch of {batch_size} on each of {dp_world_size} ranks: lower --training.seq_len "
                "or --training.local_batch_size, or use more data"
            )

    @property
    def epoch(self) -> int:
        """Number of complete passes over the windows."""
        return self.consumed // self.windows

    def __iter__(self) -> Iterator[Batch]:
        while self._infinite or self.consumed + self._global_batch <= self.windows:
            first = self.consumed + self._dp_rank * self._batch_size
            inputs, positions, labels = cut_windows(
                self._store.tokens,
                self._entries(first),
                self._seq_len,
                bos=self._store.meta.bos,
                eos=self._store.meta.eos,
            )
            # Before the yield: a checkpoint written while this batch trains must not repeat it.
            self.consumed += self._global_batch
            yield (
                {"input": torch.from_numpy(inputs), "positions": torch.from_numpy(positions)},
                torch.from_numpy(labels),
            )

    def state_dict(self) -> dict[str, Any]:
        """The position in the global stream, equal on all ranks, and what identifies the stream."""
        return {"consumed": self.consumed, "stream": self._stream}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a saved position, with any number of ranks and any batch size.

        Raises:
            DataError: the position is from another stream (other data, window length or seed).
        """
        if not state:
            return
        if state["stream"] != self._stream:
            raise DataError(
                f"the checkpoint's data position is in [{state['stream']}], but this run reads "
                f"[{self._stream}]: restore the --dataloader options and --training.seq_len, or "
                "restart the data with --checkpoint.exclude_from_loading dataloader"
            )
        self.consumed = state["consumed"]

    @property
    def _stream(self) -> str:
        return f"tokens {self._store.meta.sha256[:12]}, seq_len {self._seq_len}, seed {self._seed}"

    def _entries(self, first: int) -> np.ndarray:
        """The windows at the positions ``first, first + 1, ...`` of the stream, one batch."""
        return stream_entries(first, self._batch_size, self.windows, self._seed)[1]
