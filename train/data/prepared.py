"""A folder that ``python -m train.prepare`` made: tokens of both splits, and their tokenizer.

``--dataset local --dataset-path FOLDER --tokenizer FOLDER/tokenizer`` trains from it, on machines
without a network too.
"""

from pathlib import Path

from train.data.cache import DataError
from train.data.store import DocumentEncoder, TokenStore

PREPARED = "prepared.json"
"""Stands in the folder from the start of its preparation on."""
TOKENIZER = "tokenizer"


def is_prepared(path: Path) -> bool:
    """Whether ``path`` is a folder that was prepared, or is being prepared."""
    return (path / PREPARED).is_file()


def open_prepared(path: Path, split: str, encoder: DocumentEncoder) -> TokenStore:
    """The store of one split.

    Raises:
        DataError: its preparation was not finished, it is damaged, or of another tokenizer.
    """
    again = "run the same `python -m train.prepare` again"
    folder = path / split
    if not (folder / "meta.json").is_file():
        raise DataError(f"--dataloader.dataset_path {path}: {split} is not finished: {again}")
    try:
        store = TokenStore.open(folder)
    except DataError as error:
        what = str(error).partition(": delete it")[0]
        raise DataError(f"{what}: delete that folder, and {again}") from error
    if store.meta.encoder != encoder.digest:
        raise DataError(
            f"--dataloader.dataset_path {path} was prepared with another tokenizer: "
            f"pass --hf_assets_path {path / TOKENIZER}"
        )
    return store
