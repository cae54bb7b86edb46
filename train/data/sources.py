"""What `train.prepare` reads: the texts of a split in a fixed order, from any position."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.cache import DataError, guarded
from train.data.corpus import embedded_documents, split_documents
from train.data.local import local_texts
from train.data.writer import CountedText, Text


class HubText:
    """A hub dataset, or a local copy of its folder, in its own order.

    Raises:
        DataError: it cannot be opened.
    """

    def __init__(self, dataset: str, path: Path | None) -> None:
        # Here, because it imports torch.
        from train.data.stream import DATASETS

        self.plan = {"dataset": dataset}
        entry = DATASETS[dataset]
        self._text = entry.sample_processor
        self._data = entry.loader(str(path) if path else entry.path)

    def start(self, position: Any) -> None:
        if position is not None:
            self._data.load_state_dict(position)

    def __iter__(self) -> Iterator[str]:
        for row in guarded(self._data, self.plan["dataset"]):
            yield self._text(row)

    def position(self) -> Any:
        return self._data.state_dict()


def source(dataset: str, split: str, path: Path | None, validation_path: Path | None) -> Text:
    """The text of one split, split as training splits it.

    Args:
        dataset: the value of ``--dataset``.
        path: of ``--dataset-path``: local text, or a copy of a hub dataset.
        validation_path: of ``--validation-path``: a copy of c4, for hub datasets.

    Raises:
        DataError: the dataset is unknown, or its files cannot be used.
    """
    if dataset == "embedded":
        return _embedded(split)
    if dataset == "local":
        if path is None:
            raise DataError("--dataset local needs --dataset-path, a file or folder of text")
        return _local(path.expanduser(), split)

    from train.data.stream import STREAMS, VALIDATION

    if dataset not in STREAMS:
        choice = ", ".join(("embedded", "local", *STREAMS))
        raise DataError(f"--dataset {dataset}: unknown: choose one of {choice}")
    if split == "train":
        return HubText(dataset, path and path.expanduser())
    if validation_path is None and dataset == "c4":
        validation_path = path
    return HubText(VALIDATION, validation_path and validation_path.expanduser())


def _embedded(split: str) -> CountedText:
    documents = split_documents(embedded_documents())[split == "validation"]
    content = hashlib.sha256("".join(document.digest for document in documents).encode())
    texts = [document.text for document in documents]
    return CountedText({"dataset": "embedded", "content": content.hexdigest()}, lambda: texts)


def _local(path: Path, split: str) -> CountedText:
    texts, files = local_texts(path, split)
    content = hashlib.sha256(files.encode())
    return CountedText({"dataset": "local", "content": content.hexdigest()}, texts)
