"""A spec's data, split, and read as batches that are ready for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader

from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import AnyData
from runners.augment import batch_augmentation
from runners.datasets import Images, normalising, open_data_set
from runners.randomness import derived_seed, generator

Batch = tuple[Tensor, Tensor]
"""Images (B, C, H, W) and labels (B)."""
Batches = list[list[int]]
"""The images of each batch, by index."""


@dataclass(frozen=True)
class Split:
    """Some images of a data set."""

    images: Images
    indices: Tensor
    prepare: Callable[[Tensor], Tensor]
    """From a batch as it is read to what a model sees; done on the model's device."""
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Data:
    """The three splits. They share no image."""

    training: Split
    validation: Split
    test: Split


def open_data(loaded: Loaded, entry: AnyData, seed: int) -> Data:
    """Open a spec's data and cut the validation split. Raises `SpecError`."""
    found = open_data_set(loaded, entry)
    training, validation = split_indices(loaded, entry, found.training.labels, seed)
    plain = normalising(found.statistics, batch_augmentation(()))
    augmented = normalising(found.statistics, found.augment)
    everything = torch.arange(len(found.test.labels))
    return Data(
        Split(found.training, training, augmented, entry.workers),
        Split(found.evaluation, validation, plain, entry.workers),
        Split(found.test, everything, plain, entry.workers),
    )


def split_indices(
    loaded: Loaded, entry: AnyData, labels: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Training and validation images by index, each class in the same proportion."""
    try:
        parts = train_test_split(
            torch.arange(len(labels)).numpy(),
            test_size=entry.validation,
            stratify=labels.numpy(),
            random_state=derived_seed(seed, "split"),
        )
    except ValueError:
        message = (
            f"a share of {entry.validation:g} of {len(labels)} training images is too few for a "
            f"validation split with every class in it"
        )
        span = loaded.tree.where(("data", entry.kind, "validation"))
        raise SpecError([Diagnostic("E602", message, span)]) from None
    training, validation = (torch.from_numpy(part).sort().values for part in parts)
    return training, validation


def shuffled(split: Split, size: int, seed: int, epoch: int) -> Batches:
    """The batches of an epoch, in an order that the seed and the epoch determine.

    Left-over images wait for another epoch: a batch of one would break batch normalisation.
    """
    order = torch.randperm(len(split), generator=generator(seed, "order", epoch))
    batches = [part.tolist() for part in torch.split(split.indices[order], size)]
    return batches if len(batches) == 1 or len(batches[-1]) == size else batches[:-1]


def in_order(split: Split, size: int) -> Batches:
    """Every image of a split once."""
    return [part.tolist() for part in torch.split(split.indices, size)]


def read(
    split: Split, batches: Batches, device: torch.device, seed: int = 0, epoch: int = 0
) -> Iterator[Batch]:
    """Batches on `device`, prepared. Workers draw from generators that seed and epoch determine."""
    loader: DataLoader[Batch] = DataLoader(
        split.images,  # type: ignore[arg-type]  # read by __getitems__ alone
        batch_sampler=batches,
        collate_fn=_as_read,
        num_workers=split.workers,
        generator=generator(seed, "order", epoch),
        pin_memory=device.type == "cuda",
    )
    for images, labels in loader:
        yield (
            split.prepare(images.to(device, non_blocking=True)),
            labels.to(device, non_blocking=True),
        )


def _as_read(batch: Any) -> Any:
    """Batches are read whole, so there is nothing to put together."""
    return batch
