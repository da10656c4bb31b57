"""Augmentation after normalising, and of single images: erasing, mixing, RandAugment, colours."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from archspec.augmentation import ColourJitter, CutMix, MixUp, RandAugment
from archspec.loading import Loaded
from runners.augment import single_augmentation
from runners.data import open_data, read, shuffled
from runners.mixing import AREAS, erase, mixing
from runners.samples import ChangedImages
from runners.tasks import Classification

Tiny = Callable[..., Loaded]
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_erased_rectangles_have_their_size_and_share() -> None:
    images = torch.full((400, 3, 20, 30), 7.0)
    erased = erase(images, 0.25)
    changed = (erased != images).any(1)
    areas = changed.flatten(1).sum(1)
    assert 60 <= int((areas > 0).sum()) <= 140
    for mask in changed[areas > 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        height, width = (int(p.max() - p.min()) + 1 for p in (rows, columns))
        assert int(mask.sum()) == height * width  # one rectangle, all of it
    shares = areas[areas > 0] / 600
    assert AREAS[0] * 0.5 < shares.min()
    assert shares.max() < AREAS[1] * 1.2
    noise = erased[(erased != 7)]
    assert noise.mean().abs() < 0.05
    assert (noise.std() - 1).abs() < 0.05


@pytest.mark.parametrize("kind", [MixUp(), CutMix()])
def test_labels_are_mixed_as_images_are(kind: MixUp | CutMix) -> None:
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 16, 16).contiguous()
    labels = torch.arange(4)
    mixed, shares = mixing([kind], 4)(images, labels)
    assert shares.shape == (4, 4)
    torch.testing.assert_close(shares.sum(1), torch.ones(4))
    # Channel k of an image is the share of image k in it.
    torch.testing.assert_close(mixed.mean((2, 3)), shares, atol=1e-6, rtol=0)


def test_of_both_each_batch_gets_one() -> None:
    images = torch.eye(4)[:, :, None, None].expand(4, 4, 16, 16).contiguous()
    change = mixing([MixUp(), CutMix()], 4)
    blended = [bool(((m > 0.01) & (m < 0.99)).any()) for m, _ in
               (change(images, torch.arange(4)) for _ in range(40))]  # fmt: skip
    assert 8 < sum(blended) < 32


def test_without_them_nothing_is_done() -> None:
    images, labels = torch.randn(3, 1, 4, 4), torch.arange(3)
    assert mixing([], 10)(images, labels) == (images, labels)


def test_the_loss_of_shares_is_the_mean_of_the_losses() -> None:
    logits, shares = torch.randn(2, 3), torch.tensor([[0.3, 0.7, 0], [0, 0, 1.0]])
    task = Classification()
    outcome = task.in_training(lambda _: logits, (torch.zeros(2), shares))
    one, other = (
        task.in_training(lambda _: logits, (torch.zeros(2), torch.tensor(labels))).loss
        for labels in ([1, 2], [0, 2])
    )
    torch.testing.assert_close(outcome.loss, 0.7 * one + 0.3 * other)
    right = (logits.argmax(1) == torch.tensor([1, 2])).sum()
    assert outcome.measured == right


def test_single_images_are_changed_each_by_itself() -> None:
    image = torch.randint(0, 256, (3, 12, 12), dtype=torch.uint8)
    change = single_augmentation([RandAugment(), ColourJitter()], (12, 12))
    changed = torch.stack([change(image) for _ in range(8)])
    assert changed.shape == (8, 3, 12, 12)
    assert changed.dtype == torch.uint8
    assert len({c.numpy().tobytes() for c in changed}) == 8


def test_images_in_memory_go_through_them_one_by_one(tiny: Tiny) -> None:
    augment = ["colour_jitter", {"random_crop": 1}, "random_erasing", "mixup"]
    loaded = tiny(data={"digits": {"augment": augment}})
    assert loaded.spec.data is not None
    data = open_data(loaded, loaded.spec.data, 0)
    assert isinstance(data.training.samples, ChangedImages)
    assert not isinstance(data.validation.samples, ChangedImages)
    images, labels = next(iter(read(data.training, shuffled(data.training, 32, 0, 0), CPU)))
    assert images.shape == (32, 1, 8, 8)
    assert labels.shape == (32, 10)
