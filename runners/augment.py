"""Augmentation: of whole batches held in memory, or of single images as they are decoded.

torchvision's transforms draw one set of parameters a call, so a batch held in memory would go
through them image by image: 64 digits take 14 ms, several times their share of a training step.
Here each image of a batch has its own parameters and all are resampled together, in 0.1 ms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from archspec.augmentation import (
    AnyAugmentation,
    ColourJitter,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomAffine,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
)

ASPECTS = (3 / 4, 4 / 3)
"""Width over height of a random resized crop."""

AFTER = (RandomErasing, MixUp, CutMix)
"""What is done after normalising, by runners.mixing."""
SINGLE = (RandAugment, ColourJitter)
"""What is done to one image at a time alone."""

OnBatch = Callable[[Tensor], Tensor]
OnImage = Callable[[Image.Image], Tensor]


def before_normalising(augmentations: Sequence[AnyAugmentation]) -> list[AnyAugmentation]:
    """Those that change pictures."""
    return [each for each in augmentations if not isinstance(each, AFTER)]


def has_single(augmentations: Sequence[AnyAugmentation]) -> bool:
    """Whether images must go through these one by one."""
    return any(isinstance(each, SINGLE) for each in augmentations)


def has_crop(augmentations: Sequence[AnyAugmentation]) -> bool:
    """Whether one takes its part of a whole picture, and brings that to size itself."""
    return any(isinstance(each, RandomResizedCrop) for each in augmentations)


def single_augmentation(augmentations: Sequence[AnyAugmentation], size: tuple[int, int]) -> OnBatch:
    """A function from one image (C, H, W) of bytes to its augmented copy."""
    return v2.Compose([on_image(each, size) for each in augmentations])  # type: ignore[no-any-return]


def batch_augmentation(augmentations: Sequence[AnyAugmentation]) -> OnBatch:
    """A function from a batch (B, C, H, W) with values in [0, 1] to its augmented copy.

    Parameters are drawn from the CPU's global generator, whatever device the batch is on.
    """
    return partial(_apply, tuple(_on_batch(augmentation) for augmentation in augmentations))


def image_augmentation(augmentations: Sequence[AnyAugmentation], size: tuple[int, int]) -> OnImage:
    """A function from a picture of any size to bytes (C, height, width), augmented."""
    first = [] if has_crop(augmentations) else [fitting(size, 1.0)]
    steps = [on_image(augmentation, size) for augmentation in augmentations]
    return v2.Compose([*first, *steps, v2.PILToTensor()])  # type: ignore[no-any-return]


def plain_image(size: tuple[int, int], centre: float) -> OnImage:
    """A function from a picture of any size to bytes (C, height, width), for evaluation."""
    return v2.Compose([fitting(size, centre), v2.PILToTensor()])  # type: ignore[no-any-return]


def fitting(size: tuple[int, int], centre: float) -> Callable[[Image.Image], Image.Image]:
    """Crops the largest part of a picture's middle that has the form of height × width, a share
    `centre` of it along each side, and resizes that."""
    height, width = size
    bleed = (1 - centre) / 2
    method = Image.Resampling.BICUBIC
    return partial(ImageOps.fit, size=(width, height), method=method, bleed=bleed)


# Batches ------------------------------------------------------------------------------------------


def _apply(steps: Sequence[OnBatch], images: Tensor) -> Tensor:
    for step in steps:
        images = step(images)
    return images


def _on_batch(augmentation: AnyAugmentation) -> OnBatch:
    if isinstance(augmentation, HorizontalFlip):
        return _random_flip
    if isinstance(augmentation, RandomCrop):
        return partial(_random_crop, padding=augmentation.padding)
    if isinstance(augmentation, RandomResizedCrop):
        return partial(_random_resized_crop, smallest=augmentation.smallest)
    assert isinstance(augmentation, RandomAffine)
    return partial(_random_affine, setting=augmentation)


def _random_flip(images: Tensor) -> Tensor:
    mirrored = (torch.rand(len(images)) < 0.5).to(images.device)
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def _random_crop(images: Tensor, padding: int) -> Tensor:
    count, _, height, width = images.shape
    corners = torch.randint(0, 2 * padding + 1, (2, count, 1, 1)).to(images.device)
    rows = corners[0] + torch.arange(height, device=images.device)[:, None]
    columns = corners[1] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    padded = F.pad(images, (padding, padding, padding, padding)).permute(0, 2, 3, 1)
    return padded[which, rows, columns].permute(0, 3, 1, 2).contiguous()


def _random_resized_crop(images: Tensor, smallest: float) -> Tensor:
    count, _, height, width = images.shape
    area = _uniform(count, smallest, 1)
    aspect = _uniform(count, *map(math.log, ASPECTS)).exp()
    # Shares of the image's width and height; a crop that would reach beyond is cut at the edge.
    shares = torch.stack(((area * aspect).sqrt(), (area / aspect).sqrt()), dim=1).clamp(max=1)
    room = (1 - shares) * torch.tensor([width, height])
    shifts = (torch.rand(count, 2) - 0.5) * room
    # A crop is never larger than the output, so there is nothing to filter against aliasing.
    return resample(images, torch.diag_embed(shares), shifts, "border")


def _random_affine(images: Tensor, setting: RandomAffine) -> Tensor:
    count, _, height, width = images.shape
    return affine(
        images,
        degrees=_uniform(count, -setting.degrees, setting.degrees),
        # Not rounded to pixels, as torchvision does: on small images that is too coarse.
        shifts=(2 * torch.rand(count, 2) - 1) * setting.translate * torch.tensor([width, height]),
        scales=_uniform(count, 1 - setting.scale, 1 + setting.scale),
    )


def affine(images: Tensor, degrees: Tensor, shifts: Tensor, scales: Tensor) -> Tensor:
    """Each image turned clockwise and scaled about its centre, then shifted by (x, y) pixels."""
    angles = torch.deg2rad(degrees)
    cos, sin = angles.cos() / scales, angles.sin() / scales
    back = torch.stack((cos, sin, -sin, cos), dim=1).view(-1, 2, 2)
    return resample(images, back, -(back @ shifts[:, :, None])[:, :, 0], "zeros")


def resample(images: Tensor, matrices: Tensor, shifts: Tensor, beyond: str) -> Tensor:
    """Each output pixel, at p pixels from the centre, read from its image at matrix·p + shift."""
    size = torch.tensor([images.shape[-1], images.shape[-2]])
    # affine_grid counts from -1 to 1 across each side.
    matrices = matrices * size / size[:, None]
    thetas = torch.cat((matrices, (2 * shifts / size)[:, :, None]), dim=2).to(images)
    grid = F.affine_grid(thetas, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)


def _uniform(count: int, low: float, high: float) -> Tensor:
    return torch.empty(count).uniform_(low, high)


# Single images ------------------------------------------------------------------------------------


def on_image(augmentation: AnyAugmentation, size: tuple[int, int]) -> v2.Transform:
    """A transform of one picture or image, or of all frames of a clip alike."""
    if isinstance(augmentation, HorizontalFlip):
        return v2.RandomHorizontalFlip()
    if isinstance(augmentation, RandomCrop):
        return v2.RandomCrop(size, padding=augmentation.padding, pad_if_needed=True)
    if isinstance(augmentation, RandomResizedCrop):
        return v2.RandomResizedCrop(
            size,
            scale=(augmentation.smallest, 1),
            ratio=ASPECTS,
            interpolation=v2.InterpolationMode.BICUBIC,
        )
    if isinstance(augmentation, RandAugment):
        return v2.RandAugment(augmentation.operations, augmentation.magnitude)
    if isinstance(augmentation, ColourJitter):
        strength = augmentation.strength
        return v2.ColorJitter(strength, strength, strength)
    assert isinstance(augmentation, RandomAffine)
    return v2.RandomAffine(
        augmentation.degrees,
        translate=(augmentation.translate, augmentation.translate),
        scale=(1 - augmentation.scale, 1 + augmentation.scale),
        interpolation=v2.InterpolationMode.BILINEAR,
    )
