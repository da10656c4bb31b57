"""A spec's data, split, and read as batches that are ready for a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from archspec.data import AnyData, AnyImages, SparseCodes
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.training import Classify, Generative
from runners.augment import AFTER, batch_augmentation
from runners.datasets import DataSet, normalising, open_data_set, open_sparse_codes
from runners.errors import TrainingError
from runners.folders import OpenFolders, open_splits
from runners.mixing import mixing
from runners.randomness import derived_seed, generator
from runners.samples import HeldImages, Read, Samples, Unreadable
from runners.tasks import Batch
from runners.workers import Seeded, SeededBatch, Workers

Batches = list[list[int]]
"""The samples of each batch, by index."""


@dataclass(frozen=True)
class Split:
    """Some samples of a data set."""

    samples: Samples
    indices: Tensor
    prepare: Callable[[Tensor, Tensor], Batch]
    """From a batch as it is read to what a model sees; done on the model's device."""
    workers: Workers | None = None
    """That read it; None: the process that asks for it does."""
    repeat: int = 1
    """So many times each sample stands in an epoch's order, which is no longer for it."""

    def __len__(self) -> int:
        return len(self.indices)

    def on(self, device: torch.device) -> Split:
        """The split with images in memory moved to a GPU, where a loader would be the bottleneck;
        anything else as it is."""
        if device.type != "cuda" or not isinstance(self.samples, HeldImages):
            return self
        return replace(self, samples=self.samples.on(device))


@dataclass(frozen=True)
class Data:
    """The three splits. They share no sample."""

    training: Split
    validation: Split
    test: Split
    classes: tuple[str, ...] = ()
    """Their names, in the order of labels, where they have any."""
    plain: Split | None = None
    """The training samples without augmentation, of images."""

    def on(self, device: torch.device) -> Data:
        """With images in memory moved to a GPU."""
        training = self.training.on(device)
        validation = self.validation.on(device)
        if self.validation.samples is self.training.samples:  # cut from it: held once
            validation = replace(validation, samples=training.samples)
        return Data(training, validation, self.test.on(device), self.classes, self.plain)

    def close(self) -> None:
        """End the processes that read it."""
        for split in (self.training, self.validation, self.test):
            if split.workers is not None:
                split.workers.close()


def open_data(
    loaded: Loaded, entry: AnyData, seed: int, open_folders: OpenFolders = open_splits
) -> Data:
    """Open a spec's data and cut the validation split. Raises `SpecError`."""
    if isinstance(entry, SparseCodes):
        return _sparse_codes(loaded, entry, seed)
    return _images(loaded, entry, seed, open_folders)


def _images(loaded: Loaded, entry: AnyImages, seed: int, open_folders: OpenFolders) -> Data:
    found = open_data_set(loaded, entry, open_folders)
    if found.validation is None:
        training, validation = _by_class(loaded, entry, found.training.labels, seed)
    else:
        training, validation = (
            torch.arange(len(part.labels)) for part in (found.training, found.validation)
        )
    if isinstance(loaded.spec.task, Generative):  # which needs numbers as they are
        channels = loaded.spec.input.shape.channels
        found = replace(found, statistics=((0.0,) * channels, (1.0,) * channels))
    plain = _unmixed(normalising(found.statistics, batch_augmentation(())))
    augmented = _augmented(loaded, entry, found)
    everything = torch.arange(len(found.test.labels))
    seen = found.validation or found.evaluation
    kinds, size = (found.training, seen, found.test), len(found.training.labels)
    workers = Workers(kinds, entry.workers, size)
    return Data(
        Split(found.training, training, augmented, workers, entry.repeat),
        Split(seen, validation, plain, workers),
        Split(found.test, everything, plain, workers),
        found.classes,
        Split(found.evaluation, training, plain),
    )


def _unmixed(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Batch]:
    return lambda inputs, targets: (change(inputs), targets)


def _augmented(
    loaded: Loaded, entry: AnyImages, found: DataSet
) -> Callable[[Tensor, Tensor], Batch]:
    normalise = normalising(found.statistics, found.augment)
    if isinstance(loaded.spec.task, Generative):
        _check_unmixed(loaded, entry)
        return _unmixed(normalise)
    assert isinstance(loaded.spec.task, Classify)
    mix = mixing(entry.augment, loaded.spec.task.classes)
    return lambda images, labels: mix(normalise(images), labels)


def _check_unmixed(loaded: Loaded, entry: AnyImages) -> None:
    """Raises `SpecError` for an augmentation after which pixels are no longer those of an image."""
    for place, each in enumerate(entry.augment):
        if isinstance(each, AFTER):
            task = loaded.spec.task.kind
            message = f"`{each.kind}` makes images that there are not, and the task is {task}"
            span = loaded.tree.where(("data", entry.kind, "augment", place))
            raise SpecError([Diagnostic("E602", message, span, "leave it out")])


def _sparse_codes(loaded: Loaded, entry: SparseCodes, seed: int) -> Data:
    learned_from, test = open_sparse_codes(loaded, entry)
    try:
        training, validation = split_indices(len(learned_from.targets), entry, seed)
    except ValueError:
        message = f"a share of {entry.validation:g} of {entry.samples} samples is none, or all"
        span = loaded.tree.where(("data", entry.kind, "validation"))
        raise SpecError([Diagnostic("E602", message, span)]) from None
    return Data(
        Split(learned_from, training, _unmixed(_unchanged)),
        Split(learned_from, validation, _unmixed(_unchanged)),
        Split(test, torch.arange(entry.tests), _unmixed(_unchanged)),
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
    order = order.repeat_interleave(split.repeat)[: len(split)]
    # Copies of a sample lie apart in their batch: neighbours are mixed with each other.
    batches = [
        torch.cat([part[copy :: split.repeat] for copy in range(split.repeat)]).tolist()
        for part in torch.split(split.indices[order], size)
    ]
    return batches if len(batches) == 1 or len(batches[-1]) == size else batches[:-1]


def in_order(split: Split, size: int) -> Batches:
    """Every sample of a split once."""
    return [part.tolist() for part in torch.split(split.indices, size)]


@dataclass(frozen=True)
class Reading:
    """Which batches of which pass over a split are read. It determines what is drawn in reading
    them, each by itself: neither the number of workers nor a pause changes any."""

    seed: int = 0
    epoch: int = 0
    process: int = 0
    first: int = 0
    """The number of the first batch in the pass."""
    may_skip: bool = False
    """Whether a batch of which no file can be read is left out. Else a sample that can be read
    stands in for it: steps are counted, and processes go together."""

    def seed_of(self, number: int) -> int:
        """Of a batch, counted from the first one read."""
        return derived_seed(self.seed, "reading", self.epoch, self.process, self.first + number)


def read(
    split: Split,
    batches: Batches,
    device: torch.device,
    reading: Reading = Reading(),
    passed_over: Callable[[Unreadable], None] = lambda files: None,
) -> Iterator[Batch]:
    """Batches on `device`, prepared. `passed_over` is told of files that could not be read."""
    for found in _raw(split, batches, device, reading):
        inputs, targets, unreadable = _unless_error(found)
        if unreadable:
            passed_over(unreadable)
        if len(inputs) == 0:
            if reading.may_skip:
                continue
            inputs, targets = _stand_in(split, unreadable)
        yield split.prepare(
            inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        )


def _unless_error(found: Read | TrainingError) -> Read:
    """What was read. Raises the error that took its place."""
    if not isinstance(found, TrainingError):
        return found
    try:
        raise found
    finally:
        del found  # else it and this frame, and all before it, hold each other


def _stand_in(split: Split, unreadable: Unreadable) -> tuple[Tensor, Tensor]:
    """A batch of the first sample that can be read. Raises `TrainingError` where none can."""
    for index in split.indices.tolist():
        found = Seeded((split.samples,)).__getitems__(SeededBatch(0, 0, [index]))
        inputs, targets, _ = _unless_error(found)
        if len(inputs):
            return inputs, targets
    path, why = next(iter(unreadable.items()))
    raise TrainingError(f"no file of {len(split)} can be read, such as {path}: {why}")


def _raw(
    split: Split, batches: Batches, device: torch.device, reading: Reading
) -> Iterator[Read | TrainingError]:
    if isinstance(split.samples, HeldImages):
        # A loader would only put its machinery in between.
        return map(split.samples.__getitems__, batches)
    workers = split.workers or Workers((split.samples,), 0)
    seeded = [(reading.seed_of(number), batch) for number, batch in enumerate(batches)]
    return workers.read(split.samples, seeded, pinned=device.type == "cuda")


def _unchanged(inputs: Tensor) -> Tensor:
    """What stands in the place of normalising, where there is none."""
    return inputs
