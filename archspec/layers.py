"""The layers that stems, transitions, heads and residual functions are lists of.

Each model holds a layer's settings and the rule that gives its output shape. What a layer
computes is built in `compiler.functions`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints
from typing_extensions import TypeAliasType

from archspec.expressions import LARGEST
from archspec.maps import AS_MAP
from archspec.onekey import Kind, OneKey
from archspec.shapes import Features, Image, Shape, ShapeError, Sizes, Tokens, with_channels

Size = Annotated[int | str, Field(description="A whole number, or an expression: `4*channels`.")]
Rate = Annotated[
    float | int | str, Field(description="A rate in [0, 1), or an expression: `0.1*layer/depth`.")
]
MODULE_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,79}(\.[A-Za-z_][A-Za-z0-9_]{0,79}){1,15}$"
Activation = Literal["relu", "gelu", "silu", "tanh", "softplus"]


def _need(shape: Shape, *wanted: type[Shape]) -> None:
    if not isinstance(shape, wanted):
        names = " or ".join(w.__name__.lower() for w in wanted)
        raise ShapeError(f"expected {names}, found {shape}")


class Layer(Kind):
    """One layer."""

    def takes(self, waiting: int) -> int:
        """How many of a function's further arguments, of which `waiting` are left, it takes."""
        del waiting
        return 0

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        """The output shape for an input of `shape`. Raises `ShapeError`."""
        del sizes
        return shape

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        """Like `infer`, for an input and the further arguments that the layer takes."""
        return self.infer(shapes[0], sizes)


class Joining(Layer):
    """A layer that takes all arguments there are."""

    def takes(self, waiting: int) -> int:
        return max(1, waiting)


class LayerNorm(Layer):
    """Normalise each token over its channels; learned scale and shift."""

    kind: Literal["layer_norm"] = "layer_norm"
    eps: float = Field(1e-6, gt=0)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if isinstance(shape, Image):
            raise ShapeError(
                f"expected tokens or features, found {shape}", "use group_norm on images"
            )
        return shape


class BatchNorm(Layer):
    """Normalise each channel over the batch; running statistics in evaluation."""

    kind: Literal["batch_norm"] = "batch_norm"
    eps: float = Field(1e-5, gt=0)
    momentum: float = Field(0.1, gt=0, le=1)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Image, Features)
        return shape


class GroupNorm(Layer):
    """Normalise groups of channels of an image."""

    kind: Literal["group_norm"] = "group_norm"
    shorthand: ClassVar[str] = "groups"
    groups: int = Field(ge=1)
    eps: float = Field(1e-5, gt=0)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Image)
        if shape.channels % self.groups:
            raise ShapeError(f"{self.groups} groups do not divide {shape.channels} channels")
        return shape


class Attention(Layer):
    """Multi-head self-attention, biases everywhere, through scaled_dot_product_attention.

    With `masked`, it takes the function's next argument as a mask: N tokens × N (queries by keys)
    or N features (keys), numbers to add to the scores, or booleans that say where to look.
    """

    kind: Literal["attention"] = "attention"
    shorthand: ClassVar[str] = "heads"
    heads: int = Field(ge=1)
    dropout: Rate = 0.0
    """Dropout of attention weights."""
    masked: bool = False

    def takes(self, waiting: int) -> int:
        return 1 if self.masked else 0

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Tokens)
        sizes.rate(self.dropout)
        if shape.channels % self.heads:
            raise ShapeError(f"{self.heads} heads do not divide {shape.channels} channels")
        return shape

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        shape = self.infer(shapes[0], sizes)
        assert isinstance(shape, Tokens)
        for mask in shapes[1:]:
            if mask not in (Tokens(shape.count, shape.count), Features(shape.count)):
                wanted = f"{Tokens(shape.count, shape.count)} or {Features(shape.count)}"
                raise ShapeError(f"the mask is {mask}, and {shape} need {wanted}")
        return shape


class Mlp(Layer):
    """linear → activation → dropout → linear → dropout, back to the same width."""

    kind: Literal["mlp"] = "mlp"
    shorthand: ClassVar[str] = "ratio"
    ratio: float = Field(4.0, gt=0)
    """Hidden width over input width."""
    activation: Activation = "gelu"
    dropout: Rate = 0.0

    def hidden(self, channels: int) -> int:
        """The hidden width. Raises `ShapeError` where it is not whole."""
        width = Fraction(str(self.ratio)) * channels
        if width.denominator != 1:
            raise ShapeError(f"{self.ratio} times {channels} channels is not a whole number")
        return int(width)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Tokens, Features)
        sizes.rate(self.dropout)
        sizes.size(self.hidden(shape.channels))
        return shape


class Linear(Layer):
    """A linear map of the channels of each token."""

    kind: Literal["linear"] = "linear"
    shorthand: ClassVar[str] = "out"
    out: Size
    bias: bool = True

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if isinstance(shape, Image):
            raise ShapeError(f"expected tokens or features, found {shape}", "use conv: {kernel: 1}")
        return with_channels(shape, sizes.size(self.out))


class Conv(Layer):
    """A 2-D convolution, padded to keep the grid at stride 1."""

    kind: Literal["conv"] = "conv"
    shorthand: ClassVar[str] = "out"
    out: Size = "channels"
    kernel: int = Field(3, ge=1, le=31)
    stride: int = Field(1, ge=1, le=1024)
    padding: int | None = Field(None, ge=0, le=1024)
    """Default: half the kernel."""
    groups: Size = 1
    bias: bool = True

    @property
    def pad(self) -> int:
        """The padding on each side."""
        return self.kernel // 2 if self.padding is None else self.padding

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Image)
        assert isinstance(shape, Image)
        out, groups = sizes.size(self.out), sizes.size(self.groups)
        if shape.channels % groups or out % groups:
            raise ShapeError(f"{groups} groups do not divide {shape.channels} → {out} channels")
        height, width = (
            (n + 2 * self.pad - self.kernel) // self.stride + 1 for n in (shape.height, shape.width)
        )
        if height < 1 or width < 1:
            raise ShapeError(f"a kernel of {self.kernel} is larger than the padded {shape}")
        return Image(out, height, width)


class TransposePair(Layer):
    """K^T s(K x + b), both maps tied to one kernel K (Chang et al. 2018): a convolution on images,
    a linear map on tokens."""

    kind: Literal["transpose_pair"] = "transpose_pair"
    hidden: Size = "channels"
    """Channels of K x."""
    kernel: int | None = Field(None, ge=1, le=31)
    """Of the convolution; 3 by default on images."""
    activation: Activation = "relu"

    @property
    def width(self) -> int:
        """The convolution's kernel size."""
        return 3 if self.kernel is None else self.kernel

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.size(self.hidden)
        if isinstance(shape, Image) and self.width % 2 == 0:
            raise ShapeError(f"a kernel of {self.width} changes the grid", "use an odd kernel")
        if not isinstance(shape, Image) and self.kernel is not None:
            raise ShapeError(f"`kernel` is for images, found {shape}", "leave `kernel` out")
        return shape


class Pointwise(Layer):
    """An activation."""

    kind: Activation


class Dropout(Layer):
    """Drop single elements in training."""

    kind: Literal["dropout"] = "dropout"
    shorthand: ClassVar[str] = "rate"
    rate: Rate

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.rate(self.rate)
        return shape


class DropPath(Layer):
    """Drop the function's whole output, per sample, in training (stochastic depth)."""

    kind: Literal["drop_path"] = "drop_path"
    shorthand: ClassVar[str] = "rate"
    rate: Rate

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        sizes.rate(self.rate)
        return shape


class Scale(Layer):
    """A learned factor per channel (layer scale)."""

    kind: Literal["scale"] = "scale"
    shorthand: ClassVar[str] = "init"
    init: float = 1e-4

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        if abs(self.init) > LARGEST:
            raise ShapeError(f"a factor is at most {LARGEST:g}, on either side of zero")
        return shape


class Concat(Joining):
    """Join a function's arguments along their channels."""

    kind: Literal["concat"] = "concat"

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        return concatenated(shapes)


def concatenated(shapes: tuple[Shape, ...]) -> Shape:
    """The shape of tensors joined along their channels. Raises `ShapeError`."""
    first = shapes[0]
    if any(with_channels(s, first.channels) != first for s in shapes):
        raise ShapeError(f"cannot concatenate {', '.join(map(str, shapes))}")
    return with_channels(first, sum(s.channels for s in shapes))


class Add(Joining):
    """Add a function's arguments."""

    kind: Literal["add"] = "add"

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        if len(set(shapes)) > 1:
            raise ShapeError(f"cannot add {', '.join(map(str, shapes))}")
        return shapes[0]


class Modulate(Layer):
    """Scale and shift every channel by linear maps of the function's next argument, a vector
    (Perez et al. 2018). The maps start at zero, so that at first nothing changes."""

    kind: Literal["modulate"] = "modulate"

    def takes(self, waiting: int) -> int:
        return 1

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        _need(shapes[1], Features)
        return shapes[0]


class UserModule(Layer):
    """A module of the user's own: `module: package.Class`. Its packages must be allowed from
    outside the spec, since importing one runs its code."""

    kind: Literal["module"] = "module"
    shorthand: ClassVar[str] = "name"
    name: Annotated[str, StringConstraints(pattern=MODULE_NAME)]
    """The class, a `torch.nn.Module`, with the modules that it is in."""
    arguments: dict[str, bool | int | float | str] = Field({}, max_length=64)
    """What the class is called with."""
    out: tuple[int, ...] | None = Field(None, strict=False, min_length=1, max_length=3)
    """The sizes of one sample's result; as large as the input by default."""

    def takes(self, waiting: int) -> int:
        return waiting

    def join(self, shapes: tuple[Shape, ...], sizes: Sizes) -> Shape:
        if self.out is None:
            return shapes[0]
        if len(self.out) != len(shapes[0].sizes) or min(self.out) < 1 or max(self.out) > 2**20:
            raise ShapeError(f"`out` is as many sizes as {shapes[0]} has, each from 1 to {2**20}")
        return type(shapes[0])(*self.out)


class PatchEmbed(Layer):
    """Cut an image into square patches, each mapped to one token."""

    kind: Literal["patch_embed"] = "patch_embed"
    patch: int = Field(ge=1, le=2**20)
    width: int = Field(ge=1, le=2**20)

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Image)
        assert isinstance(shape, Image)
        if shape.height % self.patch or shape.width % self.patch:
            raise ShapeError(f"patches of {self.patch} do not tile {shape}")
        return Tokens((shape.height // self.patch) * (shape.width // self.patch), self.width)


class ClassToken(Layer):
    """Put one learned token before the others."""

    kind: Literal["class_token"] = "class_token"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Tokens)
        assert isinstance(shape, Tokens)
        return Tokens(shape.count + 1, shape.channels)


class Position(Layer):
    """Add a learned embedding of each token's position."""

    kind: Literal["position"] = "position"
    shorthand: ClassVar[str] = "embedding"
    embedding: Literal["learned"] = "learned"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Tokens)
        return shape


class Pool(Layer):
    """All tokens or pixels to one vector: their mean, their maximum, or the first token."""

    kind: Literal["pool"] = "pool"
    shorthand: ClassVar[str] = "by"
    by: Literal["mean", "max", "first"]

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        _need(shape, Image, Tokens)
        if self.by == "first" and isinstance(shape, Image):
            raise ShapeError(f"expected tokens, found {shape}")
        return Features(shape.channels)


class Flatten(Layer):
    """All elements of a sample as one vector."""

    kind: Literal["flatten"] = "flatten"

    def infer(self, shape: Shape, sizes: Sizes) -> Shape:
        total = 1
        for size in shape.sizes:
            total *= size
        return Features(total)


AnyLayer = (
    LayerNorm
    | BatchNorm
    | GroupNorm
    | Attention
    | Mlp
    | Linear
    | Conv
    | TransposePair
    | Pointwise
    | Dropout
    | DropPath
    | Scale
    | Concat
    | Add
    | Modulate
    | UserModule
    | PatchEmbed
    | ClassToken
    | Position
    | Pool
    | Flatten
)
LayerEntry = TypeAliasType(  # a name of its own, so that the JSON schema describes it once
    "LayerEntry",
    Annotated[
        Annotated[AnyLayer, Field(discriminator="kind")],
        OneKey("layer", *AnyLayer.__args__, elsewhere=AS_MAP),
    ],
)
