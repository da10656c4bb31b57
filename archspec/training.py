"""What a spec says of its data, its task and its training."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from archspec.onekey import Kind, Model, OneKey

# Augmentation -------------------------------------------------------------------------------------


class HorizontalFlip(Kind):
    """Mirror half of the images."""

    kind: Literal["horizontal_flip"] = "horizontal_flip"


class RandomCrop(Kind):
    """Pad with zeros and crop back to the input size at random."""

    kind: Literal["random_crop"] = "random_crop"
    shorthand: ClassVar[str] = "padding"
    padding: int = Field(4, ge=1, le=1024)


class RandomResizedCrop(Kind):
    """Crop a random part (by area) and resize it to the input size."""

    kind: Literal["random_resized_crop"] = "random_resized_crop"
    shorthand: ClassVar[str] = "smallest"
    smallest: float = Field(0.08, gt=0, le=1)
    """The least share of the image's area that a crop keeps."""


class RandomAffine(Kind):
    """Rotate, shift and scale at random."""

    kind: Literal["random_affine"] = "random_affine"
    degrees: float = Field(0.0, ge=0, le=180)
    translate: float = Field(0.0, ge=0, le=1)
    """The largest shift, as a share of the image."""
    scale: float = Field(0.0, ge=0, lt=1)
    """Sizes are drawn from 1 - scale to 1 + scale."""


AnyAugmentation = HorizontalFlip | RandomCrop | RandomResizedCrop | RandomAffine
AugmentationEntry = Annotated[
    Annotated[AnyAugmentation, Field(discriminator="kind")],
    OneKey("augmentation", *AnyAugmentation.__args__),
]

# Data ---------------------------------------------------------------------------------------------


class DataSet(Kind):
    """Images with classes. The validation split is cut from the training images by the seed."""

    validation: float = Field(0.1, gt=0, lt=1)
    """The share of the training images that the best checkpoint is chosen on."""
    augment: tuple[AugmentationEntry, ...] = Field((), strict=False)
    """Applied to training images in turn."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that decode images; 0 decodes in the training process."""


class Digits(DataSet):
    """scikit-learn's 1,797 handwritten digits, 1×8×8: bundled, no download. Every fifth image of
    each class is the test set."""

    kind: Literal["digits"] = "digits"


class Cifar10(DataSet):
    """CIFAR-10 by torchvision."""

    kind: Literal["cifar10"] = "cifar10"
    shorthand: ClassVar[str] = "root"
    root: str = "data"
    """Where the files are, or are downloaded to."""
    download: bool = True


class ImageFolder(DataSet):
    """A folder of `train/<class>/*` and `test/<class>/*` images (`val` does for `test`)."""

    kind: Literal["image_folder"] = "image_folder"
    shorthand: ClassVar[str] = "path"
    path: str
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), strict=False)
    """Subtracted from each channel, of images scaled to [0, 1]."""
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), strict=False)


AnyData = Digits | Cifar10 | ImageFolder
DataEntry = Annotated[
    Annotated[AnyData, Field(discriminator="kind")], OneKey("data set", *AnyData.__args__)
]


# Task ---------------------------------------------------------------------------------------------


class Classify(Kind):
    """One of `classes` labels for each sample."""

    kind: Literal["classify"] = "classify"
    shorthand: ClassVar[str] = "classes"
    classes: int = Field(ge=2, le=2**20)


TaskEntry = Annotated[Classify, OneKey("task", Classify)]


# Training -----------------------------------------------------------------------------------------


class AdamW(Kind):
    """Adam with decoupled weight decay."""

    kind: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(
        (0.9, 0.999), strict=False, min_length=2, max_length=2
    )
    eps: float = Field(1e-8, gt=0)


class Sgd(Kind):
    """Stochastic gradient descent with momentum."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Sgd:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


AnyOptimizer = AdamW | Sgd
OptimizerEntry = Annotated[
    Annotated[AnyOptimizer, Field(discriminator="kind")],
    OneKey("optimizer", *AnyOptimizer.__args__),
]


class Train(Model):
    """The training recipe. The learning rate rises linearly over `warmup` epochs, then falls to
    `final_learning_rate` along a cosine. A short run warms up for half of its epochs at most."""

    epochs: int = Field(ge=1, le=100_000)
    batch: int = Field(ge=1, le=2**20)
    """Samples a step."""
    optimizer: OptimizerEntry = AdamW()
    learning_rate: float = Field(gt=0)
    """At its highest."""
    warmup: float = Field(0.0, ge=0)
    """Epochs."""
    final_learning_rate: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    """Not applied to biases, norms and other one-dimensional parameters."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip: float | None = Field(None, gt=0)
    """The largest norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of residual functions, under autocast; streams stay in fp32."""
    seed: int = Field(0, ge=0, lt=2**32)
