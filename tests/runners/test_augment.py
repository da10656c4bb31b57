"""Augmentation of batches, against torchvision's of single images where there is one."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from archspec.augmentation import (
    AnyAugmentation,
    HorizontalFlip,
    RandomAffine,
    RandomCrop,
    RandomResizedCrop,
)
from runners.augment import affine, batch_augmentation, image_augmentation, plain_image, resample

EVERY = [
    HorizontalFlip(),
    RandomCrop(padding=2),
    RandomResizedCrop(smallest=0.3),
    RandomAffine(degrees=15, translate=0.1, scale=0.2),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("degrees", "shift", "scale"), [(0, (3, 0), 1.0), (0, (0, -2), 1.0), (20, (2, 1), 1.2)]
)
def test_affine_is_torchvisions(degrees: float, shift: tuple[int, int], scale: float) -> None:
    images = torch.rand(2, 3, 10, 14)
    shifts = torch.tensor([shift, (0, 0)], dtype=torch.float32)
    mine = affine(images, torch.tensor([degrees, 0.0]), shifts, torch.tensor([scale, 1.0]))
    theirs = tv.affine(images[0], degrees, list(shift), scale, [0.0], v2.InterpolationMode.BILINEAR)
    torch.testing.assert_close(mine[0], theirs, atol=1e-5, rtol=0)
    torch.testing.assert_close(mine[1], images[1], atol=1e-5, rtol=0)  # each has its own


def test_resample_of_a_quarter_is_a_crop_resized() -> None:
    images = torch.rand(1, 1, 8, 8)
    matrix, shift = torch.eye(2)[None] / 2, torch.tensor([[-2.0, 2.0]])  # lower left
    theirs = v2.Resize(8, antialias=False)(images[..., 4:, :4])
    # torchvision clamps at the edge of the crop, where its neighbours are in sight here.
    mine = resample(images, matrix, shift, "border")
    torch.testing.assert_close(mine[..., 1:-1, 1:-1], theirs[..., 1:-1, 1:-1], atol=1e-5, rtol=0)


def test_a_random_crop_is_a_window_of_the_padded_image() -> None:
    images = torch.rand(40, 2, 4, 6)
    cropped = batch_augmentation([RandomCrop(padding=1)])(images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    corners = set()
    for one, whole in zip(cropped, padded, strict=True):
        found = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if torch.equal(one, whole[:, y : y + 4, x : x + 6])
        ]
        assert len(found) == 1
        corners.update(found)
    assert len(corners) == 9


def test_flips_mirror_some_images_and_leave_the_rest() -> None:
    images = torch.rand(64, 1, 4, 4)
    flipped = batch_augmentation([HorizontalFlip()])(images)
    mirrored = [torch.equal(a, b.flip(-1)) for a, b in zip(flipped, images, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(flipped, images, strict=True)]
    assert all(m != s for m, s in zip(mirrored, same, strict=True))
    assert 16 < sum(mirrored) < 48


@pytest.mark.parametrize("augmentation", EVERY, ids=lambda a: a.kind)
def test_batches_keep_their_shape_and_range(augmentation: AnyAugmentation) -> None:
    images = torch.rand(16, 3, 8, 12)
    augmented = batch_augmentation([augmentation])(images)
    assert augmented.shape == images.shape
    assert augmented.min() >= 0
    assert augmented.max() <= 1 + 1e-6
    assert not torch.equal(augmented, images)


def test_a_batch_is_determined_by_the_global_generator() -> None:
    images = torch.rand(16, 3, 8, 12)
    augment = batch_augmentation(EVERY)
    state = torch.get_rng_state()
    first, second = augment(images), augment(images)
    torch.set_rng_state(state)
    assert torch.equal(augment(images), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("size", [(20, 12), (8, 12), (50, 31)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pictures_of_any_size_come_out_at_the_inputs(size: tuple[int, int], mode: str) -> None:
    picture = Image.new(mode, size, color=200 if mode == "L" else (200, 100, 0))
    for transform in (
        plain_image((10, 14), 1.0),
        image_augmentation([], (10, 14)),
        image_augmentation(EVERY, (10, 14)),
        *(image_augmentation([augmentation], (10, 14)) for augmentation in EVERY),
    ):
        assert transform(picture).shape == (len(mode), 10, 14)
        assert transform(picture).dtype == torch.uint8


def test_evaluation_covers_and_crops_the_centre() -> None:
    picture = Image.new("L", (30, 10))
    picture.paste(255, (10, 0, 20, 10))  # the middle third is white
    assert plain_image((10, 10), 1.0)(picture).float().mean() > 250


def test_evaluation_may_see_less_than_the_whole() -> None:
    """224 pixels of 256: what an edge of 16 holds is not seen."""
    picture = Image.new("L", (512, 256))
    picture.paste(255, (128 + 16, 16, 384 - 16, 256 - 16))
    seen = plain_image((224, 224), 224 / 256)(picture)
    assert seen.min() == 255
    assert torch.equal(seen, torch.full((1, 224, 224), 255, dtype=torch.uint8))
