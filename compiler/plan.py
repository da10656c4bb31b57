"""The typed values that the compiler's stages hand to one another. Nothing here knows torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from archspec.diagnostics import Diagnostic
from archspec.expressions import Expression
from archspec.layers import Layer
from archspec.maps import InvertibleMap
from archspec.shapes import Shape, Sizes
from archspec.spec import Drawn, Learned
from compiler.schedules import Checkpoints


@dataclass(frozen=True)
class LayerPlan:
    """One layer of a list with the shape that reaches it; of a layer that takes more of a
    function's arguments, those too."""

    layer: Layer
    before: tuple[Shape, ...]
    after: Shape
    sizes: Sizes
    packages: tuple[str, ...] = ()
    """Where a module of the user's own may come from."""
    branches: tuple[tuple[LayerPlan, ...], ...] = ()
    """Of a layer that has lists of layers of its own, those."""


@dataclass(frozen=True)
class FunctionPlan:
    """A residual function: the shapes of its arguments, its layers, the shape of its result."""

    name: str
    arguments: tuple[Shape, ...]
    layers: tuple[LayerPlan, ...]
    result: Shape


@dataclass(frozen=True)
class StreamPlan:
    """A stream and the expression that it starts from."""

    name: str
    start: Expression
    shape: Shape


@dataclass(frozen=True)
class MapPlan:
    """An invertible map of one stream, with the shapes before and after it."""

    name: str
    map: InvertibleMap
    before: Shape
    after: Shape


@dataclass(frozen=True)
class SidePlan:
    """A side input: what a batch of it is like, one sample at a time."""

    name: str
    shape: Shape


Constant = Expression | Learned | Drawn


@dataclass(frozen=True)
class Call:
    """One call of a residual function. `result` names its value in the expressions around it."""

    result: str
    function: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Affine:
    """`target = scale*target + rest`, where neither reads the target: invertible."""

    target: str
    scale: Expression
    rest: Expression
    calls: tuple[Call, ...]
    text: str


@dataclass(frozen=True)
class General:
    """`target = value` where no inverse is known: for stored or checkpointed stages."""

    target: str
    value: Expression
    calls: tuple[Call, ...]
    text: str


@dataclass(frozen=True)
class Temporary:
    """`name := value`."""

    name: str
    value: Expression
    calls: tuple[Call, ...]
    text: str


@dataclass(frozen=True)
class Permutation:
    """`targets[i]` gets what `sources[i]` held."""

    targets: tuple[str, ...]
    sources: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Mapped:
    """`target = map(target)`, an invertible map."""

    target: str
    map: str
    text: str


Step = Affine | General | Temporary | Permutation | Mapped


@dataclass(frozen=True)
class StagePlan:
    """One stage: `depth` layers of `steps`."""

    name: str
    depth: int
    backward: Literal["reversible", "checkpoint", "store"]
    checkpoints: Checkpoints
    """Where a checkpointed stage keeps its streams."""
    stored: int
    """How many of the last calls store their activations."""
    results: int
    """How many of the last calls keep their results."""
    budget: int | None
    """The bytes that a training step of the network may take, by which that number is planned."""
    invertible_from: float
    """The progress of training from which on a reversible stage is reversed; before, it is
    checkpointed. 0 where the strategy is another."""
    store_every: int
    """How many layers a reversible stage reconstructs from streams that were kept."""
    transition: tuple[LayerPlan, ...]
    input: Shape
    """What the streams start from, after the transition."""
    streams: tuple[StreamPlan, ...]
    final: tuple[Shape, ...]
    """The streams' shapes after the last layer."""
    side: tuple[SidePlan, ...]
    """The side inputs that the update reads."""
    start_functions: tuple[FunctionPlan, ...]
    functions: tuple[FunctionPlan, ...]
    maps: tuple[MapPlan, ...]
    share: bool
    """All layers have the same functions and maps."""
    constants: Mapping[str, Constant]
    fraction_bits: int | None
    """Of the grid that the streams lie on, where arithmetic is exact."""
    smoothness: float
    """Of the penalty on weights that change with depth; 0 where there is none."""
    steps: tuple[Step, ...]
    output: Expression
    result: Shape
    obstacles: tuple[Diagnostic, ...]
    """Why the program has no inverse in training; none, if it has one."""
    invertible_in_evaluation: bool
    reads_progress: bool

    @property
    def invertible(self) -> bool:
        """Whether an inverse is derived."""
        return not self.obstacles

    @property
    def ends_of_training(self) -> tuple[float, ...]:
        """The first and the last progress at which the stage may be reversed; any one where its
        program does not read it."""
        return (self.invertible_from, 1.0) if self.reads_progress else (0.0,)


@dataclass(frozen=True)
class NetworkPlan:
    """A whole network, every name looked up and every shape known."""

    name: str
    input: Shape
    side: tuple[SidePlan, ...]
    sizes: Mapping[str, int]
    """Those that the task names, such as `classes`."""
    stem: tuple[LayerPlan, ...]
    stages: tuple[StagePlan, ...]
    head: tuple[LayerPlan, ...]
    output: Shape
    prior: Literal["gaussian", "learned"] | None = None
    """Of the latents, where the network is a density."""
