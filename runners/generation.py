"""Images from a trained density, and images through it and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from archspec.diagnostics import Diagnostic, SpecError
from archspec.spec import ImageInput
from compiler.flow import Flow
from runners.augment import plain_image
from runners.density import Levels, bits_per_dimension, levels_of
from runners.devices import find_device
from runners.errors import TrainingError
from runners.samples import FileImages, ImageDecoder
from runners.trained import Trained


@dataclass(frozen=True)
class Density:
    """A trained density of images, on its device."""

    flow: Flow
    levels: Levels
    device: torch.device

    @torch.no_grad()
    def sample(self, count: int, temperature: float, seed: int, batch: int) -> Tensor:
        """Images (count, C, H, W) from 0 to 1, on the CPU: the same for the same seed, batch and
        device. The scale of the prior is multiplied by `temperature`. Raises `TrainingError`."""
        source = torch.Generator(self.device).manual_seed(seed)
        parts = []
        for start in range(0, count, batch):
            size = min(batch, count - start)
            values = self.flow.sample(size, temperature, source)
            if not values.isfinite().all():
                raise TrainingError("the density gives samples that are not finite")
            parts.append(self.levels.images(values).cpu())
        return torch.cat(parts)

    @torch.no_grad()
    def there_and_back(self, images: Tensor) -> Inverted:
        """Images (N, C, H, W) from 0 to 1 through the flow, and back by its inverse. They are taken
        in the middle of their levels, without noise."""
        values, change = self.levels.values(images.to(self.device), torch.tensor(0.5))
        kept = self.flow.informations()
        encoded = self.flow.encode(values, kept)
        back = self.flow.decode(encoded.latents, kept)
        bits = bits_per_dimension(self.flow(values) + change, images[0].numel())
        return Inverted(
            tuple(latent.cpu() for latent in encoded.latents),
            self.levels.images(back).cpu(),
            float((back - values).abs().max()),
            bits.cpu(),
        )


@dataclass(frozen=True)
class Inverted:
    """What images are turned to, and back."""

    latents: tuple[Tensor, ...]
    """As `Flow.encode` gives them."""
    images: Tensor
    """(N, C, H, W), from 0 to 1."""
    largest_error: float
    """Of the values that the network sees."""
    bits: Tensor
    """Bits per dimension of each image, (N)."""


def density_of(trained: Trained, device: str) -> Density:
    """The density of a run. Raises `SpecError` where the run is of another task, or not of images,
    and for a device that is not there."""
    spec = trained.loaded.spec
    if not isinstance(trained.model, Flow):
        message = f"the run in {trained.folder.path} is of the task {spec.task.kind}"
        help = "`task: density` makes images; `archspec train realnvp_digits` is one"
        raise SpecError([Diagnostic("E604", message, None, help)])
    if not isinstance(spec.input, ImageInput) or spec.input.sizes[0] not in (1, 3):
        message = f"images have one channel or three, and this input is {spec.input.shape}"
        raise SpecError([Diagnostic("E602", message, None)])
    chosen = find_device(device)
    return Density(trained.model.to(chosen), levels_of(trained.loaded), chosen)


def read_images(trained: Trained, paths: Sequence[Path]) -> Tensor:
    """The images in some files, as evaluation sees those of a folder: (N, C, H, W) from 0 to 1.
    Raises `TrainingError` for one that cannot be read."""
    channels, height, width = trained.loaded.spec.input.shape.sizes
    decoder = ImageDecoder(channels, plain_image((height, width), 1.0))
    labels = torch.zeros(len(paths), dtype=torch.long)
    files = FileImages(tuple(map(str, paths)), labels, "image", decoder, strict=True)
    images, _, _ = files.__getitems__(list(range(len(paths))))
    return images.float() / 255
