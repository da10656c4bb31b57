"""Noise for evaluation: the same for an image in every batch, on every device, and at any time."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Draw = Callable[[torch.Generator], Tensor]


def steady(images: Tensor, *draws: Draw) -> list[Tensor]:
    """For each of some draws what it gives for images (B, …) from 0 to 1: (B, …), on their device.
    The numbers of an image follow from its pixels alone."""
    sources = [torch.Generator().manual_seed(seed) for seed in seeds_of(images)]
    return [torch.stack([draw(source) for source in sources]).to(images.device) for draw in draws]


def seeds_of(images: Tensor) -> Sequence[int]:
    """A number for each image, by its pixels as bytes: what a device rounds is not in it."""
    pixels = (images.detach() * 255).round().to(torch.uint8).cpu()
    return [zlib.crc32(image.contiguous().numpy().tobytes()) for image in pixels]
