"""Images from trained networks that make them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from archspec.diagnostics import Diagnostic, SpecError
from archspec.training import FlowMatching
from compiler.flow import Flow
from compiler.network import Network
from runners.as_data import check_images
from runners.density import Gaussian, Levels, levels_of
from runners.devices import find_device
from runners.errors import TrainingError
from runners.flow_matching import SOLVERS, Velocity, arrive, guided, images_of
from runners.labels import NO_LABEL, label_of
from runners.trained import Trained

NOT_FINITE = "the network gives samples that are not finite"


class Sampler(Protocol):
    """What makes images of noise."""

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of an image, (C, H, W)."""

    @property
    def classes(self) -> int:
        """How many it can be asked for; 0 where it cannot be asked."""

    def images(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Standard normal numbers (B, C, H, W), on any device, and labels (B), of which `NO_LABEL`
        asks for none → images of the same shape from 0 to 1. Raises `TrainingError`."""


@dataclass(frozen=True)
class Solving:
    """How images come from velocities."""

    steps: int = 32
    solver: str = "midpoint"
    """One of `SOLVERS`."""
    guidance: float = 1.0
    """Of labels: 1 for what the network says, more to go past it."""


@dataclass(frozen=True)
class FlowSampler:
    """A density, whose latents the noise is."""

    flow: Flow
    levels: Levels
    classes: int

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.flow.input

    def images(self, noise: Tensor, labels: Tensor) -> Tensor:
        noise = noise.to(next(self.flow.parameters())).flatten(1)
        side = label_of(labels.to(noise.device), self.classes)
        return self.levels.images(_finite(self.flow.from_noise(noise, **side)))


@dataclass(frozen=True)
class VelocitySampler:
    """A network that says velocities, which take the noise to data."""

    network: Network
    levels: Levels
    classes: int
    solving: Solving

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.network.input

    def images(self, noise: Tensor, labels: Tensor) -> Tensor:
        noise = noise.to(next(self.network.parameters()))
        labels = labels.to(noise.device)
        velocity = self._towards(labels)
        if self.classes and self.solving.guidance != 1:
            anyone = self._towards(torch.full_like(labels, NO_LABEL))
            velocity = guided(velocity, anyone, self.solving.guidance)
        found = arrive(velocity, noise, self.solving.steps, SOLVERS[self.solving.solver])
        return images_of(_finite(found), self.levels.count)

    def _towards(self, labels: Tensor) -> Velocity:
        side = label_of(labels, self.classes)

        def velocity(values: Tensor, time: Tensor) -> Tensor:
            found: Tensor = self.network(values, time=time, **side)
            return found

        return velocity


@dataclass(frozen=True)
class GaussianSampler:
    """A Gaussian of the shares of levels."""

    gaussian: Gaussian
    levels: Levels
    sizes: tuple[int, ...]
    classes: int = 0

    def images(self, noise: Tensor, labels: Tensor) -> Tensor:
        shares = self.gaussian.from_noise(noise.flatten(1).cpu().double())
        return self.levels.levels_of_shares(shares.to(noise).view_as(noise))


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise TrainingError(NOT_FINITE)
    return values


def sampler_of(trained: Trained, device: str, solving: Solving = Solving()) -> Sampler:
    """What makes images by the network of a run. Raises `SpecError` where the run is of another
    task, or not of images, and for a device that is not there."""
    spec, model = trained.loaded.spec, trained.model
    if not isinstance(model, Flow) and not isinstance(spec.task, FlowMatching):
        message = f"the run in {trained.folder.path} is of the task {spec.task.kind}"
        help = "`task: density` and `task: flow_matching` make images, as in realnvp_digits and "
        raise SpecError([Diagnostic("E604", message, None, f"{help}rev_dit_digits")])
    check_images(trained.loaded)
    chosen, levels = find_device(device), levels_of(trained.loaded)
    classes = spec.task.sizes.get("classes", 0)
    if isinstance(model, Flow):
        return FlowSampler(model.in_floating_point().to(chosen), levels, classes)
    assert isinstance(model, Network)
    return VelocitySampler(model.to(chosen), levels, classes, solving)


@torch.no_grad()
def draw(
    sampler: Sampler, count: int, temperature: float, seed: int, batch: int, label: int | None
) -> Tensor:
    """Images (count, C, H, W) from 0 to 1, on the CPU: the same for the same seed, batch and
    device. Noise is multiplied by `temperature`. Without a label, classes take turns. Raises
    `TrainingError`."""
    source = torch.Generator().manual_seed(seed)
    parts = []
    for first in range(0, count, batch):
        numbers = torch.arange(first, min(first + batch, count))
        noise = torch.randn((len(numbers), *sampler.sizes), generator=source)
        labels = in_turn(sampler, numbers) if label is None else torch.full_like(numbers, label)
        parts.append(sampler.images(temperature * noise, labels).cpu())
    return torch.cat(parts)


def in_turn(sampler: Sampler, numbers: Tensor) -> Tensor:
    """Labels (B) for samples of these numbers (B)."""
    return numbers % sampler.classes if sampler.classes else torch.full_like(numbers, NO_LABEL)
