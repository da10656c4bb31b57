"""Inputs with what the task needs to know of each, read a batch at a time."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from runners.errors import TrainingError

OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)
"""Errors in reading a file that are not the file's: they pass, and it is whole."""
Unreadable = dict[str, str]
"""Files that were passed over, and why."""
Read = tuple[Tensor, Tensor, Unreadable]
"""Inputs (B, …), targets (B, …), and what could not be read, which B leaves out: all, maybe."""


class Samples(Protocol):
    """What a batch is read from."""

    def __getitems__(self, indices: list[int]) -> Read:
        """A batch, as DataLoader asks for it."""


class Images(Samples, Protocol):
    """Images with labels: bytes, or floats in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """One for each image."""


@dataclass(frozen=True)
class HeldImages:
    """Images held in memory, (N, C, H, W), of any device."""

    images: Tensor
    labels: Tensor

    def __getitems__(self, indices: list[int]) -> Read:
        places = torch.tensor(indices, device=self.images.device)
        return self.images[places], self.labels[places], {}

    def on(self, device: torch.device) -> HeldImages:
        """The same images on a device, from which batches are then read without a copy."""
        return HeldImages(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class ChangedImages:
    """Images held in memory, each changed as it is read."""

    held: HeldImages
    change: Callable[[Tensor], Tensor]
    """Of one image (C, H, W)."""

    @property
    def labels(self) -> Tensor:
        return self.held.labels

    def __getitems__(self, indices: list[int]) -> Read:
        images, labels, _ = self.held.__getitems__(indices)
        return torch.stack([self.change(image) for image in images]), labels, {}


@dataclass(frozen=True)
class NoiseImages:
    """Images of noise, a few of them over and over: to profile with."""

    few: Tensor
    """(n, C, …) bytes."""
    labels: Tensor

    def __getitems__(self, indices: list[int]) -> Read:
        places = torch.tensor(indices)
        return self.few[places % len(self.few)], self.labels[places], {}


@dataclass(frozen=True)
class FileImages:
    """Images, or clips of videos, decoded from files each time."""

    paths: tuple[str, ...]
    labels: Tensor
    noun: str
    """What a file holds, as a person is told of it."""
    decode: Callable[[str], Tensor]
    """From a path to bytes (C, H, W), or of a video (C, T, H, W). Raises OSError, SyntaxError or
    ValueError."""
    strict: bool
    """Whether a file that cannot be decoded ends the run; else it is left out."""

    def __getitems__(self, indices: list[int]) -> Read:
        images, kept, unreadable = [], [], {}
        for index in indices:
            path = self.paths[index]
            try:
                images.append(self.decode(path))
                kept.append(index)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow raises any of them
                if isinstance(error, OSError) and error.errno in OF_THE_MACHINE:
                    raise TrainingError(f"cannot read {path}: {error.strerror}") from None
                unreadable[path] = (str(error) or type(error).__name__).replace(f" {path!r}", "")
        if unreadable and self.strict:
            path, why = next(iter(unreadable.items()))
            cure = "mend or remove it and give the command again, or leave out data's `strict`"
            raise TrainingError(f"cannot read the {self.noun} {path}: {why}; {cure}")
        inputs = torch.stack(images) if images else torch.empty(0)
        return inputs, self.labels[kept], unreadable


@dataclass(frozen=True)
class ImageDecoder:
    """Images in files, in colour or grey."""

    channels: int
    transform: Callable[[Image.Image], Tensor]

    def __call__(self, path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                return self.transform(_shallow(image).convert("L" if self.channels == 1 else "RGB"))
        except Image.DecompressionBombError as error:  # which is no OSError
            raise OSError(str(error)) from None


def _shallow(image: Image.Image) -> Image.Image:
    """With 8 bits for a pixel of 16, which Pillow else cuts off at 255."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))


@dataclass(frozen=True)
class Measurements:
    """Measurements (N, m), and the least value of the Lasso's objective for each (N)."""

    inputs: Tensor
    targets: Tensor

    def __getitems__(self, indices: list[int]) -> Read:
        return self.inputs[indices], self.targets[indices], {}
