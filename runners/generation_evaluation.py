"""How a density fares beside a Gaussian, and samples beside data."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from archspec.loading import Loaded
from archspec.training import Density
from runners.data import Data, Split, in_order, read
from runners.density import Gaussian, Levels, bits_per_dimension, fitted_gaussian, levels_of
from runners.fidelity import Features, Fidelity, measure_fidelity
from runners.generation import GaussianSampler, Sampler
from runners.pictures import as_bytes

MOST_DIMENSIONS = 4096
"""A covariance of more takes too long."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Compared:
    """What is asked for of samples."""

    sampler: Sampler
    samples: int | None
    """How many; as many as the split has by default."""
    temperature: float
    features: Features
    """By which they are compared."""


@dataclass(frozen=True)
class GenerationEvaluation:
    """What is told of a network that makes images, beside its metric."""

    gaussian_bits: float | None
    """Of a density: bits per dimension of the same samples by a Gaussian with a full covariance,
    fitted to the training samples; None where they are too few for it, or of too many numbers."""
    fidelity: Fidelity | None = None
    gaussian_fidelity: Fidelity | None = None
    """Of that Gaussian's samples."""


@torch.no_grad()
def evaluate_generation(
    loaded: Loaded,
    data: Data,
    split: Split,
    batch: int,
    device: torch.device,
    compared: Compared | None,
) -> GenerationEvaluation:
    """Hold a density against a Gaussian on a split and, if asked for, samples of a network and of
    that Gaussian against its images. Raises what `measure_fidelity` raises."""
    is_density = isinstance(loaded.spec.task, Density)
    if compared is None and not is_density:
        return GenerationEvaluation(None)
    levels = levels_of(loaded)
    dimensions = math.prod(loaded.spec.input.sizes)
    gaussian = gaussian_of(data, levels, dimensions, batch)
    if compared is None and gaussian is None:
        return GenerationEvaluation(None)
    images = all_images(split, batch)
    bits = gaussian_bits(gaussian, levels, images) if gaussian and is_density else None
    if compared is None:
        return GenerationEvaluation(bits)
    channels = 3 if compared.features.extractor is None else images.shape[1]
    real = as_bytes(images).expand(-1, channels, -1, -1)

    def held(sampler: Sampler, temperature: float) -> Fidelity:
        return measure_fidelity(
            sampler,
            real,
            compared.samples or len(images),
            temperature,
            compared.features,
            batch=batch,
            device=device,
        )

    found = held(compared.sampler, compared.temperature)
    if gaussian is None:
        return GenerationEvaluation(bits, found)
    sizes = compared.sampler.sizes
    return GenerationEvaluation(bits, found, held(GaussianSampler(gaussian, levels, sizes), 1.0))


def images_of(split: Split, batch: int) -> Iterator[Tensor]:
    """The images of a split (B, C, H, W), from 0 to 1, on the CPU."""
    return (images for images, _ in read(split, in_order(split, batch), CPU))


def all_images(split: Split, batch: int) -> Tensor:
    """The same as one tensor."""
    return torch.cat(list(images_of(split, batch)))


def gaussian_of(data: Data, levels: Levels, dimensions: int, batch: int) -> Gaussian | None:
    """A Gaussian of the shares of levels of the training images, dequantised once, without
    augmentation; None where there are none, too few, or of too many numbers."""
    if data.plain is None or not dimensions < len(data.plain) or dimensions > MOST_DIMENSIONS:
        return None
    source = torch.Generator().manual_seed(0)
    shares = (
        levels.shares(images, torch.rand(images.shape, generator=source)).flatten(1)
        for images in images_of(data.plain, batch)
    )
    try:
        return fitted_gaussian(shares)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None


def gaussian_bits(gaussian: Gaussian, levels: Levels, images: Tensor) -> float:
    """The mean over images (N, C, H, W), dequantised once."""
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    plain = Levels(levels.count)
    shares = plain.shares(images, noise).flatten(1)
    _, change = plain.values(images, noise)
    bits = bits_per_dimension(gaussian.log_density(shares) + change, images[0].numel())
    return float(bits.mean())
