"""A loader that continues from a saved position, for every kind of image data."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from image_cases import (
    AUGMENTED,
    DIGITS,
    MIXED,
    corrupt,
    encoded,
    folder,
    loader,
    parquet,
    same,
    take,
    tars,
)

from train.data.cache import DataError

SMALL = {"image_size": 8, "shuffle_buffer": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Options of each kind of data; all but the digits have a corrupt image."""
    root = tmp_path_factory.mktemp("images")
    corrupt(folder(root / "folder", {"train": 9, "val": 2}) / "train" / "b" / "3.png")
    images = [encoded(number) for number in range(17)]
    images[4] = images[4][:50]
    jpegs = [encoded(number, "JPEG") for number in range(17)]
    jpegs[4] = jpegs[4][:50]
    for make in (parquet, tars):
        make(root / make.__name__, "validation", images[:1], files=1)
    parquet(root / "parquet", "train", images)
    tars(root / "tars", "train", jpegs)

    def options(dataset: str, name: str) -> dict[str, Any]:
        return {"dataset": dataset, "dataset_path": str(root / name)} | SMALL

    return {
        "digits": DIGITS,
        "folder": options("folder", "folder"),
        "parquet": options("hub", "parquet"),
        "webdataset": options("imagenet-12k", "tars"),
    }


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["digits", "folder", "parquet", "webdataset"])
def test_a_resumed_loader_gives_the_same_batches(
    data: dict[str, dict[str, Any]], kind: str, workers: int
) -> None:
    options = data[kind] | AUGMENTED | MIXED | {"num_workers": workers}
    whole, states, skipped = [], [], []
    reader = loader(**options)
    for inputs, labels in reader:  # beyond the first epoch, except for the digits
        whole.append((inputs["input"], labels))
        states.append(pickle.dumps(reader.state_dict()))
        skipped.append(reader.skipped)
        if len(whole) == 10:
            break
    assert len({x.sum().item() for x, _ in whole}) == 10
    assert skipped[-1] == (kind != "digits")
    for position in (0, 6) if workers else range(8):
        resumed = loader(**options)
        resumed.load_state_dict(pickle.loads(states[position]))
        assert resumed.skipped == skipped[position]
        assert same(take(resumed, 2), whole[position + 1 : position + 3])
        assert resumed.skipped == skipped[position + 2]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_an_epoch_of_a_stream_has_every_readable_image_once(
    data: dict[str, dict[str, Any]], kind: str
) -> None:
    reader = loader(2, **data[kind], augment="none", infinite=False)
    images, labels = (torch.cat(x) for x in zip(*take(reader), strict=True))
    assert len(torch.unique(images, dim=0)) == 16
    assert torch.bincount(labels).tolist() == [6, 5, 5]


@pytest.mark.parametrize("kind", ["parquet", "webdataset"])
def test_transforms_of_a_stream_do_not_depend_on_ranks_or_workers(
    data: dict[str, dict[str, Any]], kind: str
) -> None:
    def epoch(world: int, workers: int) -> torch.Tensor:
        options = data[kind] | AUGMENTED | {"num_workers": workers, "infinite": False}
        ranks = [take(loader(1, world=world, rank=r, **options)) for r in range(world)]
        images = torch.cat([x for batches in ranks for x, _ in batches])
        return torch.unique(images, dim=0)

    assert torch.equal(epoch(1, 2), epoch(1, 0))
    assert torch.equal(epoch(3, 0), epoch(1, 0))


def test_workers_of_a_stream_count_their_epochs_apart(data: dict[str, dict[str, Any]]) -> None:
    """The worker with fewer images goes on to its second epoch while the other is in its first."""
    options = data["parquet"] | AUGMENTED | {"num_workers": 2}
    epoch = torch.cat([x for x, _ in take(loader(1, **options, infinite=False))])
    more = torch.cat([x for x, _ in take(loader(1, **options), 24)])
    assert len(torch.unique(torch.cat([epoch, more]), dim=0)) == 24


def test_another_seed_is_another_order(data: dict[str, dict[str, Any]]) -> None:
    for options in data.values():
        first, other = (take(loader(**options, seed=seed, augment="none"), 2) for seed in (0, 1))
        assert not same(first, other)


@pytest.mark.parametrize(("kind", "workers"), [("parquet", 0), ("parquet", 2), ("webdataset", 0)])
def test_validation_of_a_stream_does_not_depend_on_batch_size_ranks_or_workers(
    tmp_path: Path, kind: str, workers: int
) -> None:
    images = [encoded(number, "PNG" if kind == "parquet" else "JPEG") for number in range(10)]
    images[3] = images[3][:40]
    for split in ("train", "validation"):
        (parquet if kind == "parquet" else tars)(tmp_path, split, images)
    options = {"dataset": "hub", "dataset_path": str(tmp_path), "num_classes": 3} | SMALL

    def validated(batch: int, world: int = 1, **more: Any) -> torch.Tensor:
        ranks = [
            take(
                loader(
                    batch, world=world, rank=r, split="validation", infinite=False, **options,
                    num_workers=workers, **more,
                )
            )
            for r in range(world)
        ]  # fmt: skip
        assert len({len(batches) for batches in ranks}) == 1
        steps = zip(*ranks, strict=True)
        return torch.cat([x[y != -100] for step in steps for x, y in step])

    assert len(validated(4)) == 9
    assert torch.equal(validated(3), validated(4))
    assert torch.equal(validated(3, world=2), validated(4))
    assert torch.equal(validated(4, limit=5), validated(4)[:4])


def test_a_position_in_other_images_is_refused(
    data: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    state = loader(**data["folder"]).state_dict()
    other = folder(tmp_path, {"train": 4}, classes="abc")
    resumed = loader(**data["folder"] | {"dataset_path": str(other)})
    with pytest.raises(DataError, match=r"of 2 classes .* of 3 classes .*exclude_from_loading"):
        resumed.load_state_dict(state)


def test_a_stream_resumes_with_its_number_of_workers_only(data: dict[str, dict[str, Any]]) -> None:
    state = loader(**data["parquet"], num_workers=2).state_dict()
    with pytest.raises(DataError, match=r"2 workers\], but .* 0 workers\]: restore"):
        loader(**data["parquet"]).load_state_dict(state)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_all_processes_stops_no_worker(
    data: dict[str, dict[str, Any]], kind: str, number: int
) -> None:
    """Slurm and terminals send it to workers as well; the training still has to save its step."""
    options = data[kind] | {"augment": "none"}
    reader = iter(loader(**options, num_workers=2))
    batches = [next(reader)]
    workers = multiprocessing.active_children()
    assert len(workers) >= 2
    # Not from this process, which may end its workers.
    pids = " ".join(str(worker.pid) for worker in workers)
    subprocess.run(["sh", "-c", f"kill -{int(number)} {pids}"], check=True)
    batches += [next(reader) for _ in range(9)]
    whole = take(loader(**options, num_workers=2), 10)
    assert same([(inputs["input"], labels) for inputs, labels in batches], whole)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_signal_stops_no_worker_that_starts(data: dict[str, dict[str, Any]], kind: str) -> None:
    options = data[kind] | {"augment": "none"}
    signalled = multiprocessing.get_context("fork").Value("i", 0)
    forking = [os.getpid()]

    def signal_itself() -> None:
        if forking and os.getppid() in forking:
            signalled.value += 1
            for number in (signal.SIGTERM, signal.SIGUSR2):
                subprocess.run(["sh", "-c", f"kill -{int(number)} {os.getpid()}"], check=True)

    os.register_at_fork(after_in_child=signal_itself)
    batches = take(loader(**options, num_workers=2), 5)
    forking.clear()
    assert signalled.value >= 2
    assert same(batches, take(loader(**options, num_workers=2), 5))


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_the_training_process_ends_its_workers(data: dict[str, dict[str, Any]], kind: str) -> None:
    reader = iter(loader(**data[kind], augment="none", num_workers=1))
    next(reader)
    worker = multiprocessing.active_children()[-1]
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0
