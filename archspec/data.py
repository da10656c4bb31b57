"""What a spec says of its data."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from archspec.augmentation import AnyAugmentation, AugmentationEntry
from archspec.onekey import Kind, OneKey


class DataSet(Kind):
    """Samples to learn from. The validation split is cut from the training samples by the seed."""

    validation: float = Field(0.1, gt=0, lt=1)
    """The share of the training samples that the best checkpoint is chosen on."""


class LabelledImages(DataSet):
    """Images with classes."""

    levels: ClassVar[int] = 256
    """How many values a pixel may have, of each channel."""
    augment: tuple[AugmentationEntry, ...] = Field((), strict=False)
    """Applied to training images in turn."""
    workers: int | None = Field(None, ge=0, le=64)
    """Processes that read images; 0 reads in the training process. If not said, as many as it has
    cores, 8 at most, where there are enough images to be worth it."""
    repeat: int = Field(1, ge=1, le=16)
    """Repeated augmentation: each image stands so many times in an epoch's order, augmented anew,
    and the epoch is as long as without it (Hoffer et al. 2020)."""

    @field_validator("augment")
    @classmethod
    def _each_once(cls, augment: tuple[AnyAugmentation, ...]) -> tuple[AnyAugmentation, ...]:
        kinds = [each.kind for each in augment]
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise ValueError(f"`{kind}` stands here more than once")
        return augment


class Digits(LabelledImages):
    """scikit-learn's 1,797 handwritten digits, 1×8×8: bundled, no download. Every fifth image of
    each class is the test set."""

    kind: Literal["digits"] = "digits"
    levels: ClassVar[int] = 17


class Cifar10(LabelledImages):
    """CIFAR-10 by torchvision."""

    kind: Literal["cifar10"] = "cifar10"
    shorthand: ClassVar[str] = "root"
    root: str = "data"
    """Where the files are, or are downloaded to."""
    download: bool = True


class Cifar100(LabelledImages):
    """CIFAR-100 by torchvision."""

    kind: Literal["cifar100"] = "cifar100"
    shorthand: ClassVar[str] = "root"
    root: str = "data"
    """Where the files are, or are downloaded to."""
    download: bool = True


class ImageFiles(LabelledImages):
    """Images or videos in files, decoded as they are read."""

    strict: bool = False
    """End the run at a file that cannot be decoded. Else such files are named, counted and passed
    over: a batch is smaller by them."""


class ImageNet(ImageFiles):
    """ImageNet (ILSVRC 2012) by torchvision: a person fetches the archives from image-net.org, and
    they are unpacked the first time."""

    kind: Literal["imagenet"] = "imagenet"
    shorthand: ClassVar[str] = "root"
    root: str = "data/imagenet"
    centre: float = Field(0.875, gt=0, le=1)
    """The share of a picture's shorter side that is seen in evaluation, in its middle: 224 pixels
    of 256, as accuracies are published."""


class FakeImages(LabelledImages):
    """Noise with random labels, of the input's size, made as it is read: to profile with."""

    kind: Literal["fake"] = "fake"
    samples: int = Field(1280, ge=2, le=2**24)
    """For training and validation."""
    tests: int = Field(256, ge=1, le=2**24)


class ImageFolder(ImageFiles):
    """A folder of `train/<class>/*` and `test/<class>/*` images (`val` does for `test`)."""

    kind: Literal["image_folder"] = "image_folder"
    shorthand: ClassVar[str] = "path"
    path: str
    centre: float = Field(1.0, gt=0, le=1)
    """The share of a picture's shorter side that is seen in evaluation, in its middle."""
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), strict=False)
    """Subtracted from each channel, of images scaled to [0, 1]."""
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), strict=False)


class VideoFolder(ImageFiles):
    """A folder of `train/<class>/*` and `test/<class>/*` videos (`val` does for `test`), each in
    `.mp4`, `.avi`, `.mkv`, `.webm` or `.mov`. A sample is a clip of the input's frames: from
    anywhere in the video in training, from its centre else."""

    kind: Literal["video_folder"] = "video_folder"
    shorthand: ClassVar[str] = "path"
    path: str
    every: int = Field(4, ge=1, le=1024)
    """Each so manieth frame of the video is one of the clip. Where a video ends before its clip,
    its last frame is repeated."""
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), strict=False)
    """Subtracted from each channel, of frames scaled to [0, 1]."""
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), strict=False)


class SparseCodes(DataSet):
    """Measurements y = D z + noise of sparse codes z, made in memory: D is a random matrix with
    columns of norm 1, each code is normal with probability `density` and else 0. The input has the
    measurements, the task says how many codes."""

    kind: Literal["sparse_codes"] = "sparse_codes"
    samples: int = Field(4000, ge=2, le=2**20)
    """For training and validation."""
    tests: int = Field(1000, ge=1, le=2**20)
    density: float = Field(0.1, gt=0, le=1)
    noise: float = Field(0.01, ge=0, le=1e6)
    """Standard deviation of each measurement's."""
    problem: int = Field(0, ge=0, lt=2**32)
    """The seed of matrix and samples; `train.seed` leaves them as they are."""


AnyImages = Digits | Cifar10 | Cifar100 | ImageNet | ImageFolder | VideoFolder | FakeImages
AnyData = AnyImages | SparseCodes
DataEntry = Annotated[
    Annotated[AnyData, Field(discriminator="kind")], OneKey("data set", *AnyData.__args__)
]
