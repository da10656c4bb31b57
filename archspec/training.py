"""What a spec says of its data, its task and its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from archspec.onekey import Kind, Model, OneKey
from archspec.shapes import Features, Shape

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
    """Samples to learn from. The validation split is cut from the training samples by the seed."""

    validation: float = Field(0.1, gt=0, lt=1)
    """The share of the training samples that the best checkpoint is chosen on."""


class LabelledImages(DataSet):
    """Images with classes."""

    augment: tuple[AugmentationEntry, ...] = Field((), strict=False)
    """Applied to training images in turn."""
    workers: int = Field(0, ge=0, le=64)
    """Processes that decode images; 0 decodes in the training process."""


class Digits(LabelledImages):
    """scikit-learn's 1,797 handwritten digits, 1×8×8: bundled, no download. Every fifth image of
    each class is the test set."""

    kind: Literal["digits"] = "digits"


class Cifar10(LabelledImages):
    """CIFAR-10 by torchvision."""

    kind: Literal["cifar10"] = "cifar10"
    shorthand: ClassVar[str] = "root"
    root: str = "data"
    """Where the files are, or are downloaded to."""
    download: bool = True


class ImageFolder(LabelledImages):
    """A folder of `train/<class>/*` and `test/<class>/*` images (`val` does for `test`)."""

    kind: Literal["image_folder"] = "image_folder"
    shorthand: ClassVar[str] = "path"
    path: str
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), strict=False)
    """Subtracted from each channel, of images scaled to [0, 1]."""
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


AnyImages = Digits | Cifar10 | ImageFolder
AnyData = AnyImages | SparseCodes
DataEntry = Annotated[
    Annotated[AnyData, Field(discriminator="kind")], OneKey("data set", *AnyData.__args__)
]


# Task ---------------------------------------------------------------------------------------------


class Task(Kind):
    """What a network is for."""

    def output(self, input: Shape) -> Shape:
        """What a network for it must end in, given what it begins with."""
        raise NotImplementedError

    @property
    def sizes(self) -> Mapping[str, int]:
        """Names that sizes of layers may be written with."""
        return {}


class Classify(Task):
    """One of `classes` labels for each sample."""

    kind: Literal["classify"] = "classify"
    shorthand: ClassVar[str] = "classes"
    classes: int = Field(ge=2, le=2**20)

    def output(self, input: Shape) -> Shape:
        return Features(self.classes)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"classes": self.classes}


class SparseCode(Task):
    """From measurements y = D z + noise to a code z that makes the objective of the Lasso small,
    ½|y - D z|² + penalty·|z|₁ (Gregor and LeCun 2010). The loss is that objective, and no code is
    given (as in Ablin et al. 2019; Sander et al. 2021). Functions of the form `[concat, linear,
    soft_threshold]` start as a step of ISTA."""

    kind: Literal["sparse_code"] = "sparse_code"
    shorthand: ClassVar[str] = "codes"
    codes: int = Field(ge=1, le=2**20)
    """How many numbers a code has."""
    penalty: float = Field(0.1, gt=0, le=1e6)

    def output(self, input: Shape) -> Shape:
        return Features(self.codes)

    @property
    def sizes(self) -> Mapping[str, int]:
        return {"codes": self.codes}


AnyTask = Classify | SparseCode
TaskEntry = Annotated[
    Annotated[AnyTask, Field(discriminator="kind")], OneKey("task", *AnyTask.__args__)
]


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
    """Of classification."""
    clip: float | None = Field(None, gt=0)
    """The largest norm of the gradient."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of residual functions, under autocast; streams stay in fp32."""
    start_from: str | None = None
    """A file of weights to start from, as `archspec convert` or another run wrote it."""
    seed: int = Field(0, ge=0, lt=2**32)
