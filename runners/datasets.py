"""The data sets of the language, each as training and test samples with their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, ImageFolder

from archspec import training
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.spec import ImageInput
from runners.augment import (
    OnBatch,
    OnImage,
    batch_augmentation,
    image_augmentation,
    plain_image,
)
from runners.errors import TrainingError
from runners.lasso import UnsolvedError, solve
from runners.sparse_codes import measured, open_lasso

TEST_EVERY = 5
"""One in so many digits of each class is a test image."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
DIGITS: Statistics = ((0.3053,), (0.3761,))
CIFAR10_STATISTICS: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class Samples(Protocol):
    """Inputs with what the task needs to know of each, read a batch at a time."""

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """A batch, as DataLoader asks for it."""


class Images(Samples, Protocol):
    """Images with labels: bytes, or floats in [0, 1]."""

    @property
    def labels(self) -> Tensor:
        """One for each image."""


@dataclass(frozen=True)
class HeldImages:
    """Images held in memory, (N, C, H, W)."""

    images: Tensor
    labels: Tensor

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


@dataclass(frozen=True)
class Measurements:
    """Measurements (N, m), and the least value of the Lasso's objective for each (N)."""

    inputs: Tensor
    targets: Tensor

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]


@dataclass(frozen=True)
class FileImages:
    """Images decoded from files each time."""

    paths: tuple[str, ...]
    labels: Tensor
    channels: int
    transform: OnImage

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return torch.stack([self._read(self.paths[i]) for i in indices]), self.labels[indices]

    def _read(self, path: str) -> Tensor:
        try:
            with Image.open(path) as image:
                return self.transform(image.convert("L" if self.channels == 1 else "RGB"))
        except (OSError, SyntaxError, ValueError) as error:  # Pillow raises any of them
            raise TrainingError(f"cannot read the image {path}: {error}") from None


@dataclass(frozen=True)
class DataSet:
    """A data set before its validation split is cut."""

    training: Images
    evaluation: Images
    """The training images again, without augmentation."""
    test: Images
    augment: OnBatch
    """What is left to do to a batch of `training`, at [0, 1]."""
    statistics: Statistics
    """Mean and standard deviation of each channel, at [0, 1]."""


def open_sparse_codes(
    loaded: Loaded, entry: training.SparseCodes
) -> tuple[Measurements, Measurements]:
    """Make samples for training, and others for the test. Raises `SpecError`."""
    lasso = open_lasso(loaded)

    def samples(count: int, part: int) -> Measurements:
        inputs = measured(entry, lasso.dictionary, count, part)
        least = lasso.objective(inputs, solve(lasso, inputs))
        return Measurements(inputs.float(), least.float())

    try:
        return samples(entry.samples, 0), samples(entry.tests, 1)
    except UnsolvedError as error:
        help = "make `task.sparse_code.penalty` larger, or `data.sparse_codes.noise` smaller"
        raise SpecError(
            [Diagnostic("E602", str(error), loaded.tree.where(("data",)), help)]
        ) from None


def open_data_set(loaded: Loaded, entry: training.AnyImages) -> DataSet:
    """Find the spec's data and check it against the input and the task. Raises `SpecError`."""
    given = loaded.spec.input
    if not isinstance(given, ImageInput):
        message = f"the data set {entry.kind} holds images, and the input is {given.shape}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])
    if isinstance(entry, training.Digits):
        _check(loaded, entry.kind, (1, 8, 8), 10)
        return _digits(entry)
    if isinstance(entry, training.Cifar10):
        _check(loaded, entry.kind, (3, 32, 32), 10)
        return _cifar10(loaded, entry)
    return _image_folder(loaded, entry, given.sizes)


def _check(loaded: Loaded, kind: str, sizes: tuple[int, ...] | None, classes: int) -> None:
    errors = []
    where, spec = loaded.tree.where, loaded.spec
    if sizes is not None and spec.input.shape.sizes != sizes:
        message = f"the images of {kind} are {'×'.join(map(str, sizes))}, not {spec.input.shape}"
        listed = ", ".join(map(str, sizes))
        help = f"write `input: {{image: [{listed}]}}`, or --set 'input.image=[{listed}]'"
        errors.append(Diagnostic("E602", message, where(("input",)), help))
    if spec.task.sizes.get("classes") != classes:
        found = spec.task.sizes.get("classes", f"is {spec.task.kind}")
        message = f"{kind} has {classes} classes, and the task {found}"
        help = f"write `task: {{classify: {classes}}}`, or --set task.classify.classes={classes}"
        errors.append(Diagnostic("E602", message, where(("task",)), help))
    if errors:
        raise SpecError(errors)


def _digits(entry: training.Digits) -> DataSet:
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target)
    rank = torch.zeros(len(labels), dtype=torch.long)  # of each image within its class
    for label in range(len(bunch.target_names)):
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    test = rank % TEST_EVERY == TEST_EVERY - 1
    held = HeldImages(images[~test], labels[~test])
    augment = batch_augmentation(entry.augment)
    return DataSet(held, held, HeldImages(images[test], labels[test]), augment, DIGITS)


def _cifar10(loaded: Loaded, entry: training.Cifar10) -> DataSet:
    try:
        sets = [
            CIFAR10(entry.root, train=train, download=entry.download) for train in (True, False)
        ]
    # torchvision raises RuntimeError for absent or damaged files, OSError for a lost connection.
    except (RuntimeError, OSError) as error:
        message = f"CIFAR-10 is not in {entry.root}"
        if entry.download:
            message += f", and cannot be downloaded: {error}"
        span = loaded.tree.where(("data", "cifar10", "root"))
        help = (
            f"put the folder cifar-10-batches-py of the Python version into {entry.root}, or name "
            "where it is: --set data.cifar10.root=FOLDER"
        )
        raise SpecError([Diagnostic("E601", message, span, help)]) from None
    train, test = (
        HeldImages(torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets))
        for s in sets
    )
    return DataSet(train, train, test, batch_augmentation(entry.augment), CIFAR10_STATISTICS)


def _image_folder(loaded: Loaded, entry: training.ImageFolder, sizes: tuple[int, ...]) -> DataSet:
    channels, height, width = sizes
    if channels not in (1, 3):
        message = f"image files have 1 channel (grey) or 3, and the input {channels}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])
    train, test = _open_folders(loaded, entry)
    _check(loaded, entry.kind, None, len(train.classes))
    statistics = _folder_statistics(loaded, entry, channels)

    def images(folder: ImageFolder, transform: OnImage) -> FileImages:
        paths = tuple(path for path, _ in folder.samples)
        return FileImages(paths, torch.tensor(folder.targets), channels, transform)

    plain = plain_image((height, width))
    return DataSet(
        images(train, image_augmentation(entry.augment, (height, width))),
        images(train, plain),
        images(test, plain),
        batch_augmentation(()),
        statistics,
    )


def _open_folders(loaded: Loaded, entry: training.ImageFolder) -> tuple[ImageFolder, ImageFolder]:
    span = loaded.tree.where(("data", "image_folder", "path"))
    root = Path(entry.path)
    tests = [name for name in ("test", "val") if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        missing = "train" if not (root / "train").is_dir() else "test (or val)"
        message = f"there is no folder {root / missing}"
        help = (
            "images are looked for in train/<class>/* and test/<class>/* of this path; name the "
            "folder where yours are: --set data.image_folder.path=FOLDER"
        )
        raise SpecError([Diagnostic("E601", message, span, help)])
    try:
        train, test = ImageFolder(root / "train"), ImageFolder(root / tests[0])
    except OSError as error:  # a class without images, among others
        message = f"cannot read {root}: {error}"
        raise SpecError([Diagnostic("E601", message, span)]) from None
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes))
        message = f"train and {tests[0]} in {root} differ in their classes: {', '.join(odd[:5])}"
        raise SpecError([Diagnostic("E602", message, span)])
    return train, test


def _folder_statistics(loaded: Loaded, entry: training.ImageFolder, channels: int) -> Statistics:
    errors = []
    found: list[tuple[float, ...]] = []
    for name, values in (("mean", entry.mean), ("std", entry.std)):
        if channels == 1 and name not in entry.model_fields_set:
            values = (sum(values) / len(values),)
        if len(values) != channels or (name == "std" and min(values) <= 0):
            wanted = "positive number" if name == "std" else "number"
            message = f"`{name}` needs one {wanted} for each of {channels} channels"
            span = loaded.tree.where(("data", "image_folder", name))
            errors.append(Diagnostic("E602", message, span))
        found.append(values)
    if errors:
        raise SpecError(errors)
    return found[0], found[1]


def normalising(statistics: Statistics, augment: OnBatch) -> Callable[[Tensor], Tensor]:
    """A function from a batch as it is read to what a model sees."""
    mean, std = (torch.tensor(values)[:, None, None] for values in statistics)

    def normalise(images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return (augment(images) - mean.to(images.device)) / std.to(images.device)

    return normalise
