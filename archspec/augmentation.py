"""What a spec says of augmentation: of training images, before a network sees them."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from archspec.onekey import Kind, OneKey


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


class RandAugment(Kind):
    """So many operations on each image, drawn from torchvision's fourteen (Cubuk et al. 2020)."""

    kind: Literal["rand_augment"] = "rand_augment"
    operations: int = Field(2, ge=1, le=14)
    magnitude: int = Field(9, ge=0, le=30)
    """Of 30, as torchvision counts; timm counts to 10."""


class ColourJitter(Kind):
    """Change brightness, contrast and saturation, each by a factor from 1 - strength to
    1 + strength."""

    kind: Literal["colour_jitter"] = "colour_jitter"
    shorthand: ClassVar[str] = "strength"
    strength: float = Field(0.4, gt=0, le=1)


class RandomErasing(Kind):
    """Put noise in place of a rectangle, of 2% to a third of the image (Zhong et al. 2020). Done
    after normalising, wherever it stands."""

    kind: Literal["random_erasing"] = "random_erasing"
    shorthand: ClassVar[str] = "probability"
    probability: float = Field(0.25, gt=0, le=1)


class MixUp(Kind):
    """Blend each image and its label with another's, in a share drawn from Beta(alpha, alpha) for
    the batch (Zhang et al. 2018). With `cutmix`, half of the batches are given the one, half the
    other. Done last."""

    kind: Literal["mixup"] = "mixup"
    shorthand: ClassVar[str] = "alpha"
    alpha: float = Field(0.8, gt=0, le=100)


class CutMix(Kind):
    """Paste a rectangle of another image into each, and mix their labels by area (Yun et al.
    2019). Done last."""

    kind: Literal["cutmix"] = "cutmix"
    shorthand: ClassVar[str] = "alpha"
    alpha: float = Field(1.0, gt=0, le=100)


OnBatches = HorizontalFlip | RandomCrop | RandomResizedCrop | RandomAffine
AnyAugmentation = OnBatches | RandAugment | ColourJitter | RandomErasing | MixUp | CutMix
AugmentationEntry = Annotated[
    Annotated[AnyAugmentation, Field(discriminator="kind")],
    OneKey("augmentation", *AnyAugmentation.__args__),
]
