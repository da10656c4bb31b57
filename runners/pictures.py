"""Images as PNG files, one by one and in a grid."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

SEEN = 512
"""Pixels that a side of a grid has at least: smaller ones are magnified."""


def as_bytes(images: Tensor) -> Tensor:
    """Numbers from 0 to 1 as bytes, of the same shape."""
    return (images * 255).round().clamp(0, 255).to(torch.uint8)


def write_png(image: Tensor, path: Path) -> None:
    """Write an image (C, H, W) from 0 to 1, of one channel or three. Raises OSError."""
    pixels = as_bytes(image.cpu()).permute(1, 2, 0).numpy()
    found = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    found.save(path, "PNG")  # whatever the path ends in


def write_grid(images: Tensor, path: Path, columns: int) -> None:
    """Write images (N, C, H, W) side by side, magnified by a whole number where they are small.
    Raises OSError."""
    grid = make_grid(images.cpu(), columns, padding=1, pad_value=0.5)
    times = max(1, ceil(SEEN / max(grid.shape[1:])))
    write_png(grid.repeat_interleave(times, 1).repeat_interleave(times, 2), path)


def write_folder(images: Tensor, folder: Path) -> None:
    """Write images (N, C, H, W) as 00000.png and so on. Raises OSError."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        write_png(image, folder / f"{number:05}.png")


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill in place of `folder`, which it replaces when the block ends without an
    error. Raises OSError."""
    folder = folder.absolute()
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        before = folder.with_name(f".{folder.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        if folder.exists():
            os.replace(folder, before)
        try:
            os.replace(partial, folder)
        except OSError:
            if before.exists():
                os.replace(before, folder)
            raise
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
