"""A spec as Pydantic models: what may be written, of which type."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from archspec.augmentation import AugmentationEntry
from archspec.data import DataEntry
from archspec.layers import LayerEntry
from archspec.maps import MapEntry
from archspec.memory_size import Size
from archspec.onekey import Kind, Model, OneKey
from archspec.shapes import Features, Image, Shape, Tokens, Video
from archspec.training import TaskEntry, Train

MAX_DEPTH = 10_000
Identifier = Annotated[str, StringConstraints(pattern=r"^[a-z][A-Za-z0-9_]{0,39}$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Za-z0-9]{0,39}$")]
FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,79}$"
FileName = Annotated[str, StringConstraints(pattern=FILE_NAME)]
Layers = Annotated[tuple[LayerEntry, ...], Field(strict=False)]
Length = Annotated[int, Field(ge=1, le=2**20)]


class ImageInput(Kind):
    """Images: [channels, height, width]."""

    kind: Literal["image"] = "image"
    shorthand: ClassVar[str] = "sizes"
    sizes: tuple[Length, ...] = Field(strict=False, min_length=3, max_length=3)

    @property
    def shape(self) -> Shape:
        return Image(*self.sizes)


class VideoInput(Kind):
    """Videos: [channels, frames, height, width]."""

    kind: Literal["video"] = "video"
    shorthand: ClassVar[str] = "sizes"
    sizes: tuple[Length, ...] = Field(strict=False, min_length=4, max_length=4)

    @property
    def shape(self) -> Shape:
        return Video(*self.sizes)


class TokensInput(Kind):
    """Sequences of vectors: [count, channels]."""

    kind: Literal["tokens"] = "tokens"
    shorthand: ClassVar[str] = "sizes"
    sizes: tuple[Length, ...] = Field(strict=False, min_length=2, max_length=2)

    @property
    def shape(self) -> Shape:
        count, channels = self.sizes
        return Tokens(count, channels)


class FeaturesInput(Kind):
    """Vectors: [channels]."""

    kind: Literal["features"] = "features"
    shorthand: ClassVar[str] = "sizes"
    sizes: tuple[Length, ...] = Field(strict=False, min_length=1, max_length=1)

    @property
    def shape(self) -> Shape:
        return Features(*self.sizes)


AnyInput = ImageInput | VideoInput | TokensInput | FeaturesInput
InputEntry = Annotated[
    Annotated[AnyInput, Field(discriminator="kind")], OneKey("input", *AnyInput.__args__)
]


class Learned(Model):
    """A learned coefficient. With `within`, a sigmoid keeps it in that closed range."""

    learn: float
    """Its value at the start."""
    within: tuple[float, ...] | None = Field(None, strict=False, min_length=2, max_length=2)
    per: Literal["layer", "channel"] = "layer"


class Drawn(Model):
    """A coefficient drawn anew at every layer in training, for every sample."""

    draw: tuple[float, ...] = Field(strict=False, min_length=1, max_length=64)
    """The values it is drawn from, with equal chances."""
    per: Literal["sample"] = "sample"
    evaluate: float
    """Its value in evaluation."""


def _constant_form(value: object) -> str:
    """Tags that are no keys: where an error stands is told by keys and tags alike."""
    if isinstance(value, (Learned, Drawn)):
        return "<learn>" if isinstance(value, Learned) else "<draw>"
    if isinstance(value, dict):
        return "<draw>" if "draw" in value else "<learn>"
    return "<expression>" if isinstance(value, str) else "<number>"


def _number_or_text(value: object) -> str:
    return "<expression>" if isinstance(value, str) else "<number>"


Factor = Annotated[
    Annotated[float, Field(ge=0), Tag("<number>")] | Annotated[str, Tag("<expression>")],
    Discriminator(_number_or_text),
]
"""A number from 0 on, or arithmetic on constants."""


Constant = Annotated[
    Annotated[float, Tag("<number>")]
    | Annotated[str, Tag("<expression>")]
    | Annotated[Learned, Tag("<learn>")]
    | Annotated[Drawn, Tag("<draw>")],
    Discriminator(_constant_form),
]


Calls = Annotated[int, Field(ge=0, le=2**20)]
"""How many calls of functions, the last ones of a stage."""


class ReversibleBackward(Kind):
    """Activations are computed again from streams that the derived inverse reconstructs."""

    model_config = ConfigDict(serialize_by_alias=True)
    kind: Literal["reversible"] = "reversible"
    since: float = Field(0.0, alias="from", ge=0, le=1)
    """The progress of training from which on, for coefficients that read `progress`; until then
    the stage is checkpointed, and its program needs no inverse."""
    stored: Calls = 0
    """How many calls of functions, the last ones, store their activations instead."""
    results: Calls = 0
    """How many calls of functions, the last ones, keep their results, which spares their replays
    the last layer."""


class CheckpointBackward(Kind):
    """Activations are computed again from streams that were kept on the way."""

    kind: Literal["checkpoint"] = "checkpoint"
    every: Annotated[int, Field(ge=1, le=MAX_DEPTH)] | None = None
    """Streams are kept before every so many layers, which are computed again together; 1 by
    default."""
    slots: Annotated[int, Field(ge=1, le=MAX_DEPTH)] | None = None
    """Streams are kept before at most so many layers at any time, by the binomial schedule."""
    stored: Calls = 0
    """How many calls of functions, the last ones, store their activations instead."""
    results: Calls = 0
    """How many calls of functions, the last ones, keep their results, which spares their replays
    the last layer."""

    @model_validator(mode="after")
    def _one_schedule(self) -> CheckpointBackward:
        if self.every is not None and self.slots is not None:
            raise ValueError("`every` and `slots` are two schedules, and a stage has one")
        return self


class StoreBackward(Kind):
    """Activations are stored."""

    kind: Literal["store"] = "store"


class BudgetBackward(Kind):
    """As many calls of functions as a budget of memory allows store their activations, the last
    ones; those of the others are computed again, from streams that the derived inverse
    reconstructs, or, of a program without one, that were kept."""

    kind: Literal["budget"] = "budget"
    shorthand: ClassVar[str] = "memory"
    memory: Size
    """That a training step of the whole network may take, at the recipe's batch: 6GiB, 512MiB."""


AnyBackward = ReversibleBackward | CheckpointBackward | StoreBackward | BudgetBackward
BackwardEntry = Annotated[
    Annotated[AnyBackward, Field(discriminator="kind")],
    OneKey("backward strategy", *AnyBackward.__args__),
]


class FloatArithmetic(Kind):
    """Streams are floating-point numbers, and an inverse is as good as their rounding."""

    kind: Literal["float"] = "float"


class ExactArithmetic(Kind):
    """Streams lie on a fixed-point grid; what updates lose of them is kept, and they are
    reconstructed bit for bit."""

    kind: Literal["exact"] = "exact"
    shorthand: ClassVar[str] = "fraction_bits"
    fraction_bits: int = Field(14, ge=0, le=22)
    """Streams are multiples of 2^-fraction_bits, and stay below 2^(24 - fraction_bits)."""


AnyArithmetic = FloatArithmetic | ExactArithmetic
ArithmeticEntry = Annotated[
    Annotated[AnyArithmetic, Field(discriminator="kind")],
    OneKey("arithmetic", *AnyArithmetic.__args__),
]


class Stage(Model):
    """`depth` layers of one update program on named streams."""

    transition: Layers = ()
    """Layers that the stage's input passes through first."""
    depth: int = Field(ge=1, le=MAX_DEPTH)
    streams: dict[Identifier, str] = Field(min_length=1, max_length=16)
    """How each stream starts: `input`, `zeros`, `chunk(input, 1, 2)`, or arithmetic on these and
    functions of them, such as `input + F0(input)`."""
    functions: dict[
        FunctionName, Annotated[tuple[LayerEntry, ...], Field(strict=False, min_length=1)]
    ] = Field({})
    """Residual functions, each a list of layers."""
    maps: dict[FunctionName, MapEntry] = Field({}, max_length=64)
    """Invertible maps of one stream, for updates such as `x = W(x)`."""
    share: bool = False
    """Whether all layers have the same functions and maps, as the steps of an ODE do."""
    constants: dict[Identifier, Constant] = Field({}, max_length=64)
    """Coefficients of the update."""
    update: tuple[str, ...] = Field(strict=False, min_length=1, max_length=64)
    """One layer, a line for each update."""
    output: str
    """What leaves the stage: a stream, or an expression such as `concat(x1, x2)`."""
    backward: BackwardEntry = ReversibleBackward()
    """How the backward pass comes by activations: reconstructed, recomputed, or stored."""
    store_every: Annotated[int, Field(ge=1, le=MAX_DEPTH)] | None = None
    """With `backward: reversible`, the streams are kept after every so many layers, and the
    reconstruction starts anew from them, so that its errors grow no further."""
    arithmetic: ArithmeticEntry = FloatArithmetic()
    """Whether streams are reconstructed to rounding, or exactly."""
    smoothness: Factor | None = None
    """Times half the squared change of functions' weights from layer to layer, summed over the
    stage, it is added to the loss."""
    coupling: FileName | None = None
    """A named coupling, which stands for its streams, constants, update and output."""


def _whole(value: object) -> object:
    """Of `true` and `1.0`, which are equal to 1, neither is a version."""
    if type(value) is not int:
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    if value != 1:
        raise ValueError(f"this archspec reads version 1, found `{value}`")
    return value


Version = Annotated[Literal[1], BeforeValidator(_whole)]


ARCHITECTURE = ("input", "side", "stem", "stages", "head", "task")
"""The keys of a spec that determine its weights' names and shapes, and what is computed."""


class Spec(Model):
    """A network, its data and its training."""

    archspec: Version
    """The version of the language."""
    name: FileName
    summary: str
    """One line."""
    cite: tuple[str, ...] = Field((), strict=False)
    """Keys of the papers it comes from."""
    family: str | None = None
    """What its kind of network is called, where the first paper cited does not say it."""
    extends: FileName | None = None
    """The spec that this one starts from: maps merge, lists replace."""
    input: InputEntry
    side: dict[Identifier, InputEntry] = Field({}, max_length=16)
    """Side inputs, given by name with each batch: an attention mask, a time, a condition."""
    stem: Layers = ()
    stages: dict[Identifier, Stage] = Field(min_length=1, max_length=64)
    head: Layers = ()
    task: TaskEntry
    data: DataEntry | None = None
    recipe: FileName | None = None
    """A recipe of `specs/recipes`, or beside this file: its `train` and `augment`, where the spec
    does not write them itself."""
    train: Train | None = None


class Recipe(Model):
    """A file of `specs/recipes`: how networks of a kind are trained."""

    archspec: Version
    recipe: FileName
    summary: str
    cite: tuple[str, ...] = Field((), strict=False)
    augment: tuple[AugmentationEntry, ...] = Field((), strict=False)
    train: Train


class Coupling(Model):
    """A file of `specs/couplings`: an update program without its functions."""

    archspec: Version
    coupling: FileName
    summary: str
    cite: tuple[str, ...] = Field((), strict=False)
    streams: dict[Identifier, str] = Field(min_length=1, max_length=16)
    functions: tuple[FunctionName, ...] = Field(strict=False, min_length=1)
    """The functions that a stage using this coupling gives."""
    maps: tuple[FunctionName, ...] = Field((), strict=False)
    """The invertible maps that a stage using this coupling gives."""
    constants: dict[Identifier, Constant] = Field({}, max_length=64)
    update: tuple[str, ...] = Field(strict=False, min_length=1, max_length=64)
    output: str
