"""The dataloader over token stores: windows, their order, ranks, and resuming."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from text_cases import small_encoder, texts
from torchtitan.components.tokenizer import BaseTokenizer, HuggingFaceTokenizer

from train.data.loader import DataError, TextDataLoader
from train.data.store import TokenStore
from train.data.windows import Batch, WindowLoader, window_order
from train.data.writer import write_store

SEQ_LEN = 16
GLOBAL_BATCH = 4


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    folder = tmp_path_factory.mktemp("tiny") / "tokenizer"
    small_encoder(folder)
    return HuggingFaceTokenizer(tokenizer_path=str(folder))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store")
    encoder = small_encoder(folder / "tokenizer")
    # 30 texts give a number of windows that no global batch here divides.
    write_store(folder / "tokens", texts(30), encoder, source="", label="tiny")
    return TokenStore.open(folder / "tokens")


def window_loader(store: TokenStore, ranks: int = 1, rank: int = 0, **options: Any) -> WindowLoader:
    settings: dict[str, Any] = {
        "seq_len": SEQ_LEN,
        "batch_size": GLOBAL_BATCH // ranks,
        "seed": 0,
        "infinite": True,
    }
    return WindowLoader(store, dp_rank=rank, dp_world_size=ranks, **(settings | options))


def rows(batches: Iterator[Batch]) -> list[list[int]]:
    return [row for inputs, _ in batches for row in inputs["input"].tolist()]


def global_rows(store: TokenStore, ranks: int, batches: int, state: dict[str, Any]) -> list[Any]:
    """The windows of some global batches: of rank 0, then of rank 1, ..., batch after batch."""
    loaders = [window_loader(store, ranks, rank) for rank in range(ranks)]
    for loader in loaders:
        loader.load_state_dict(state)
    iterators = [iter(loader) for loader in loaders]
    return [row for _ in range(batches) for each in iterators for row in rows(islice(each, 1))]


def expected_windows(
    documents: list[str], tokenizer: HuggingFaceTokenizer
) -> list[tuple[list[int], list[int], list[int]]]:
    """Inputs, positions and labels by torchtitan's recipe, one token at a time."""
    flat: list[tuple[int, int, int]] = []
    for text in documents:
        ids = tokenizer.encode(text, add_bos=True, add_eos=True)
        flat += [(ids[place], place, ids[place + 1]) for place in range(len(ids) - 1)]
    windows = []
    for first in range(0, len(flat) - SEQ_LEN + 1, SEQ_LEN):
        window = flat[first : first + SEQ_LEN]
        positions: list[int] = []
        for _, place, _ in window:
            positions.append(0 if place == 0 or not positions else positions[-1] + 1)
        windows.append(([one[0] for one in window], positions, [one[2] for one in window]))
    return windows


def test_inputs_positions_and_labels_are_those_of_a_slow_recipe(
    store: TokenStore, tokenizer: HuggingFaceTokenizer
) -> None:
    loader = window_loader(store, seed=None, infinite=False, batch_size=1)
    windows = [
        (inputs["input"][0].tolist(), inputs["positions"][0].tolist(), labels[0].tolist())
        for inputs, labels in loader
    ]
    assert windows == expected_windows(texts(30), tokenizer)


def test_the_label_of_the_last_token_of_all_is_eos(store: TokenStore) -> None:
    whole = window_loader(store, seq_len=len(store.tokens), batch_size=1)
    _, labels = next(iter(whole))
    assert labels[0, -1] == store.meta.eos


def test_batches_are_long_tensors_of_batch_by_sequence(store: TokenStore) -> None:
    inputs, labels = next(iter(window_loader(store)))
    for tensor in (inputs["input"], inputs["positions"], labels):
        assert tensor.dtype == torch.int64
        assert tensor.shape == (GLOBAL_BATCH, SEQ_LEN)


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_global_batch_does_not_depend_on_the_number_of_ranks(
    store: TokenStore, ranks: int
) -> None:
    batches = 3 * window_loader(store).windows // GLOBAL_BATCH  # three epochs
    assert global_rows(store, ranks, batches, {}) == global_rows(store, 1, batches, {})


def test_each_epoch_has_every_window_once_in_another_order(store: TokenStore) -> None:
    loader = window_loader(store, batch_size=1)
    identity = list(
        islice(rows(iter(window_loader(store, seed=None, batch_size=1, infinite=False))), None)
    )
    stream = iter(loader)
    epochs = [rows(islice(stream, loader.windows)) for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(identity)
    assert epochs[0] != epochs[1] != identity != epochs[0]


def test_the_order_is_the_seeds(store: TokenStore) -> None:
    def first(seed: int) -> list[list[int]]:
        return rows(islice(window_loader(store, seed=seed), 3))

    assert first(0) == first(0) != first(1)


def test_the_order_is_pinned_across_machines_and_releases() -> None:
    assert window_order(8, seed=1, epoch=2).tolist() == [5, 6, 3, 2, 1, 0, 4, 7]


def test_a_finite_loader_ends_after_the_last_whole_global_batch(store: TokenStore) -> None:
    loader = window_loader(store, seed=None, infinite=False)
    assert loader.windows % GLOBAL_BATCH  # else nothing is left over
    assert len(list(loader)) == loader.windows // GLOBAL_BATCH


@pytest.mark.parametrize("ranks_before", [1, 2])
@pytest.mark.parametrize("ranks_after", [1, 4])
@pytest.mark.parametrize("taken", [5, 41])
def test_a_resumed_stream_is_the_uninterrupted_one(
    store: TokenStore, ranks_before: int, ranks_after: int, taken: int
) -> None:
    whole = global_rows(store, 1, taken + 30, {})
    loader = window_loader(store, ranks_before)
    for _ in islice(loader, taken):
        pass
    rest = global_rows(store, ranks_after, 30, loader.state_dict())
    assert rest == whole[taken * GLOBAL_BATCH :]


def test_the_state_is_the_same_on_all_ranks(store: TokenStore) -> None:
    loaders = [window_loader(store, 2, rank) for rank in range(2)]
    for loader in loaders:
        next(iter(loader))
    assert loaders[0].state_dict() == loaders[1].state_dict()


@pytest.mark.parametrize("change", [{"seq_len": 8}, {"seed": 1}, {"seed": None}])
def test_a_position_in_another_stream_is_refused(store: TokenStore, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"--checkpoint\.exclude_from_loading dataloader"):
        window_loader(store, **change).load_state_dict(window_loader(store).state_dict())


def test_fewer_windows_than_a_global_batch_are_refused(store: TokenStore) -> None:
    windows = window_loader(store).windows
    window_loader(store, batch_size=windows)
    with pytest.raises(DataError, match=r"lower --training\.seq_len"):
        window_loader(store, batch_size=windows + 1)


# The loader as torchtitan builds it.


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextDataLoader.Config:
    monkeypatch.setenv("MAXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text" / "validation").mkdir(parents=True)
    for index, text in enumerate(texts(40)):
        folder = "" if index < 30 else "validation"
        (tmp_path / "text" / folder / f"{index:02}.txt").write_text(text)
    return TextDataLoader.Config(dataset="local", dataset_path=str(tmp_path / "text"))


def build(
    config: TextDataLoader.Config, tokenizer: BaseTokenizer, **options: int
) -> TextDataLoader:
    settings: dict[str, Any] = {
        "dp_world_size": 1,
        "dp_rank": 0,
        "seq_len": SEQ_LEN,
        "local_batch_size": 2,
    }
    return config.build(tokenizer=tokenizer, snapshot_every_n_steps=None, **(settings | options))


def test_a_distributed_checkpoint_restores_the_position(
    config: TextDataLoader.Config, tokenizer: HuggingFaceTokenizer, tmp_path: Path
) -> None:
    loader = build(config, tokenizer)
    whole = list(islice(loader, 3))
    dcp.save({"dataloader": loader}, checkpoint_id=tmp_path / "step-3", no_dist=True)
    whole += list(islice(loader, 3))
    resumed = build(config, tokenizer)
    dcp.load({"dataloader": resumed}, checkpoint_id=tmp_path / "step-3", no_dist=True)
    assert rows(islice(resumed, 3)) == rows(iter(whole))[6:]


def test_validation_is_in_order_whatever_the_seed(
    config: TextDataLoader.Config, tokenizer: HuggingFaceTokenizer
) -> None:
    finite = replace(config, split="validation", infinite=False, seed=7)
    loader = build(finite, tokenizer, local_batch_size=1)
    expected = [window[0] for window in expected_windows(texts(40)[30:], tokenizer)]
    assert rows(iter(loader)) == expected


def test_an_unknown_dataset_is_refused_with_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"--dataloader\.dataset 'pile'.*embedded, local.*c4"):
        TextDataLoader.Config(dataset="pile")


@pytest.mark.parametrize("name", ["seed", "shuffle_buffer", "num_workers"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=rf"--dataloader\.{name} -1"):
        TextDataLoader.Config(**{name: -1})  # type: ignore[arg-type]


def test_local_without_a_path_is_refused(tokenizer: HuggingFaceTokenizer) -> None:
    with pytest.raises(DataError, match=r"needs --dataloader\.dataset_path"):
        build(TextDataLoader.Config(dataset="local"), tokenizer)


def test_a_tokenizer_without_bos_is_refused(config: TextDataLoader.Config, tmp_path: Path) -> None:
    small_encoder(tmp_path / "tokenizer")
    (tmp_path / "tokenizer" / "tokenizer_config.json").unlink()
    bare = HuggingFaceTokenizer(tokenizer_path=str(tmp_path / "tokenizer"))
    with pytest.raises(DataError, match="lacks a bos_token"):
        build(config, bare)


def test_errors_are_one_line(tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    config = TextDataLoader.Config(dataset="local", dataset_path=str(tmp_path / "missing"))
    with pytest.raises(DataError) as caught:
        build(config, tokenizer)
    assert "\n" not in str(caught.value)
