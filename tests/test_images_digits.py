"""The embedded digits: their split, their order and their labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
import tyro
from image_cases import AUGMENTED, DIGITS, MIXED, loader, random_states, same, take

from train.data.images import ImageDataLoader, count_classes
from train.data.images.digits import digits


def test_the_split_is_of_all_digits_and_stratified() -> None:
    (train, train_labels), (held_out, held_out_labels) = digits("train"), digits("validation")
    assert (len(train), len(held_out)) == (1437, 360)
    assert len(np.unique(np.concatenate([train, held_out]), axis=0)) == 1797
    shares = np.bincount(held_out_labels) / np.bincount(np.append(train_labels, held_out_labels))
    assert shares == pytest.approx(np.full(10, 360 / 1797), abs=0.01)


def test_the_split_never_changes() -> None:
    expected = [8, 5, 8, 2, 9, 2, 6, 1, 6, 0, 1, 4, 2, 9, 8, 0, 9, 1, 1, 8]
    assert digits("validation")[1][:40:2].tolist() == expected


def test_an_epoch_has_every_image_once_normalised() -> None:
    data = loader(479, **DIGITS, infinite=False)
    images, labels = (torch.cat(x) for x in zip(*take(data), strict=True))
    assert images.shape == (1437, 1, 8, 8)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)
    assert len(torch.unique(images, dim=0)) == 1437
    assert torch.bincount(labels).tolist() == np.bincount(digits("train")[1]).tolist()


def test_an_image_keeps_its_label() -> None:
    images, labels = digits("validation")
    by_pixels = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
    data = loader(360, **DIGITS, split="validation", infinite=False, mean=(0.0,), std=(1.0,))
    for image, label in zip(*take(data)[0], strict=True):
        assert by_pixels[(image * 255).round().byte().numpy().tobytes()] == label


def test_the_order_depends_on_the_seed_and_the_epoch() -> None:
    labels = [torch.cat([y for _, y in take(loader(479, **DIGITS, seed=s), 6)]) for s in (0, 1)]
    assert not torch.equal(labels[0], labels[1])
    assert not torch.equal(labels[0][:1437], labels[0][1437:])


@pytest.mark.parametrize("options", [{}, AUGMENTED], ids=["plain", "augmented"])
def test_images_do_not_depend_on_the_batch_size_ranks_or_workers(options: dict) -> None:
    def stream(batch: int, count: int, world: int = 1, workers: int = 0) -> torch.Tensor:
        ranks = [
            loader(batch, world=world, rank=r, **DIGITS, **options, num_workers=workers)
            for r in range(world)
        ]
        steps = zip(*(take(data, count) for data in ranks), strict=True)
        return torch.cat([images for step in steps for images, _ in step])

    whole = stream(24, 2)
    assert torch.equal(stream(8, 6), whole)
    assert torch.equal(stream(4, 6, world=2), whole)
    assert torch.equal(stream(12, 4, workers=2), whole)


@pytest.mark.parametrize("batch", [64, 100, 400])
def test_validation_has_all_images_whatever_the_batch_size(batch: int) -> None:
    batches = take(loader(batch, **DIGITS, split="validation", infinite=False))
    assert {len(images) for images, _ in batches} == {batch}
    images, labels = (torch.cat(x) for x in zip(*batches, strict=True))
    real = labels != -100
    assert real.sum() == 360
    assert not images[~real].any()
    expected = take(loader(360, **DIGITS, split="validation", infinite=False))[0]
    assert torch.equal(images[real], expected[0])


def test_ranks_share_the_validation_images_in_as_many_batches() -> None:
    ranks = [
        take(loader(32, world=2, rank=r, **DIGITS, split="validation", infinite=False))
        for r in (0, 1)
    ]
    assert [len(batches) for batches in ranks] == [6, 6]
    images = torch.cat([x[y != -100] for batches in ranks for x, y in batches])
    assert len(torch.unique(images, dim=0)) == 360


def test_validation_repeats_from_its_first_image() -> None:
    data = loader(100, **DIGITS, split="validation", infinite=True)
    batches = take(data, 8)
    assert same(batches[:4], batches[4:])


def test_a_limit_takes_the_same_images_for_any_batch_size() -> None:
    def images(batch: int) -> torch.Tensor:
        data = loader(batch, **DIGITS, split="validation", infinite=False, limit=50)
        assert data.samples == 50
        return torch.cat([x[y != -100] for x, y in take(data)])

    assert len(images(7)) == 50
    assert torch.equal(images(7), images(32))


@pytest.mark.parametrize("workers", [0, 2])
def test_loading_leaves_the_random_numbers_of_training_alone(workers: int) -> None:
    data = loader(8, **DIGITS, **AUGMENTED, **MIXED, num_workers=workers)
    before = random_states()
    take(data, 2)
    assert random_states() == before


def test_mixed_labels_are_shares_of_classes() -> None:
    images, labels = take(loader(32, **DIGITS, **MIXED), 1)[0]
    assert labels.shape == (32, 10)
    assert labels.sum(1).tolist() == pytest.approx([1] * 32, abs=1e-6)
    plain, indices = take(loader(32, **DIGITS), 1)[0]
    assert not torch.equal(images, plain)
    partners = indices.flip(0)
    for share, label, partner in zip(labels, indices, partners, strict=True):
        assert set(share.topk(2).indices.tolist()) >= {int(label), int(partner)} - {-1}


def test_label_smoothing_alone_spreads_its_share() -> None:
    _, labels = take(loader(4, **DIGITS, label_smoothing=0.1), 1)[0]
    _, indices = take(loader(4, **DIGITS), 1)[0]
    expected = torch.full((4, 10), 0.01)
    expected[range(4), indices] = 0.91
    torch.testing.assert_close(labels, expected)


def test_validation_is_neither_augmented_nor_mixed() -> None:
    options = DIGITS | AUGMENTED | MIXED | {"crop_pct": 1.0}
    batches = take(loader(100, **options, split="validation", infinite=False))
    assert same(batches, take(loader(100, **DIGITS, split="validation", infinite=False)))


def test_colour_and_another_size() -> None:
    images, _ = take(loader(2, image_size=12), 1)[0]
    assert images.shape == (2, 3, 12, 12)


def test_classes_are_counted_without_reading_images() -> None:
    assert count_classes(ImageDataLoader.Config()) == 10


def test_the_position_passes_through_a_checkpoint(tmp_path: Path) -> None:
    data, fresh = loader(4, **DIGITS), loader(4, **DIGITS)
    take(data, 3)
    data._names = {"digit 3": None}  # as if it could not be read
    dcp.save({"dataloader": data}, checkpoint_id=tmp_path, no_dist=True)
    dcp.load({"dataloader": fresh}, checkpoint_id=tmp_path, no_dist=True)
    assert fresh.state_dict() == data.state_dict()
    assert (fresh.skipped, same(take(fresh, 2), take(data, 2))) == (1, True)


def test_every_setting_is_a_flag() -> None:
    flags = [
        *("--augment", "timm", "--scale", "0.5", "1.0", "--auto-augment", "rand-m9"),
        *("--mean", "0.5", "0.5", "0.5", "--mixup", "0.8", "--limit", "100", "--no-infinite"),
    ]
    config = tyro.cli(ImageDataLoader.Config, args=flags)
    assert (config.scale, config.mean, config.limit) == ((0.5, 1.0), (0.5,) * 3, 100)


def test_random_choices_differ_between_images_epochs_and_seeds() -> None:
    def corner(epoch: int, seed: int) -> torch.Tensor:
        options = DIGITS | {"augment": "timm", "limit": 2, "seed": seed}
        batches = take(loader(2, **options), epoch + 1)
        return torch.stack(sorted(batches[epoch][0], key=lambda image: image.sum().item()))

    first, again, later, other = corner(0, 0), corner(0, 0), corner(1, 0), corner(0, 1)
    assert torch.equal(first, again)
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


def test_each_batch_is_mixed_by_another_share() -> None:
    largest = [labels.max().item() for _, labels in take(loader(32, **DIGITS, mixup=1.0), 4)]
    assert len(set(largest)) > 2
