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
from archspec.training import AnyData, AnyImages, SparseCodes
from runners.augment import batch_augmentation
from runners.datasets import Samples, normalising, open_data_set, open_sparse_codes
from runners.randomness import derived_seed, generator
from runners.tasks import Batch

Batches = list[list[int]]
"""The samples of each batch, by index."""


@dataclass(frozen=True)
class Split:
    """Some samples of a data set."""

    samples: Samples
    indices: Tensor
    prepare: Callable[[Tensor], Tensor]
    """From a batch as it is read to what a model sees; done on the model's device."""
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True)
class Data:
    """The three splits. They share no sample."""

    training: Split
    validation: Split
    test: Split


def open_data(loaded: Loaded, entry: AnyData, seed: int) -> Data:
    """Open a spec's data and cut the validation split. Raises `SpecError`."""
    if isinstance(entry, SparseCodes):
        return _sparse_codes(loaded, entry, seed)
    return _images(loaded, entry, seed)


def _images(loaded: Loaded, entry: AnyImages, seed: int) -> Data:
    found = open_data_set(loaded, entry)
    training, validation = _by_class(loaded, entry, found.training.labels, seed)
    plain = normalising(found.statistics, batch_augmentation(()))
    augmented = normalising(found.statistics, found.augment)
    everything = torch.arange(len(found.test.labels))
    return Data(
        Split(found.training, training, augmented, entry.workers),
        Split(found.evaluation, validation, plain, entry.workers),
        Split(found.test, everything, plain, entry.workers),
    )


def _sparse_codes(loaded: Loaded, entry: SparseCodes, seed: int) -> Data:
    learned_from, test = open_sparse_codes(loaded, entry)
    try:
        training, validation = split_indices(len(learned_from.targets), entry, seed)
    except ValueError:
        message = f"a share of {entry.validation:g} of {entry.samples} samples is none, or all"
        span = loaded.tree.where(("data", entry.kind, "validation"))
        raise SpecError([Diagnostic("E602", message, span)]) from None
    return Data(
        Split(learned_from, training, _as_read),
        Split(learned_from, validation, _as_read),
        Split(test, torch.arange(entry.tests), _as_read),
    )


def split_indices(
    count: int, entry: AnyData, seed: int, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Training and validation samples by index; with labels, each class in the same proportion.
    Raises `ValueError` where one of them would be empty, or without a class."""
    parts = train_test_split(
        torch.arange(count).numpy(),
        test_size=entry.validation,
        stratify=None if labels is None else labels.numpy(),
        random_state=derived_seed(seed, "split"),
    )
    training, validation = (torch.from_numpy(part).sort().values for part in parts)
    return training, validation


def _by_class(loaded: Loaded, entry: AnyImages, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    try:
        return split_indices(len(labels), entry, seed, labels)
    except ValueError:
        message = (
            f"a share of {entry.validation:g} of {len(labels)} training images is too few for a "
            f"validation split with every class in it"
        )
        span = loaded.tree.where(("data", entry.kind, "validation"))
        raise SpecError([Diagnostic("E602", message, span)]) from None


def shuffled(split: Split, size: int, seed: int, epoch: int) -> Batches:
    """The batches of an epoch, in an order that the seed and the epoch determine.

    Left-over samples wait for another epoch: a batch of one would break batch normalisation.
    """
    order = torch.randperm(len(split), generator=generator(seed, "order", epoch))
    batches = [part.tolist() for part in torch.split(split.indices[order], size)]
    return batches if len(batches) == 1 or len(batches[-1]) == size else batches[:-1]


def in_order(split: Split, size: int) -> Batches:
    """Every sample of a split once."""
    return [part.tolist() for part in torch.split(split.indices, size)]


def read(
    split: Split, batches: Batches, device: torch.device, seed: int = 0, epoch: int = 0
) -> Iterator[Batch]:
    """Batches on `device`, prepared. Workers draw from generators that seed and epoch determine."""
    loader: DataLoader[Batch] = DataLoader(
        split.samples,  # type: ignore[arg-type]  # read by __getitems__ alone
        batch_sampler=batches,
        collate_fn=_as_read,
        num_workers=split.workers,
        generator=generator(seed, "order", epoch),
        pin_memory=device.type == "cuda",
    )
    for inputs, targets in loader:
        yield (
            split.prepare(inputs.to(device, non_blocking=True)),
            targets.to(device, non_blocking=True),
        )


def _as_read(batch: Any) -> Any:
    """Batches are read whole, so there is nothing to put together."""
    return batch
