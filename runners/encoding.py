"""Images through a trained density, and back by its inverse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from archspec.diagnostics import Diagnostic, SpecError
from compiler.flow import Flow
from runners.as_data import check_images
from runners.augment import plain_image
from runners.density import bits_per_dimension, levels_of
from runners.devices import find_device
from runners.errors import TrainingError
from runners.labels import NO_LABEL, label_of
from runners.samples import FileImages, ImageDecoder
from runners.trained import Trained

AT_ONCE = 64
"""Images that go through a density together."""


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
    """Bits per dimension of each image in the middle of its levels, (N)."""


@torch.no_grad()
def there_and_back(trained: Trained, images: Tensor, label: int | None, device: str) -> Inverted:
    """Images (N, C, H, W) from 0 to 1, all of one class, through the density of a run, and back by
    its inverse. They are taken in the middle of their levels, without noise. Raises what `flow_of`
    raises, `SpecError` for a device that is not there, and `TrainingError`."""
    flow, levels, chosen = flow_of(trained), levels_of(trained.loaded), find_device(device)
    flow = flow.to(chosen)
    classes, parts = classes_of(trained), []
    for few in torch.split(images, AT_ONCE):
        values, change = levels.values(few.to(chosen), torch.tensor(0.5))
        labels = torch.full((len(few),), NO_LABEL if label is None else label, device=chosen)
        side = label_of(labels, classes)
        kept = flow.informations()
        encoded = flow.encode(values, kept, **side)
        back = flow.decode(encoded.latents, kept, **side)
        bits = bits_per_dimension(flow.log_density(encoded) + change, few[0].numel())
        if not all(found.isfinite().all() for found in (*encoded.latents, bits, back)):
            raise TrainingError("the density gives latents, or images, that are not finite")
        latents = tuple(latent.cpu() for latent in encoded.latents)
        error = float((back - values).abs().max())
        parts.append(Inverted(latents, levels.images(back).cpu(), error, bits.cpu()))
    return _joined(parts)


def _joined(parts: Sequence[Inverted]) -> Inverted:
    return Inverted(
        tuple(torch.cat(latents) for latents in zip(*(p.latents for p in parts), strict=True)),
        torch.cat([part.images for part in parts]),
        max(part.largest_error for part in parts),
        torch.cat([part.bits for part in parts]),
    )


def flow_of(trained: Trained) -> Flow:
    """The density of a run. Raises `SpecError` where the run is of another task, or not of
    images."""
    if not isinstance(trained.model, Flow):
        kind = trained.loaded.spec.task.kind
        message = f"the run in {trained.folder.path} is of the task {kind}"
        help = "`task: density` takes images to latents; `archspec train realnvp_digits` is one"
        raise SpecError([Diagnostic("E604", message, None, help)])
    check_images(trained.loaded)
    return trained.model


def classes_of(trained: Trained) -> int:
    """How many the density of a run tells apart; 0 where it knows none."""
    return trained.loaded.spec.task.sizes.get("classes", 0)


def read_images(trained: Trained, paths: Sequence[Path]) -> Tensor:
    """The images in some files, as evaluation sees those of a folder: (N, C, H, W) from 0 to 1.
    Raises `TrainingError` for one that cannot be read."""
    channels, height, width = trained.loaded.spec.input.shape.sizes
    decoder = ImageDecoder(channels, plain_image((height, width), 1.0))
    labels = torch.zeros(len(paths), dtype=torch.long)
    files = FileImages(tuple(map(str, paths)), labels, "image", decoder, strict=True)
    images, _, _ = files.__getitems__(list(range(len(paths))))
    return images.float() / 255
