"""Images as a network is given data, and back from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from archspec.data import LabelledImages
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.spec import ImageInput
from archspec.training import Density, FlowMatching
from runners.data import Split, read
from runners.density import levels_of
from runners.flow_matching import shown
from runners.labels import label_of


@dataclass(frozen=True)
class AsData:
    """Some images and what stands for them in a network."""

    images: Tensor
    """(N, C, H, W), from 0 to 1."""
    levels: int
    """That a pixel may have."""
    values: Tensor
    """What the network is given, (N, C, H, W)."""
    side: Mapping[str, Tensor]
    """Its side inputs, by name."""
    back: Callable[[Tensor], Tensor]
    """From values to images, beyond 0 and 1 too, in the dtype of the values."""


def as_data(loaded: Loaded, split: Split, count: int) -> AsData:
    """The first images of a split, without noise: to a density in the middle of their levels, to
    flow matching at the end of their way. Raises `SpecError` for data that are no images."""
    entry, task = loaded.spec.data, loaded.spec.task
    if not isinstance(entry, LabelledImages):
        message = f"the data set {entry.kind if entry else ''} holds no images"
        raise SpecError([Diagnostic("E604", message, loaded.tree.where(("data",)))])
    check_images(loaded)
    images, labels = _first(split, count)
    if isinstance(task, Density):
        levels, side = levels_of(loaded), label_of(labels, task.classes)
        values, _ = levels.values(images, torch.tensor(0.5))
        return AsData(images, entry.levels, values, side, levels.middles)
    if isinstance(task, FlowMatching):
        side = {"time": torch.ones(len(images), 1), **label_of(labels, task.classes)}
        return AsData(images, entry.levels, shown(images), side, lambda values: (values + 1) / 2)

    def prepare(given: Tensor) -> Tensor:
        return split.prepare(given, labels[:1])[0]

    zeros = torch.zeros_like(images[:1])
    shift = prepare(zeros).double()
    scale = prepare(zeros + 1).double() - shift

    def back(values: Tensor) -> Tensor:
        return (values - shift.to(values)) / scale.to(values)

    return AsData(images, entry.levels, split.prepare(images, labels)[0], {}, back)


def check_images(loaded: Loaded) -> None:
    """Raises `SpecError` for inputs that cannot be shown."""
    entry = loaded.spec.input
    if not isinstance(entry, ImageInput) or entry.sizes[0] not in (1, 3):
        message = f"images have one channel or three, and this input is {entry.shape}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])


def _first(split: Split, count: int) -> tuple[Tensor, Tensor]:
    """The first images of a split as they are, from 0 to 1, and their labels."""
    as_they_are = replace(split, prepare=lambda images, labels: (images, labels), workers=None)
    indices = split.indices[:count].tolist()
    images, labels = next(iter(read(as_they_are, [indices], torch.device("cpu"))))
    return (images.float() / 255 if images.dtype == torch.uint8 else images), labels
