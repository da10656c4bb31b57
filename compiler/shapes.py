"""Shapes through lists of layers and through expressions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from archspec.expressions import (
    ELEMENTWISE,
    Binary,
    Call,
    Expression,
    Name,
    Number,
    Range,
    children,
    show,
)
from archspec.layers import Joining, Layer, Residual, UserModule, concatenated
from archspec.shapes import Shape, ShapeError, Sizes, Tokens, with_channels
from compiler.plan import LayerPlan
from compiler.user_modules import UserModuleError, check_module, is_allowed

Scalar = None
"""The shape of a number: it goes with every stream."""


@dataclass(frozen=True)
class Coefficient:
    """The shape of a coefficient learned per channel or drawn per sample: it goes with streams
    that are `like` the first of the stage."""

    like: Shape
    per_channel: bool

    def goes_with(self, shape: Shape) -> bool:
        """Whether a product with `shape` has the shape of `shape`."""
        same_channels = not self.per_channel or shape.channels == self.like.channels
        return type(shape) is type(self.like) and same_channels


ShapeOrScalar = Shape | Coefficient | None


class ExpressionShapeError(ValueError):
    """Shapes that do not go together, with the place in the expression's text."""

    def __init__(self, message: str, at: Range, help: str = "") -> None:
        super().__init__(message)
        self.message, self.at, self.help = message, at, help


@dataclass(frozen=True)
class BadLayer:
    """The layer of a list that cannot take what reaches it."""

    index: int
    error: ShapeError
    inside: tuple[str | int, ...] = ()
    """Where it is among the lists of the layer at `index`, if that has lists of its own."""


def infer_layers(
    layers: Sequence[Layer],
    arguments: tuple[Shape, ...],
    sizes: Callable[[Shape], Sizes],
    packages: tuple[str, ...] = (),
    inside: str = "",
) -> tuple[tuple[LayerPlan, ...], Shape] | BadLayer:
    """The shapes through a list of layers, or the first layer that does not fit. Modules of the
    user's own may come from `packages`; `inside` is the kind of layer that the list is in."""
    plans: list[LayerPlan] = []
    value, waiting = arguments[0], arguments[1:]
    for index, layer in enumerate(layers):
        known = sizes(value)
        try:
            count = layer.takes(len(waiting))
            if count > len(waiting):
                raise _no_argument(layer, inside)
            taken = (value, *waiting[:count])
            if isinstance(layer, Residual):
                plan = _residual(layer, value, sizes, packages)
                if isinstance(plan, BadLayer):
                    return BadLayer(index, plan.error, plan.inside)
            else:
                after = layer.join(taken, known)
                if isinstance(layer, UserModule):
                    _check_user_module(layer, packages, taken, after)
                plan = LayerPlan(layer, taken, after, known, packages)
        except ShapeError as error:
            return BadLayer(index, error)
        plans.append(plan)
        value, waiting = plan.after, waiting[count:]
    if waiting:
        several = "arguments" if len(waiting) > 1 else "argument"
        message = f"no layer takes the last {len(waiting)} {several} of {len(arguments)}"
        help = "`concat` and `add` take all; `modulate` and `attention: {masked: true}` the next"
        return BadLayer(len(layers) - 1, ShapeError(message, help))
    return tuple(plans), value


def _residual(
    layer: Residual, value: Shape, sizes: Callable[[Shape], Sizes], packages: tuple[str, ...]
) -> LayerPlan | BadLayer:
    """The plan of two lists side by side. Raises `ShapeError` where they end in two shapes."""
    branches: list[tuple[LayerPlan, ...]] = []
    ends: list[Shape] = []
    for name, layers in (("body", layer.body), ("shortcut", layer.shortcut)):
        found = infer_layers(layers, (value,), sizes, packages, layer.kind)
        if isinstance(found, BadLayer):
            return BadLayer(0, found.error, ("residual", name, found.index, *found.inside))
        branches.append(found[0])
        ends.append(found[1])
    if ends[0] != ends[1]:
        message = f"the body ends in {_with_grid(ends[0])}, and the shortcut in "
        message += _with_grid(ends[1])
        raise ShapeError(message, "" if layer.shortcut else "give `shortcut` layers of its own")
    return LayerPlan(layer, (value,), ends[0], sizes(value), packages, tuple(branches))


def _with_grid(shape: Shape) -> str:
    """A shape as text, tokens with the grid that they lie on."""
    if isinstance(shape, Tokens) and shape.grid:
        return f"{shape} on {'×'.join(map(str, shape.grid))}"
    return str(shape)


def _no_argument(layer: Layer, inside: str) -> ShapeError:
    if inside:
        return ShapeError(f"layers inside `{inside}` see its input alone")
    if isinstance(layer, Joining):
        return ShapeError("there is only one argument to join")
    return ShapeError("there is no further argument for it to take", "call it as in `F(x, mask)`")


def _check_user_module(
    layer: UserModule, packages: tuple[str, ...], before: tuple[Shape, ...], after: Shape
) -> None:
    if not is_allowed(layer.name, packages):
        package = layer.name.partition(".")[0]
        message = f"`{layer.name}` would run code that this spec names"
        help = f"if you trust the package, give --allow-modules {package}"
        raise ModuleNotAllowedError(message, help)
    try:
        check_module(layer, packages, before, after)
    except UserModuleError as error:
        raise ShapeError(str(error)) from None


class ModuleNotAllowedError(ShapeError):
    """A module of the user's own that nothing outside the spec allows."""


def infer_expression(
    expression: Expression,
    scope: Mapping[str, ShapeOrScalar],
    call: Callable[[Call, tuple[Shape, ...]], Shape],
) -> ShapeOrScalar:
    """The shape of an expression. `call` gives the shape of a residual function's result.

    Raises `ExpressionShapeError`.
    """

    def infer(part: Expression) -> ShapeOrScalar:
        if isinstance(part, Number):
            return Scalar
        if isinstance(part, Name):
            return scope[part.name]
        if isinstance(part, Binary):
            return _agree(part, infer(part.left), infer(part.right))
        if isinstance(part, Call) and part.function == "chunk":
            return _chunk(part, infer(part.arguments[0]))
        if isinstance(part, Call) and part.function == "zeros":
            return _zeros(part, scope)
        shapes = [infer(child) for child in children(part)]
        return _apply(part, shapes, call) if isinstance(part, Call) else shapes[0]

    return infer(expression)


def _apply(
    part: Call, shapes: Sequence[ShapeOrScalar], call: Callable[[Call, tuple[Shape, ...]], Shape]
) -> ShapeOrScalar:
    if part.function in ELEMENTWISE:
        if len(shapes) != 1:
            raise ExpressionShapeError(f"`{part.function}` takes one value", part.at)
        return shapes[0]
    streams = tuple(_streams(part, shapes))
    if part.function != "concat":
        return call(part, streams)
    try:
        return concatenated(streams)
    except ShapeError as error:
        raise ExpressionShapeError(error.message, part.at) from None


def _agree(part: Binary, left: ShapeOrScalar, right: ShapeOrScalar) -> ShapeOrScalar:
    if left is None or right is None:
        return left or right
    if isinstance(left, Coefficient) and isinstance(right, Coefficient):
        return left if left.per_channel else right
    if isinstance(left, Coefficient):
        return _scaled(part, part.left, left, right)
    if isinstance(right, Coefficient):
        return _scaled(part, part.right, right, left)
    if left != right:
        message = f"`{show(part.left)}` is {left}, `{show(part.right)}` is {right}"
        raise ExpressionShapeError(message, part.at, "both sides need one shape")
    return left


def _scaled(
    part: Binary, factor: Expression, coefficient: Coefficient, shape: ShapeOrScalar
) -> ShapeOrScalar:
    assert shape is not None
    assert not isinstance(shape, Coefficient)
    if coefficient.goes_with(shape):
        return shape
    how = "learned per channel" if coefficient.per_channel else "drawn per sample"
    message = f"`{show(factor)}` is {how} for {coefficient.like}, and does not go with {shape}"
    raise ExpressionShapeError(message, part.at)


def _streams(part: Call, shapes: Sequence[ShapeOrScalar]) -> Iterator[Shape]:
    for argument, shape in zip(part.arguments, shapes, strict=True):
        if shape is None or isinstance(shape, Coefficient):
            message = f"`{show(argument)}` is a number, and `{part.function}` takes streams"
            raise ExpressionShapeError(message, argument.at)
        yield shape


def chunk_numbers(part: Call) -> tuple[int, int]:
    """i and n of `chunk(stream, i, n)`. Raises `ExpressionShapeError`."""
    numbers = [a.value for a in part.arguments[1:] if isinstance(a, Number)]
    if len(part.arguments) != 3 or len(numbers) != 2 or not 1 <= numbers[0] <= numbers[1] <= 4096:
        message = "a chunk is written `chunk(input, i, n)`: part i of n, counted from 1"
        raise ExpressionShapeError(message, part.at)
    if any(number.denominator != 1 for number in numbers):
        raise ExpressionShapeError("the parts of a chunk are whole numbers", part.at)
    return int(numbers[0]), int(numbers[1])


def _chunk(part: Call, shape: ShapeOrScalar) -> Shape:
    _, count = chunk_numbers(part)
    if shape is None or isinstance(shape, Coefficient):
        raise ExpressionShapeError("only a stream has chunks", part.at)
    if shape.channels % count:
        message = f"{shape.channels} channels do not divide into {count} chunks"
        raise ExpressionShapeError(message, part.at)
    return with_channels(shape, shape.channels // count)


def zeros_channels(part: Call) -> int:
    """n of `zeros(n)`. Raises `ExpressionShapeError`."""
    number = part.arguments[0]
    if len(part.arguments) != 1 or not isinstance(number, Number):
        message = "zeros of another width are written `zeros(n)`: n channels of them"
        raise ExpressionShapeError(message, part.at)
    if number.value.denominator != 1 or not 1 <= number.value <= 2**20:
        message = f"expected a whole number of channels from 1 to {2**20}"
        raise ExpressionShapeError(message, number.at)
    return int(number.value)


def _zeros(part: Call, scope: Mapping[str, ShapeOrScalar]) -> Shape:
    like = scope.get("input")
    if like is None or isinstance(like, Coefficient):
        message = "`zeros(n)` belongs where streams start, under `streams`"
        raise ExpressionShapeError(message, part.at)
    return with_channels(like, zeros_channels(part))
