"""Augmentation after normalising: rectangles of noise, and images mixed with their labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from archspec.augmentation import AnyAugmentation, CutMix, MixUp, RandomErasing

AREAS = (0.02, 1 / 3)
"""Of an erased rectangle, as a share of the image."""
ASPECTS = (0.3, 3.3)

OnBatch = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From images (B, C, H, W) or clips (B, C, T, H, W), and labels (B), to such, and labels or shares
of classes (B, K)."""


def mixing(augmentations: Sequence[AnyAugmentation], classes: int) -> OnBatch:
    """What is done to a normalised batch. Parameters come from the CPU's global generator."""
    erased = [each for each in augmentations if isinstance(each, RandomErasing)]
    mixed = [_mix(each, classes) for each in augmentations if isinstance(each, (MixUp, CutMix))]
    mix = v2.RandomChoice(mixed) if mixed else None

    def change(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        for each in erased:
            images = erase(images, each.probability)
        if mix is not None:
            mixed_images, labels = mix(_taken(images), labels)
            images = mixed_images.as_subclass(Tensor)
        return images, labels

    return change


def _taken(images: Tensor) -> Tensor:
    """As torchvision takes a batch, clips by their type."""
    return tv_tensors.Video(images) if images.ndim == 5 else images


def _mix(augmentation: MixUp | CutMix, classes: int) -> v2.Transform:
    kind = v2.MixUp if isinstance(augmentation, MixUp) else v2.CutMix
    return kind(alpha=augmentation.alpha, num_classes=classes)


def erase(images: Tensor, probability: float) -> Tensor:
    """Some images (B, C, H, W) with normal noise in a rectangle, as the published recipes have it
    (`pixel` mode): each image by itself, all at once. Of a clip (B, C, T, H, W), all frames have
    it in one place."""
    count, (height, width) = len(images), images.shape[-2:]
    area = torch.empty(count).uniform_(*AREAS) * height * width
    aspect = torch.empty(count).uniform_(*map(math.log, ASPECTS)).exp()
    rows = (area * aspect).sqrt().round().clamp(1, height - 1)
    columns = (area / aspect).sqrt().round().clamp(1, width - 1)
    top = (torch.rand(count) * (height - rows + 1)).floor()
    left = (torch.rand(count) * (width - columns + 1)).floor()
    chosen = torch.rand(count) < probability
    noise = noise_like(images)
    inside = _between(top, rows, height)[:, :, None] & _between(left, columns, width)[:, None]
    erased = (inside & chosen[:, None, None]).to(images.device)
    every_channel = erased.view(count, *[1] * (images.ndim - 3), height, width)
    return torch.where(every_channel, noise, images)


def noise_like(images: Tensor) -> Tensor:
    """Normal noise, made where the images are, from a seed of the CPU's global generator."""
    source = torch.Generator(images.device).manual_seed(int(torch.randint(2**62, ())))
    return torch.empty_like(images).normal_(generator=source)


def _between(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Which of `size` places lie in each of B intervals, (B, size)."""
    places = torch.arange(size)
    return (places >= start[:, None]) & (places < (start + length)[:, None])
