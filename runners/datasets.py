"""The data sets of the language, each as training and test samples with their targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100, DatasetFolder, ImageNet
from torchvision.datasets.folder import IMG_EXTENSIONS

from archspec import data
from archspec.augmentation import RandomCrop
from archspec.diagnostics import Diagnostic, SpecError
from archspec.loading import Loaded
from archspec.spec import ImageInput, VideoInput
from archspec.training import Generative
from runners.augment import (
    OnBatch,
    OnImage,
    batch_augmentation,
    before_normalising,
    has_single,
    image_augmentation,
    plain_image,
    single_augmentation,
)
from runners.folders import OpenFolders, Splits, Statistics, grey, open_splits, statistics_of
from runners.lasso import UnsolvedError, solve
from runners.samples import (
    ChangedImages,
    FileImages,
    HeldImages,
    ImageDecoder,
    Images,
    Measurements,
    NoiseImages,
)
from runners.sparse_codes import measured, open_lasso
from runners.videos import (
    EXTENSIONS,
    ClipDecoder,
    Covering,
    Start,
    at_centre,
    at_random,
    clip_augmentation,
)

TEST_EVERY = 5
"""One in so many digits of each class is a test image."""

DIGITS: Statistics = ((0.3053,), (0.3761,))
CIFAR10_STATISTICS: Statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_STATISTICS: Statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
IMAGENET_STATISTICS: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NOISE_STATISTICS: Statistics = ((0.5,), (0.29,))
IMAGENET_CLASSES = 1000
NOISE_IMAGES = 64
"""So many different ones."""


@dataclass(frozen=True)
class DataSet:
    """A data set before its validation split is cut."""

    training: Images
    evaluation: Images
    """The training images again, without augmentation."""
    test: Images
    validation: Images | None
    """Where they have a place of their own; else they are cut from the training images."""
    augment: OnBatch
    """What is left to do to a batch of `training`, at [0, 1]."""
    statistics: Statistics
    """Mean and standard deviation of each channel, at [0, 1]."""
    classes: tuple[str, ...] = ()
    """Their names, in the order of labels, where they have any."""


def open_sparse_codes(loaded: Loaded, entry: data.SparseCodes) -> tuple[Measurements, Measurements]:
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


def open_data_set(
    loaded: Loaded, entry: data.AnyImages, open_folders: OpenFolders = open_splits
) -> DataSet:
    """Find the spec's data and check it against the input and the task. Raises `SpecError`."""
    given = loaded.spec.input
    _check_crops(loaded, entry)
    if isinstance(entry, data.FakeImages):
        return _fake(loaded, entry)
    if isinstance(entry, data.VideoFolder):
        return _video_folder(loaded, entry, open_folders)
    if not isinstance(given, ImageInput):
        message = f"the data set {entry.kind} holds images, and the input is {given.shape}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])
    if isinstance(entry, data.Digits):
        _check(loaded, entry.kind, (1, 8, 8), 10)
        return _digits(entry)
    if isinstance(entry, (data.Cifar10, data.Cifar100)):
        return _cifar(loaded, entry, CIFAR[entry.kind])
    if isinstance(entry, data.ImageNet):
        return _imagenet(loaded, entry, given.sizes)
    return _image_folder(loaded, entry, given.sizes, open_folders)


def _check_crops(loaded: Loaded, entry: data.AnyImages) -> None:
    """Raises `SpecError` for a padding past which a crop may see nothing of its image."""
    side = min(loaded.spec.input.shape.sizes[-2:])
    for place, each in enumerate(entry.augment):
        if isinstance(each, RandomCrop) and each.padding >= side:
            message = f"a padding of {each.padding} is no less than a side of the images, {side}"
            span = loaded.tree.where(("data", entry.kind, "augment", place))
            raise SpecError([Diagnostic("E602", message, span, "write the pixels: random_crop: 4")])


def _check(loaded: Loaded, kind: str, sizes: tuple[int, ...] | None, classes: int) -> None:
    errors = []
    where, spec = loaded.tree.where, loaded.spec
    if sizes is not None and spec.input.shape.sizes != sizes:
        message = f"the images of {kind} are {'×'.join(map(str, sizes))}, not {spec.input.shape}"
        listed = ", ".join(map(str, sizes))
        help = f"write `input: {{image: [{listed}]}}`, or --set 'input.image=[{listed}]'"
        errors.append(Diagnostic("E602", message, where(("input",)), help))
    unasked = isinstance(spec.task, Generative) and "classes" not in spec.task.sizes
    if not unasked and spec.task.sizes.get("classes") != classes:
        found = spec.task.sizes.get("classes", f"is {spec.task.kind}")
        message = f"{kind} has {classes} classes, and the task {found}"
        kind = spec.task.kind if isinstance(spec.task, Generative) else "classify"
        written = f"{{{kind}: {{classes: {classes}}}}}"
        help = f"write `task: {written}`, or --set task.{kind}.classes={classes}"
        errors.append(Diagnostic("E602", message, where(("task",)), help))
    if errors:
        raise SpecError(errors)


def _digits(entry: data.Digits) -> DataSet:
    from sklearn.datasets import load_digits  # slow to import, and needed here alone

    bunch = load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target)
    rank = torch.zeros(len(labels), dtype=torch.long)  # of each image within its class
    for label in range(len(bunch.target_names)):
        rank[labels == label] = torch.arange(int((labels == label).sum()))
    test = rank % TEST_EVERY == TEST_EVERY - 1
    learned_from, held_out = (HeldImages(images[part], labels[part]) for part in (~test, test))
    return _held(entry, learned_from, held_out, DIGITS)


def _held(
    entry: data.LabelledImages, images: HeldImages, test: HeldImages, statistics: Statistics
) -> DataSet:
    """Images in memory: augmented a batch at a time, where every augmentation can be."""
    augment = before_normalising(entry.augment)
    if not has_single(augment):
        return DataSet(images, images, test, None, batch_augmentation(augment), statistics)
    height, width = images.images.shape[-2:]
    changed = ChangedImages(images, single_augmentation(augment, (height, width)))
    return DataSet(changed, images, test, None, batch_augmentation(()), statistics)


@dataclass(frozen=True)
class Cifar:
    """One of the two."""

    name: str
    folder: str
    """That its archive unpacks to."""
    classes: int
    statistics: Statistics
    open: type[CIFAR10]


CIFAR = {
    "cifar10": Cifar("CIFAR-10", "cifar-10-batches-py", 10, CIFAR10_STATISTICS, CIFAR10),
    "cifar100": Cifar("CIFAR-100", "cifar-100-python", 100, CIFAR100_STATISTICS, CIFAR100),
}


def _cifar(loaded: Loaded, entry: data.Cifar10 | data.Cifar100, kind: Cifar) -> DataSet:
    _check(loaded, entry.kind, (3, 32, 32), kind.classes)
    was_there = Path(entry.root).exists()
    try:
        sets = [
            kind.open(entry.root, train=train, download=entry.download) for train in (True, False)
        ]
    # torchvision raises RuntimeError for absent or damaged files, OSError for a lost connection.
    except (RuntimeError, OSError) as error:
        if not was_there and Path(entry.root).is_dir() and not any(Path(entry.root).iterdir()):
            Path(entry.root).rmdir()  # made for a download that did not come
        message = f"{kind.name} is not in {entry.root}"
        if entry.download:
            message += f", and cannot be downloaded: {error}"
        span = loaded.tree.where(("data", entry.kind, "root"))
        help = (
            f"put the folder {kind.folder} of the Python version into {entry.root}, or name "
            f"where it is: --set data.{entry.kind}.root=FOLDER"
        )
        raise SpecError([Diagnostic("E601", message, span, help)]) from None
    train, test = (
        HeldImages(torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets))
        for s in sets
    )
    return replace(_held(entry, train, test, kind.statistics), classes=tuple(sets[0].classes))


def _fake(loaded: Loaded, entry: data.FakeImages) -> DataSet:
    """Noise of any shape, in every class as often."""
    sizes, classes = loaded.spec.input.shape.sizes, loaded.spec.task.sizes.get("classes")
    if isinstance(loaded.spec.task, Generative):
        classes = classes or 1
    if classes is None or (entry.augment and len(sizes) != 3):
        what = "labels of a task that classifies" if classes is None else "augmentation of images"
        message = f"fake data has {what} alone"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("data", "fake")))])
    source = torch.Generator().manual_seed(0)
    few = torch.randint(0, 256, (NOISE_IMAGES, *sizes), dtype=torch.uint8, generator=source)
    counts = (entry.samples, entry.tests)
    train, test = (NoiseImages(few, torch.arange(count) % classes) for count in counts)
    if has_single(entry.augment):
        message = "fake data is not augmented image by image"
        span = loaded.tree.where(("data", "fake", "augment"))
        raise SpecError([Diagnostic("E602", message, span)])
    augment = batch_augmentation(before_normalising(entry.augment))
    return DataSet(train, train, test, None, augment, NOISE_STATISTICS)


def _imagenet(loaded: Loaded, entry: data.ImageNet, sizes: tuple[int, ...]) -> DataSet:
    _check(loaded, entry.kind, None, IMAGENET_CLASSES)
    _check_channels(loaded, sizes[0])
    try:
        train, test = (ImageNet(entry.root, split) for split in ("train", "val"))
    except (RuntimeError, OSError) as error:
        span = loaded.tree.where(("data", entry.kind, "root"))
        message = f"ImageNet is not in {entry.root}: {str(error).splitlines()[0]}"
        help = (
            "its terms of use let only a person fetch it: sign in at image-net.org and put "
            "ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz "
            "into that folder; for one that is unpacked already use `image_folder`"
        )
        raise SpecError([Diagnostic("E601", message, span, help)]) from None
    _, height, width = sizes
    plain = plain_image((height, width), entry.centre)
    statistics = IMAGENET_STATISTICS
    if sizes[0] == 1:
        statistics = grey(statistics)
    return _files(loaded, entry, Splits(train, test, None), plain, statistics)


def _image_folder(
    loaded: Loaded, entry: data.ImageFolder, sizes: tuple[int, ...], open_folders: OpenFolders
) -> DataSet:
    _check_channels(loaded, sizes[0])
    splits = open_folders(loaded, entry, "images", IMG_EXTENSIONS)
    _check(loaded, entry.kind, None, len(splits.train.classes))
    _, height, width = sizes
    plain = plain_image((height, width), entry.centre)
    return _files(loaded, entry, splits, plain, statistics_of(loaded, entry, sizes[0]))


def _check_channels(loaded: Loaded, channels: int) -> None:
    if channels not in (1, 3):
        message = f"files are read in 1 channel (grey) or 3, and the input has {channels}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])


def _files(
    loaded: Loaded,
    entry: data.ImageFiles,
    splits: Splits,
    plain: OnImage,
    statistics: Statistics,
) -> DataSet:
    """Images in files, augmented one by one as they are decoded; `plain`, where they are not."""
    channels, height, width = loaded.spec.input.shape.sizes

    def images(folder: DatasetFolder, transform: OnImage) -> FileImages:
        return _decoded(folder, "image", ImageDecoder(channels, transform), entry)

    augment = before_normalising(entry.augment)
    return DataSet(
        images(splits.train, image_augmentation(augment, (height, width))),
        images(splits.train, plain),
        images(splits.test, plain),
        images(splits.validation, plain) if splits.validation else None,
        batch_augmentation(()),
        statistics,
        class_names(splits.train),
    )


def _video_folder(loaded: Loaded, entry: data.VideoFolder, open_folders: OpenFolders) -> DataSet:
    """Clips, decoded and augmented one by one."""
    given = loaded.spec.input
    if not isinstance(given, VideoInput):
        message = f"the data set {entry.kind} holds videos, and the input is {given.shape}"
        raise SpecError([Diagnostic("E602", message, loaded.tree.where(("input",)))])
    channels, frames, height, width = given.sizes
    _check_channels(loaded, channels)
    splits = open_folders(loaded, entry, "videos", EXTENSIONS)
    _check(loaded, entry.kind, None, len(splits.train.classes))
    statistics = statistics_of(loaded, entry, channels)
    if find_spec("av") is None:
        message = "videos are decoded by PyAV, which is not installed"
        help = "python -m pip install av"
        raise SpecError([Diagnostic("E601", message, loaded.tree.where(("data",)), help)])

    def clips(folder: DatasetFolder, start: Start, transform: OnBatch) -> FileImages:
        decoder = ClipDecoder(channels, frames, entry.every, start, transform)
        return _decoded(folder, "video", decoder, entry)

    plain = Covering((height, width))
    augment = clip_augmentation(before_normalising(entry.augment), (height, width))
    return DataSet(
        clips(splits.train, at_random, augment),
        clips(splits.train, at_centre, plain),
        clips(splits.test, at_centre, plain),
        clips(splits.validation, at_centre, plain) if splits.validation else None,
        batch_augmentation(()),
        statistics,
        class_names(splits.train),
    )


def class_names(split: DatasetFolder) -> tuple[str, ...]:
    """In the order of their labels. Of ImageNet each has several, of which the first is taken."""
    return tuple(name if isinstance(name, str) else name[0] for name in split.classes)


def _decoded(
    folder: DatasetFolder, noun: str, decode: Callable[[str], Tensor], entry: data.ImageFiles
) -> FileImages:
    paths = tuple(path for path, _ in folder.samples)
    return FileImages(paths, torch.tensor(folder.targets), noun, decode, entry.strict)


def normalising(statistics: Statistics, augment: OnBatch) -> Callable[[Tensor], Tensor]:
    """A function from a batch as it is read to what a model sees."""

    @cache  # a copy to a GPU waits for all that it has to do
    def mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=device) for values in statistics)
        return mean, std

    def normalise(images: Tensor) -> Tensor:
        if images.dtype == torch.uint8:
            images = images.float() / 255
        form = (-1, *[1] * (images.ndim - 2))
        mean, std = (values.view(form) for values in mean_and_std(images.device))
        return (augment(images) - mean) / std

    return normalise
